"""Find the state dict in what a checkpoint file holds, whichever trainer wrote it.

Known are the bare state dict; timm's saver (`state_dict`, `state_dict_ema`, `arch`, `args`); DeiT's and RVT's (`model`,
`model_ema`, `args`); Lightning and DistributedDataParallel, which put `model.`, `module.` or `net.` before each name; mmseg
(`backbone.` beside `decode_head.`); DINO's (`teacher`, `student`). Weights averaged over training (EMA) are preferred.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from overfocus.errors import CheckpointError

_EMA_ENTRIES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher")
_ENTRIES = ("state_dict", "model", "model_state_dict", "model_state", "weights", "net", "student", "module", "params")
_EMA_WORDS = ("model_ema", "ema_model", "ema", "teacher")
_WORDS = ("module", "_orig_mod", "model", "net", "backbone", "student", "vit", "classifier_model", "visual_encoder")
_COUNTER = "n_averaged"
"""What `torch.optim.swa_utils.AveragedModel` puts beside its `module.`."""
_BESIDE = ("decoder_", "decode_head.", "auxiliary_head.", "projection_head.")
"""Parts that pre-training and segmentation put beside the backbone under one prefix (MAE's decoder, mmseg's heads)."""


@dataclass(frozen=True)
class StateDict:
    """The weights found in a checkpoint."""

    tensors: dict[str, Tensor] = field(repr=False)
    entry: str
    """Where they were: "state_dict_ema", "model", "the file itself" …"""
    prefix: str
    """What was taken off the front of every name, e.g. "module."."""
    averaged: bool
    """Whether these are EMA weights."""
    alternative: str | None
    """The other weights that the file holds (EMA beside plain), None where there is one set."""
    left_out: tuple[str, ...]
    """Names of tensors beside the model (a segmentation head, a loss)."""


def find_state_dict(
    content: Mapping[str, Any],
    *,
    use_ema: bool = True,
    is_whole: Callable[[Mapping[str, Tensor]], bool] = lambda _: False,
    path: object = "checkpoint",
) -> StateDict:
    """The state dict of one model, its names without the wrapper's prefix.

    `is_whole` tells where tensors are a complete model as they stand: a segmentation model's `backbone.` is no wrapper.

    Raises:
        CheckpointError: there are no tensors in it, or none under a known entry.
    """
    averaged = [name for name in _EMA_ENTRIES if _holds_tensors(content.get(name))]
    plain = [name for name in _ENTRIES if _holds_tensors(content.get(name))]
    order = [*averaged, *plain] if use_ema else [*plain, *averaged]
    if order:
        entry = order[0]
        others = (plain if entry in averaged else averaged)[:1]
        found: Mapping[str, Any] = content[entry]
        inner = found.get("state_dict")
        if _holds_tensors(inner) and isinstance(inner, Mapping):  # timm's ModelEma saved whole
            found, entry = inner, f"{entry}.state_dict"
    elif _holds_tensors(content):
        entry, others, found = "the file itself", [], content
    else:
        keys = ", ".join(map(str, list(content)[:6])) or "nothing"
        raise CheckpointError(f"{path}: expected a state dict (names → tensors), got a dict with {keys} and no weights in it")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    tensors, prefix, left_out, other_prefix = _strip(tensors, use_ema, is_whole)
    is_average = entry.split(".")[0] in _EMA_ENTRIES or any(word in _EMA_WORDS for word in prefix.split("."))
    return StateDict(tensors, entry, prefix, is_average, other_prefix or (others[0] if others else None), left_out)


def _holds_tensors(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    if any(isinstance(item, Tensor) for item in value.values()):
        return True
    inner = value.get("state_dict")
    return isinstance(inner, Mapping) and any(isinstance(item, Tensor) for item in inner.values())


def _strip(
    tensors: dict[str, Tensor], use_ema: bool, is_whole: Callable[[Mapping[str, Tensor]], bool]
) -> tuple[dict[str, Tensor], str, tuple[str, ...], str | None]:
    """Take wrapper words off the front as long as most of the values stand behind one."""
    prefix, alternative = "", None
    left_out: list[str] = []
    while not is_whole(tensors) and (wrapper := _wrapper(tensors, use_ema)) is not None:
        word, other = wrapper
        if other is not None:
            alternative = f"{prefix}{other}."
        beside = (f"{word}.", f"{other}.", _COUNTER)
        left_out += [prefix + name for name in tensors if not name.startswith(beside)]
        tensors = {name.removeprefix(beside[0]): tensor for name, tensor in tensors.items() if name.startswith(beside[0])}
        prefix += beside[0]
    if is_whole(tensors):
        return tensors, prefix, tuple(left_out), alternative
    left_out += [prefix + name for name in tensors if name.startswith(_BESIDE)]
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_BESIDE)}
    return tensors, prefix, tuple(left_out), alternative


def _wrapper(tensors: Mapping[str, Tensor], use_ema: bool) -> tuple[str, str | None] | None:
    """The wrapper word to take off and, where plain and EMA weights lie side by side, the other one."""
    sizes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        sizes[name.partition(".")[0]] += tensor.numel()
    inside = {name.partition(".")[0] for name in tensors if "." in name}
    averaged = next((word for word in _EMA_WORDS if word in inside), None)
    plain = next((word for word in _WORDS if word in inside), None)
    if averaged and plain:
        return (averaged, plain) if use_ema else (plain, averaged)
    word = averaged or plain
    return (word, None) if word and 2 * sizes[word] >= sizes.total() else None


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with NaN or infinite values, None where all are finite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
            continue  # the sum is ten times cheaper, and finite only if every value is
        if not bool(torch.isfinite(tensor).all()):
            return name
    return None
