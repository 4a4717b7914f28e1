"""The model to train, what its result must say for `load_model` to build it again, and trained weights to start from."""

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from overfocus.checkpoints.arguments import classifiers, trunk
from overfocus.checkpoints.build import SEGFORMER, added_tap
from overfocus.checkpoints.hints import hints_of_metadata
from overfocus.checkpoints.index import is_classifier, is_tap
from overfocus.checkpoints.load import LoadedModel, load_model
from overfocus.checkpoints.read import read_checkpoint
from overfocus.errors import CheckpointError, OverfocusError, TrainingError
from overfocus.models.segmentation import SegmentationModel


@dataclass(frozen=True)
class Architecture:
    """Everything that `save_checkpoint` needs to know of a model beside its weights."""

    name: str
    """One that timm or overfocus registers, or "VisionTransformer" with `arguments`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the function that builds it; num_classes, in_chans and (where it has one) img_size among them."""
    tap: dict[str, Any] | None = None
    """Of `overfocus.models.add_tap`."""

    def build(self, *, drop_path: float = 0.0, tap_init: str = "default") -> nn.Module:
        """The model with random weights.

        Raises:
            TrainingError: there is no such architecture, or it does not take the arguments.
        """
        import overfocus.models
        from overfocus.checkpoints.build import create

        arguments = dict(self.arguments) | ({"drop_path_rate": drop_path} if drop_path else {})
        try:
            require_registered(self.name)
            model = create(self.name, arguments)
            if self.tap is not None:
                overfocus.models.add_tap(model, **self.tap, init=tap_init)
        except TrainingError:
            raise
        except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, AttributeError, OverfocusError) as error:
            given = ", ".join(f"{key}={value!r}" for key, value in {**arguments, **(self.tap or {})}.items())
            raise TrainingError(f"{self.name} cannot be built with {given}: {str(error).splitlines()[0]}") from error
        return model

    def outline(self) -> nn.Module:
        """The model without memory.

        Raises:
            TrainingError: as `build`.
        """
        from overfocus.checkpoints.build import skeleton

        try:
            return skeleton(self.name, self.arguments, self.tap)
        except CheckpointError as error:
            raise TrainingError(str(error)) from error


def require_registered(name: str) -> None:
    """Raise a `TrainingError` that names the nearest unless timm or overfocus knows the architecture."""
    import timm

    from overfocus.checkpoints.build import SEGFORMER, UNREGISTERED, is_architecture

    if not is_architecture(name.partition(".")[0]):
        name = name.removesuffix(SEGFORMER)
        near = difflib.get_close_matches(name, [*timm.list_models(), UNREGISTERED], n=4, cutoff=0.5)
        nearest = f"the nearest are {', '.join(near)}" if near else "`overfocus list models` lists them"
        raise TrainingError(f"no architecture {name!r}; {nearest}")


def choose_architecture(
    name: str,
    *,
    classes: int,
    channels: int,
    image_size: int | None,
    arguments: Mapping[str, Any],
    tap: Mapping[str, Any] | None,
) -> Architecture:
    """An architecture with as many classes and input channels as the data have; `arguments` come before what is derived here.

    Where `tap` asks for branches and the architecture has TAP of its own, these are its branches; otherwise TAP is added.

    Raises:
        TrainingError: there is no such architecture, or it does not take the arguments.
    """
    from overfocus.checkpoints.arguments import takes_image_size
    from overfocus.checkpoints.build import tap_branches

    require_registered(name)
    given: dict[str, Any] = {"num_classes": classes, "in_chans": channels} | dict(arguments)
    outline = Architecture(name, given).outline()
    if image_size is not None and takes_image_size(outline):
        given["img_size"] = image_size
    if tap is not None and tap_branches(outline.state_dict()) is not None:
        given["num_scales"] = tap["branches"]
        tap = None
    chosen = Architecture(name, given, None if tap is None else dict(tap))
    chosen.outline()
    return chosen


_DERIVED = ("num_classes", "in_chans", "img_size", "num_scales")
"""Arguments that follow from the data or from what is asked for."""


def load_initial(
    source: str, model: str | None, image_size: tuple[int, int] | None = None, *, use_ema: bool = True
) -> LoadedModel:
    """A checkpoint or timm model; `model` helps where the checkpoint does not say what it is.

    A backbone to put under a segmentation head is loaded as the classifier that it was trained as.

    Raises:
        CheckpointError: it cannot be read or recognised.
    """
    try:
        return load_model(source, image_size=image_size, use_ema=use_ema)
    except CheckpointError as error:
        for name in () if model is None else dict.fromkeys((model, model.removesuffix(SEGFORMER))):
            with contextlib.suppress(CheckpointError):
                return load_model(source, model=name, image_size=image_size, use_ema=use_ema)
        raise error from None


def describe_architecture(loaded: LoadedModel) -> Architecture:
    """The architecture of a checkpoint, as far as the checkpoint says or shows it, without what follows from the data."""
    path = Path(loaded.source)
    arguments = {}
    if path.is_file() and (metadata := read_checkpoint(path).metadata):
        arguments = {key: value for key, value in hints_of_metadata(metadata, path).model_args.items() if key not in _DERIVED}
    plain = Architecture(loaded.name, arguments)
    return Architecture(loaded.name, arguments, added_tap(loaded.model.state_dict(), plain.outline()))


def fill_from(model: nn.Module, loaded: LoadedModel, class_names: Sequence[str]) -> list[str]:
    """Copy a checkpoint's weights into a model; returns which of its parts stay as they were made.

    The classifier is taken over only if it has the same classes by name (by number, where the checkpoint does not name
    them), and the model may have TAP that the checkpoint has not.

    Raises:
        TrainingError: the checkpoint is of another architecture.
    """
    given = dict(loaded.model.state_dict())
    if isinstance(model, SegmentationModel) and not isinstance(loaded.model, SegmentationModel):
        given = _as_backbone(given, model)
        heads: tuple[str, ...] = ("decode_head.",)
    else:
        heads = tuple(f"{name}." for name in classifiers(model))
        if isinstance(model, SegmentationModel):
            heads += ("decode_head.conv_seg.",)
    same = loaded.num_classes == len(class_names) and loaded.class_names in (None, list(class_names))
    if not same:
        given = {name: tensor for name, tensor in given.items() if not name.startswith(heads)}
    own = model.state_dict()
    missing = [name for name in own if name not in given]
    unfit = [name for name in given if name not in own or own[name].shape != given[name].shape]
    unfit += [name for name in missing if not (is_tap(name) or name.startswith(heads))]
    if unfit:
        raise TrainingError(
            f"{loaded.source}: a {loaded.name} whose weights do not fit the model to train (first: {unfit[0]}); "
            "leave --model out to take the checkpoint's architecture"
        )
    model.load_state_dict(given, strict=False)
    return sorted({_part(name) for name in missing})


def _as_backbone(given: dict[str, Tensor], model: SegmentationModel) -> dict[str, Tensor]:
    """A classifier's weights named as in the backbone of a segmentation model, without classifier and last norm."""
    front = trunk(model)[1] or "backbone."
    own = model.state_dict()
    unneeded = ("norm.", "fc_norm.", "head.", "head_dist.")
    return {
        front + name: tensor
        for name, tensor in given.items()
        if front + name in own or not (is_classifier(name) or name.startswith(unneeded))
    }


def _part(name: str) -> str:
    """What a new weight belongs to, in words for the user."""
    if is_tap(name):
        return "TAP"
    return "decode_head" if name.startswith("decode_head.") else name.rpartition(".")[0]
