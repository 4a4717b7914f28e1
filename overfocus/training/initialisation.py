"""Trained weights to start from."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from overfocus.checkpoints.fingerprint import is_tap
from overfocus.checkpoints.fit import classifiers
from overfocus.checkpoints.hints import hints_of_metadata
from overfocus.checkpoints.load import LoadedModel, load_model
from overfocus.checkpoints.read import read_checkpoint
from overfocus.checkpoints.tap import added_tap
from overfocus.errors import CheckpointError, TrainingError
from overfocus.training.architecture import Architecture

_DERIVED = ("num_classes", "in_chans", "img_size", "num_scales")
"""Arguments that follow from the data or from what is asked for."""


def load_initial(source: str, model: str | None, image_size: tuple[int, int] | None = None) -> LoadedModel:
    """A checkpoint or timm model; `model` helps where the checkpoint does not say what it is.

    Raises:
        CheckpointError: it cannot be read or recognised.
    """
    try:
        return load_model(source, image_size=image_size)
    except CheckpointError:
        if model is None:
            raise
        return load_model(source, model=model, image_size=image_size)


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
    heads = tuple(f"{name}." for name in classifiers(model))
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
    return sorted({"TAP" if is_tap(name) else name.rpartition(".")[0] for name in missing})
