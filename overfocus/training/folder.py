"""The folder of a training: opened, continued or replaced."""

import json
import re
from pathlib import Path
from typing import Any

from overfocus.errors import TrainingError
from overfocus.files import atomic_file

_OURS = re.compile(r"training\.json|checkpoint\.pt|model\.safetensors|log\.csv|curves\.png|\..*\.unfinished")


def open_folder(folder: Path, *, overwrite: bool) -> dict[str, Any] | None:
    """Make the folder ready; the content of training.json where a training lies there, None for a new one.

    A training with neither checkpoint nor result has nothing to go on from, and so does not count: it may have been refused.

    Raises:
        TrainingError: it holds other files, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        info = _read(folder / "training.json")
        if info is not None and not overwrite and {"checkpoint.pt", "model.safetensors"} & {path.name for path in found}:
            return info
        if info is not None or overwrite:
            for path in folder.iterdir():
                if path.is_file() and _OURS.fullmatch(path.name):
                    path.unlink()
        elif found:
            names = ", ".join(path.name for path in found[:3])
            raise TrainingError(
                f"{folder}: holds other files ({names}); choose another output, or --overwrite to write beside them"
            )
    except OSError as error:
        raise TrainingError(f"{folder}: the output folder cannot be used ({error.strerror}); choose another output") from None
    return None


def write_info(folder: Path, info: dict[str, Any]) -> None:
    """Replace training.json.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        with atomic_file(folder / "training.json") as file:
            file.write(json.dumps(info, indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise TrainingError(f"{folder}: the output folder cannot be written ({error.strerror}); choose another output") from None


def is_complete(folder: Path) -> bool:
    """Whether the training in a folder has come to its end, its result written."""
    info = _read(folder / "training.json")
    return info is not None and info.get("status") == "complete"


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or "settings" not in content:
        raise TrainingError(f"{path}: expected the description of a training, got something else; choose another output")
    return content
