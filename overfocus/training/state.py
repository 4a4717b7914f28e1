"""Everything that a training needs to go on, in one file that is replaced as a whole."""

import pickle
from pathlib import Path
from typing import Any

import torch

from overfocus.errors import TrainingError
from overfocus.files import atomic_file

FORMAT = 1


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace the file; a kill at any moment leaves the one before.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        with atomic_file(path) as file:
            torch.save(state | {"format": FORMAT}, file)
    except OSError as error:
        raise TrainingError(
            f"{path}: the checkpoint cannot be written ({error.strerror or error}); the one before is kept, "
            "make room and start the same command again"
        ) from error


def read_state(path: Path) -> dict[str, Any] | None:
    """The state of an interrupted or finished training; None where there is none.

    Nothing in the file is executed.

    Raises:
        TrainingError: the file is damaged or of another version.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"{path}: the checkpoint cannot be read ({reason}); --overwrite starts from the beginning") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainingError(f"{path}: expected the checkpoint of a training, got something else; choose another output")
    return dict(state)
