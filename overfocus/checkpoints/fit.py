"""Arguments that make an architecture fit a state dict: classes, input channels, image size, TAP branches."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from overfocus.checkpoints.fingerprint import is_table, square_side

_FALLBACK_CLASSIFIERS = ("head", "head.fc", "fc", "classifier")


def trunk(model: nn.Module) -> tuple[nn.Module, str]:
    """The module that takes the image, and what stands before its parameters' names.

    That is the backbone in a segmentation model with one of timm, else the model itself.
    """
    from overfocus.models.segmentation import TimmLevels

    backbone = getattr(model, "backbone", None)
    return (backbone.model, "backbone.model.") if isinstance(backbone, TimmLevels) else (model, "")


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the classifier's layers as timm knows them."""
    known = getattr(model, "pretrained_cfg", {}).get("classifier") or _FALLBACK_CLASSIFIERS
    return (known,) if isinstance(known, str) else tuple(known)


def classes_in(tensors: Mapping[str, Tensor], model: nn.Module) -> int:
    """Number of classes of the classifier in a state dict; 0 where it has none."""
    for name in (*classifiers(model), *_FALLBACK_CLASSIFIERS):
        weight = tensors.get(f"{name}.weight")
        if weight is not None and weight.ndim in (2, 4):
            return weight.shape[0]
    return 0


def channels_in(tensors: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """Input channels of the first convolution in a state dict, None where it is not found."""
    model, front = trunk(model)
    known = getattr(model, "pretrained_cfg", {}).get("first_conv") or "patch_embed.proj"
    names = (known,) if isinstance(known, str) else tuple(known)
    weight = tensors.get(f"{front}{names[0]}.weight")
    ours = dict(model.named_parameters()).get(f"{names[0]}.weight")
    if weight is None or ours is None or weight.ndim != 4 or weight.shape[1] == ours.shape[1]:
        return None
    return weight.shape[1]


def takes_image_size(model: nn.Module) -> bool:
    """Whether the architecture is built for one image size, given as `img_size`."""
    return "img_size" in inspect.signature(type(trunk(model)[0]).__init__).parameters


def image_size_of(model: nn.Module) -> tuple[int, int]:
    """(height, width) that a model was built for, or timm's default for it."""
    model, _ = trunk(model)
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) or getattr(model, "img_size", None)
    if size is None:
        size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def image_size_in(tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[int, int] | None:
    """(height, width) that the position table of a state dict was made for, None where no table says it.

    `model` is the architecture at its default size: its own table and patch grid tell how many prefix tokens the table
    counts and how large a patch is.
    """
    model, front = trunk(model)
    tensors = {name.removeprefix(front): tensor for name, tensor in tensors.items()}
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if is_table(name)}
    height, width = image_size_of(model)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    for name, shape in ours.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found is None or len(found) != len(shape):
            continue
        if len(shape) == 4 and "pos_embed" in name:  # (1, rows, columns, channels)
            axes = (1, 2) if found[3] == shape[3] else (2, 3)
            return height * found[axes[0]] // shape[axes[0]], width * found[axes[1]] // shape[axes[1]]
        if name.endswith("att_mask"):  # RVT: (heads, tokens, tokens)
            side, own = square_side(found[-1]), square_side(shape[-1])
            if side and own:
                return height * side // own, width * side // own
        if grid is None or shape == found:
            continue
        rows, columns = grid
        if len(shape) == 3 and "pos_embed" in name:  # (1, prefix tokens + patches, channels)
            side = square_side(found[1] - (shape[1] - rows * columns))
        elif len(shape) == 2 and rows == columns and shape[0] - 3 == (2 * rows - 1) ** 2:  # BEiT: relative, whole grid
            side = ((square_side(found[0] - 3) or -1) + 1) // 2
        else:
            continue
        if side:
            return height * side // rows, width * side // columns
    return None


def window_in(tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[int, int] | None:
    """(window in a state dict, window of the architecture) where Swin's relative tables say that they differ."""
    model, front = trunk(model)
    tensors = {name.removeprefix(front): tensor for name, tensor in tensors.items()}
    if "window_size" not in inspect.signature(type(model).__init__).parameters:
        return None
    for name, tensor in model.state_dict().items():
        if name.endswith("relative_position_bias_table") and name in tensors and tensor.shape != tensors[name].shape:
            ours, found = square_side(tensor.shape[0]), square_side(tensors[name].shape[0])
            return ((found + 1) // 2, (ours + 1) // 2) if ours and found else None
    return None


def fitting_arguments(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    given: Mapping[str, Any],
    *,
    image_size: tuple[int, int] | None,
    num_classes: int | None,
) -> dict[str, Any]:
    """Arguments for the real model, from its skeleton, what the checkpoint says and what the user asked for."""
    arguments = dict(given)
    arguments["num_classes"] = classes_in(tensors, model) if num_classes is None else num_classes
    channels = channels_in(tensors, model)
    if channels is not None:
        arguments["in_chans"] = channels
    size = image_size or image_size_in(tensors, model)
    windows = window_in(tensors, model) if "window_size" not in given else None
    if windows is not None:
        arguments["window_size"] = windows[0]
        height, width = image_size_of(model)
        size = size or (height * windows[0] // windows[1], width * windows[0] // windows[1])
    if size is not None and takes_image_size(model):
        arguments["img_size"] = size
    return arguments
