"""Put weights into a model and account for every one of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from overfocus.checkpoints.build import Convert
from overfocus.checkpoints.fingerprint import is_table
from overfocus.checkpoints.layout import first_not_finite
from overfocus.checkpoints.messages import first_line, some
from overfocus.errors import CheckpointError

SMALLEST_SHARE = 0.9
"""Share of the parameters, counted in values, that must find their place in both directions."""


@dataclass(frozen=True)
class Filled:
    """What became of the weights."""

    missing: list[str]
    unexpected: list[str]
    notes: list[str]


def fill(model: nn.Module, tensors: Mapping[str, Tensor], convert: Convert, path: Path) -> Filled:
    """Convert the tensors to the model's form as timm does and copy them into it.

    Raises:
        CheckpointError: a shape does not fit, a value is NaN or infinite, or less than 90 % of the values land.
    """
    converted = _convert(model, dict(tensors), convert, path)
    ours = model.state_dict()
    for name, tensor in converted.items():
        if name in ours and ours[name].shape != tensor.shape:
            expected, got = tuple(ours[name].shape), tuple(tensor.shape)
            raise CheckpointError(
                f"{path}: {name} has shape {got}, {type(model).__name__} expects {expected}; try another --model"
            )
    landing = {name: tensor for name, tensor in converted.items() if name in ours}
    damaged = first_not_finite(landing)
    if damaged:
        raise CheckpointError(
            f"{path}: {damaged} holds NaN or infinite values; the training that wrote it diverged, take an earlier one"
        )
    missing = [name for name in ours if name not in converted]
    unexpected = [name for name in converted if name not in ours]
    _demand_share(model, converted, landing, path)
    model.load_state_dict(landing, strict=False)
    tables = [
        name for name, tensor in landing.items() if is_table(name) and name in tensors and tensors[name].shape != tensor.shape
    ]
    return Filled(missing, unexpected, [_resampled(tables[0], tensors, landing, len(tables))] if tables else [])


def _convert(model: nn.Module, tensors: dict[str, Tensor], convert: Convert, path: Path) -> dict[str, Tensor]:
    try:
        converted = convert(tensors, model)
    except Exception as error:  # timm's conversions index into whatever they are given
        raise CheckpointError(
            f"{path}: its weights do not fit {type(model).__name__} ({first_line(error)}); try another --model"
        ) from error
    return {name: tensor for name, tensor in converted.items() if isinstance(tensor, Tensor)}


def _demand_share(model: nn.Module, converted: Mapping[str, Tensor], landing: Mapping[str, Tensor], path: Path) -> None:
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    wanted, filled = sum(sizes.values()), sum(size for name, size in sizes.items() if name in landing)
    given, landed = (sum(tensor.numel() for tensor in group.values()) for group in (converted, landing))
    if filled >= SMALLEST_SHARE * wanted and landed >= SMALLEST_SHARE * given:
        return
    missing = [name for name in sizes if name not in landing]
    unexpected = [name for name in converted if name not in landing]
    raise CheckpointError(
        f"{path}: of {type(model).__name__}'s {wanted:,} parameters {filled:,} ({filled / max(wanted, 1):.0%}) are there, "
        f"of the checkpoint's {given:,} values {landed:,} ({landed / max(given, 1):.0%}) have a place; "
        f"missing {some(missing)}; unexpected {some(unexpected)}; try another --model"
    )


def _resampled(name: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor], count: int) -> str:
    others = f" and {count - 1} more" if count > 1 else ""
    return f"position tables resampled: {name} {tuple(before[name].shape)} → {tuple(after[name].shape)}{others}"
