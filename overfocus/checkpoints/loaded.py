"""`LoadedModel`, what the rest of the program takes, `wrap`, which makes one of a module in memory, and its preprocessing."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from overfocus.checkpoints.arguments import image_size_of, takes_image_size
from overfocus.checkpoints.metadata import Metadata
from overfocus.errors import CheckpointError, first_line
from overfocus.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from overfocus.settings import typed
from overfocus.text import storable


@dataclass
class LoadedModel:
    """A model with what is known about where it came from and how its input is made."""

    model: nn.Module = field(repr=False)
    """In eval mode, on the device asked for."""
    preprocess: Preprocess = field(repr=False)
    name: str
    """Architecture, e.g. "vit_small_patch16_224"; for a wrapped module the name that the user gave it."""
    source: str
    sha256: str | None
    """Of the weights file, or of the weights themselves for a module in memory; None for a model that timm downloaded."""
    found_by: str
    """How the architecture was found: "asked for", "args.model", "shapes", "module" …"""
    weights_entry: str
    """Which weights of the file were taken, e.g. "state_dict_ema"."""
    missing_keys: list[str] = field(default_factory=list)
    """Tensors of the model that the file does not have."""
    unexpected_keys: list[str] = field(default_factory=list)
    """Tensors of the file that the model does not have."""
    notes: tuple[str, ...] = ()
    """What a user should know, one line each: assumptions, resampled tables, dropped heads, the weights taken."""
    lenient: bool = False
    """Whether tensors of the trunk are missing or left over, and `lenient` loaded the model all the same."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """What the architecture was built with beside its defaults."""
    class_names: list[str] | None = field(default=None, repr=False)
    class_colours: list[list[int]] | None = field(default=None, repr=False)
    """RGB of 0 … 255 of each class, where a segmentation's checkpoint says it."""
    classes: int | None = None
    """Number of classes of a model whose module does not say it."""

    def __post_init__(self) -> None:
        self.name, self.source = storable(self.name), storable(self.source)
        if self.class_names is not None:
            self.class_names = [storable(str(name)) for name in self.class_names]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.preprocess.input_size

    @property
    def num_classes(self) -> int:
        """Classes of the classifier; 0 where the model gives features."""
        return int(getattr(self.model, "num_classes", 0) or 0) if self.classes is None else self.classes

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean that is subtracted from each channel, of values in [0, 1]."""
        return self.preprocess.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation that each channel is divided by."""
        return self.preprocess.std

    @property
    def interpolation(self) -> str:
        """How images are resized."""
        return self.preprocess.interpolation

    @property
    def crop_pct(self) -> float:
        """Side of the crop divided by the side that the image was resized to."""
        return self.preprocess.crop_pct


@typed(CheckpointError)
def wrap(
    module: nn.Module,
    preprocess: Preprocess | Callable[[Image.Image], Any] | None = None,
    *,
    input_size: int | tuple[int, ...] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
) -> LoadedModel:
    """Say how images become the input of a module, so that it can be measured like a checkpoint.

    Args:
        module: any `torch.nn.Module` that takes a batch of images (batch, channels, height, width) as its first argument.
        preprocess: a `Preprocess`, or a function from a PIL image to a tensor (channels, height, width), such as a timm or
            torchvision transform or an image processor of transformers, as used for evaluation.
        input_size: in place of `preprocess`: side, (height, width) or (channels, height, width) of the input; images are
            resized and cropped as timm does. What a timm or transformers model says of itself need not be repeated.
        mean: per channel, of values in [0, 1]; ImageNet's where neither it nor the module says one.
        std: as `mean`.
        class_names: one per output.
        name: what to call it in tables, reports and run folders; the class of the module otherwise.

    Raises:
        CheckpointError: the input size is not known, or what was given is not usable.
    """
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"expected a torch.nn.Module to wrap, got {type(module).__name__}")
    notes: list[str] = []
    if preprocess is None:
        preprocess = _own_preprocess(module, input_size, mean, std, notes)
    elif input_size is not None or mean is not None or std is not None:
        raise CheckpointError("expected either preprocess or input_size, mean and std, got both")
    if not isinstance(preprocess, Preprocess):
        try:
            preprocess = Preprocess.from_callable(preprocess)
        except Exception as error:  # the function is the user's and may raise anything
            raise CheckpointError(
                f"preprocess cannot be used: {first_line(error)}; pass a function from a PIL image to a "
                "tensor (channels, height, width)"
            ) from error
    names = None if class_names is None else [str(text) for text in class_names]
    outputs = int(getattr(module, "num_classes", 0) or 0) if _classes(module) is None else _classes(module)
    if names is not None and outputs and len(names) != outputs:
        raise CheckpointError(f"expected a class name for each of {outputs} outputs, got {len(names)}; leave class_names out")
    config = getattr(module, "config", None)
    labels = getattr(config, "id2label", None)
    if names is None and isinstance(labels, dict) and "Classification" in type(module).__name__:
        names = [str(labels[key]) for key in sorted(labels)]
    return LoadedModel(
        model=module,
        preprocess=preprocess,
        name=name or type(module).__name__,
        source=name or type(module).__name__,
        sha256=hash_weights(module),
        found_by="module",
        weights_entry="in memory",
        notes=tuple(notes),
        class_names=names,
        classes=len(names) if names is not None else _classes(module),
    )


def hash_weights(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of all parameters and buffers of a module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _classes(module: nn.Module) -> int | None:
    """Outputs of a module's classifier, where its name says that it is one."""
    if hasattr(module, "num_classes"):
        return None  # the property of LoadedModel asks the module, which may be given another classifier later
    for name in ("head", "heads", "fc", "classifier", "mlp_head"):
        layers = [part for part in getattr(module, name, nn.Identity()).modules() if isinstance(part, nn.Linear)]
        if layers:
            return layers[-1].out_features
    return None


def _own_preprocess(
    module: nn.Module,
    input_size: int | tuple[int, ...] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    notes: list[str],
) -> Preprocess:
    """From what was given and what the module says of itself (timm's `pretrained_cfg`, the `config` of transformers)."""
    known: dict[str, Any] = dict(getattr(module, "pretrained_cfg", None) or {})
    config = getattr(module, "config", None)
    channels = int(getattr(module, "in_chans", None) or getattr(config, "num_channels", None) or 3)
    embed = getattr(module, "patch_embed", None)
    own = getattr(embed, "img_size", None) or getattr(config, "image_size", None) or (known.get("input_size") or (0, None))[1:]
    size = own if input_size is None else input_size
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(sides) == 3:
        channels, *sides = sides  # type: ignore[assignment]
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise CheckpointError(
            f"expected how images become the input of {type(module).__name__}; pass overfocus.wrap(module, preprocess=…) "
            "or overfocus.wrap(module, input_size=224, mean=…, std=…)"
        )
    for label, given in (("mean", mean), ("std", std)):
        if given is None and not known.get(label):
            notes.append(f"preprocessing assumed: ImageNet's {label}; the module does not say (pass preprocess=, or {label}=)")
    crop = {} if input_size is not None or not known else {
        key: known[key] for key in ("interpolation", "crop_pct", "crop_mode") if known.get(key)
    }  # fmt: skip
    try:
        return Preprocess(
            (channels, int(sides[0]), int(sides[1])),
            _per_channel(known.get("mean") or IMAGENET_MEAN if mean is None else mean, channels),
            _per_channel(known.get("std") or IMAGENET_STD if std is None else std, channels),
            **{"crop_pct": 1.0 if input_size is not None else 0.875, **crop},
        )
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"preprocessing of {type(module).__name__}: {error}") from None


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value per channel; a single value is spread, three are averaged for one channel."""
    numbers = tuple(float(value) for value in values)
    if len(numbers) == 1:
        return numbers * channels
    return (sum(numbers) / 3,) if channels == 1 and len(numbers) == 3 else numbers


def preprocess_for(
    model: nn.Module, metadata: Metadata, image_size: tuple[int, int] | None, *, imagenet: bool = False
) -> tuple[Preprocess, list[str]]:
    """The model's preprocessing, and notes on what was assumed.

    `imagenet`: take ImageNet's mean and standard deviation where the checkpoint says none, not timm's for the architecture.

    Raises:
        CheckpointError: the model takes neither grey nor RGB images, or mean and std do not fit its channels.
    """
    known: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
    if imagenet:
        known = {key: value for key, value in known.items() if key not in ("mean", "std")}
    given = metadata.preprocessing
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
        raise CheckpointError(
            f"the checkpoint's preprocessing cannot be used: {error}; correct it in config.json or in the file's metadata"
        ) from None
    return preprocess, notes


def class_names_for(metadata: Metadata, model: nn.Module) -> list[str] | None:
    """The checkpoint's own class names, ImageNet's by the number of classes, else None."""
    classes = int(getattr(model, "num_classes", 0) or 0)
    if metadata.class_names is not None and len(metadata.class_names) == classes:
        return list(metadata.class_names)
    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return [str(info.index_to_description(index)) for index in range(classes)]


def class_colours_for(metadata: Metadata, model: nn.Module) -> list[list[int]] | None:
    """The checkpoint's own colours of the classes, None where it has none for them."""
    if metadata.class_colours is None or len(metadata.class_colours) != int(getattr(model, "num_classes", 0) or 0):
        return None
    return [list(colour) for colour in metadata.class_colours]


def _input_channels(model: nn.Module) -> int:
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels
