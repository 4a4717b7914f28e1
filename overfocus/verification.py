"""`verify(model)`: are the captured maps the ones that the model used?

Per attention site of a random batch: captured weights × values against what the model produced, row sums, and whether the
model's result is the same to the bit with and without capture.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from overfocus.attention import AttentionMap
from overfocus.capturing import Site, capture
from overfocus.errors import CaptureError
from overfocus.settings import typed

OUTPUT_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest difference of weights × values that passes, relative to the largest value that the site produced (or to 1): what
rounding to the type that the site computes in leaves."""
ROW_TOLERANCE = 1e-5


@dataclass(frozen=True)
class VerifiedSite:
    """What was found for one captured map."""

    module: str
    kind: str
    shape: tuple[int, int, int, int]
    output_error: float
    """Largest absolute difference between weights × values and what the model produced."""
    row_error: float | None
    """Largest absolute difference of a row's sum from 1; None where the model changes the map after its softmax."""
    passed: bool


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    sites: tuple[VerifiedSite, ...]
    identical: bool
    """Whether the model's result with capture is the one without, to the bit."""
    difference: float
    """Largest absolute difference of the two results; 0 where they are identical."""
    coverage: tuple[Site, ...]

    @property
    def passed(self) -> bool:
        """Whether every site passed and the result is untouched."""
        return self.identical and bool(self.sites) and all(site.passed for site in self.sites)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "passed": self.passed,
            "identical": self.identical,
            "difference": self.difference,
            "sites": [asdict(site) for site in self.sites],
            "coverage": [site.row() for site in self.coverage],
        }


@torch.inference_mode()
@typed(CaptureError)
def verify(model: nn.Module, inputs: Any = None, *, seed: int = 0) -> Verification:
    """Check captured attention against the model itself, in evaluation mode and with the same random numbers.

    `inputs` is what the model is called with (a tensor, or a tuple or dict of arguments); without it two random images of
    the size that a timm model states. Raises `CaptureError` where no input is given and the model states no size, or
    where nothing was captured.
    """
    arguments, keywords = _arguments(model, inputs, seed)
    training = {module: module.training for module in model.modules()}
    for module in model.modules():  # the modules one by one: those of an exported program have no mode
        module.training = False
    try:
        with _same_random_numbers(seed):
            plain = model(*arguments, **keywords)
        with _same_random_numbers(seed), capture(model, reduce=_check, verify=True) as captured:
            observed = model(*arguments, **keywords)
    finally:
        for module, mode in training.items():
            module.training = mode
    if not captured.reduced:
        raise CaptureError(
            "no attention was captured: the model ran no softmax attention; see `overfocus inspect` for each module"
        )
    pairs = list(zip(_tensors(plain), _tensors(observed), strict=True))
    return Verification(
        sites=captured.reduced,
        identical=all(_identical(before, after) for before, after in pairs),
        difference=max((_difference(before, after) for before, after in pairs), default=0.0),
        coverage=captured.coverage,
    )


def _check(attention: AttentionMap) -> VerifiedSite:
    row_error = None
    if attention.normalised:
        sums = attention.weights.sum(-1)
        row_error = float((sums - 1).abs().masked_fill((sums == 0) & attention.hidden_rows, 0).max())
    error, scale = attention.deviation or (float("nan"), 0.0)
    rows = max(ROW_TOLERANCE, 2 * torch.finfo(attention.precision).eps)  # a map that the model keeps in a half is rounded
    tolerance = max(OUTPUT_TOLERANCE.get(kind, 1e-4) for kind in {attention.computed_in, attention.precision})
    passed = error <= tolerance * max(1.0, scale) and (row_error is None or row_error <= rows)
    return VerifiedSite(attention.module, attention.kind, attention.shape, error, row_error, passed)


@contextmanager
def _same_random_numbers(seed: int) -> Iterator[None]:
    """The same random numbers in every block, and the caller's own afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _identical(before: Tensor, after: Tensor) -> bool:
    """Equal to the bit, NaN at the same places included."""
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    return bool(((before == after) | ((before != before) & (after != after))).all())


def _difference(before: Tensor, after: Tensor) -> float:
    if before.shape != after.shape:
        return float("inf")
    if not before.numel():
        return 0.0
    return float((before.float() - after.float()).abs().nan_to_num().max())


def _arguments(model: nn.Module, inputs: Any, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    if inputs is not None:
        return inputs if isinstance(inputs, tuple) else (inputs,), {}
    config = getattr(model, "pretrained_cfg", None) or {}
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    channels, *default = config.get("input_size", (3, *(size or ())))
    channels = getattr(model, "in_chans", channels)
    if len(size or default) != 2:
        raise CaptureError(
            "expected `inputs` for a model that states no size, got none; give a batch such as torch.randn(2, 3, 224, 224)"
        )
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, channels, *(size or default), generator=generator)
    return (images.to(device=parameter.device, dtype=parameter.dtype),), {}


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result.to_padded_tensor(0.0) if result.is_nested else result]
    if isinstance(result, dict):
        result = tuple(result.values())
    return [tensor for item in result for tensor in _tensors(item)] if isinstance(result, (tuple, list)) else []
