"""The preprocessing and class names that belong to a checkpoint: what it says itself, else what timm knows."""

from typing import Any

from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import nn

from overfocus.checkpoints.fit import image_size_of, takes_image_size
from overfocus.checkpoints.hints import Hints
from overfocus.errors import CheckpointError
from overfocus.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def preprocess_for(
    model: nn.Module, hints: Hints, image_size: tuple[int, int] | None, *, imagenet: bool = False
) -> tuple[Preprocess, list[str]]:
    """The model's preprocessing, and notes on what was assumed.

    `imagenet`: take ImageNet's mean and standard deviation where the checkpoint says none, not timm's for the architecture.

    Raises:
        CheckpointError: the model takes neither grey nor RGB pictures, or mean and std do not fit its channels.
    """
    known: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    if imagenet:
        known = {key: value for key, value in known.items() if key not in ("mean", "std")}
    given = hints.preprocessing
    channels = getattr(model, "in_chans", None) or _input_channels(model)
    if channels not in (1, 3):
        raise CheckpointError(f"the model takes {channels} input channels; images have 1 (grey) or 3 (RGB)")
    notes = []
    if "mean" not in given and "std" not in given:
        source = "timm's for this architecture" if known.get("mean") else "ImageNet's, nothing better is known"
        notes.append(f"preprocessing assumed: mean and std are {source}; the checkpoint does not say")
    if image_size is None and takes_image_size(model):
        image_size = image_size_of(model)
    height, width = image_size or tuple(given.get("input_size") or known.get("input_size") or (3, 224, 224))[1:]
    merged: dict[str, Any] = {"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}
    merged |= {key: known[key] for key in merged if known.get(key)} | {key: given[key] for key in merged if key in given}
    try:
        preprocess = Preprocess(
            input_size=(channels, height, width),
            mean=_per_channel(given.get("mean") or known.get("mean") or IMAGENET_MEAN, channels),
            std=_per_channel(given.get("std") or known.get("std") or IMAGENET_STD, channels),
            **merged,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"the preprocessing of the checkpoint is not usable: {error}") from None
    return preprocess, notes


def class_names_for(hints: Hints, model: nn.Module) -> list[str] | None:
    """The checkpoint's own class names, ImageNet's by the number of classes, else None."""
    classes = int(getattr(model, "num_classes", 0) or 0)
    if hints.class_names is not None and len(hints.class_names) == classes:
        return list(hints.class_names)
    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return [str(info.index_to_description(index)) for index in range(classes)]


def class_colours_for(hints: Hints, model: nn.Module) -> list[list[int]] | None:
    """The checkpoint's own colours of the classes, None where it has none for them."""
    if hints.class_colours is None or len(hints.class_colours) != int(getattr(model, "num_classes", 0) or 0):
        return None
    return [list(colour) for colour in hints.class_colours]


def _input_channels(model: nn.Module) -> int:
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One value per channel; a single value is spread, three are averaged for one channel."""
    if len(values) == 1:
        return tuple(values) * channels
    if channels == 1 and len(values) == 3:
        return (sum(values) / 3,)
    return tuple(values)
