"""Trained weights to start from."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from overfocus.checkpoints.build import SEGFORMER
from overfocus.checkpoints.fingerprint import is_classifier, is_tap
from overfocus.checkpoints.fit import classifiers, trunk
from overfocus.checkpoints.hints import hints_of_metadata
from overfocus.checkpoints.load import LoadedModel, load_model
from overfocus.checkpoints.read import read_checkpoint
from overfocus.checkpoints.tap import added_tap
from overfocus.errors import CheckpointError, TrainingError
from overfocus.models.segmentation import SegmentationModel
from overfocus.training.architecture import Architecture

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
