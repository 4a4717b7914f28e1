"""Write a checkpoint that says by itself what it is: safetensors with the architecture and preprocessing in its metadata.

The metadata of a safetensors file is a table of texts. `load_model` reads these keys; each but `architecture` is optional
and holds JSON:

    architecture    a name that timm or overfocus.models registers, or "VisionTransformer" for a model that
                    `timm.models.vision_transformer.VisionTransformer(**model_args)` makes and no name stands for
    model_args      arguments of that function, e.g. {"img_size": 32, "patch_size": 4, "in_chans": 1, "embed_dim": 96}
    tap             arguments of `overfocus.models.add_tap`, where TAP was added to the architecture afterwards
    class_names     list of names, one per class
    class_colours   list of [red, green, blue] of 0 … 255, one per class, for pictures of segmentations
    input_size      [channels, height, width]
    mean, std       one value per channel, of pixels in [0, 1]
    interpolation   "bicubic", "bilinear" or "nearest"
    crop_pct        in (0, 1]
    crop_mode       "center", "squash" or "border"

Other keys (a recipe, an accuracy) are kept and not interpreted. The number of classes, the input channels and the image
size follow from the weights.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from overfocus.files import atomic_file
from overfocus.preprocessing import Preprocess
from overfocus.version import __version__

_RESERVED = ("format", "architecture", "model_args", "tap", "class_names", "class_colours", "input_size", "overfocus")


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    *,
    architecture: str,
    model_args: Mapping[str, Any] | None = None,
    tap: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    class_colours: Sequence[Sequence[int]] | None = None,
    preprocess: Preprocess | None = None,
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Save a model's weights so that `load_model(path)` builds it again without being told anything.

    The file is written whole (temporary name, then rename). `extra` goes into the metadata as it is.

    Raises:
        ValueError: `extra` uses a key that has a meaning here.
        TypeError: an argument is not of the kinds that JSON holds.
    """
    metadata = {"format": "pt", "overfocus": __version__, "architecture": architecture}
    described: dict[str, Any] = {"model_args": model_args, "tap": tap, "class_names": class_names}
    described["class_colours"] = class_colours
    if preprocess is not None:
        described |= {
            "input_size": preprocess.input_size,
            "mean": preprocess.mean,
            "std": preprocess.std,
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_pct,
            "crop_mode": preprocess.crop_mode,
        }
    metadata |= {key: json.dumps(_listed(value)) for key, value in described.items() if value is not None}
    clashes = sorted(set(extra or {}) & {*_RESERVED, *metadata})
    if clashes:
        raise ValueError(f"expected keys without a meaning of their own in extra, got {', '.join(clashes)}")
    metadata |= extra or {}
    target = Path(path)
    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in model.state_dict().items()}
    with atomic_file(target) as file:
        save_file(tensors, file.name, metadata=metadata)
    return target


def _listed(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value
