"""What was probably meant, where an argument is something else than the command takes."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from overfocus.errors import CheckpointError, RunError
from overfocus.text import printable

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
_WEIGHTS = (".pth", ".pt", ".tar", ".safetensors", ".bin", ".ckpt")
_LOOKED_AT = 200
"""Entries of a folder."""


def require_checkpoint(checkpoint: str | None, images: Iterable[str | Path] | None = None, *, command: str) -> None:
    """Raise a `CheckpointError` that says how to give them if images stand where the checkpoint belongs."""
    if checkpoint is None or not _is_images(Path(checkpoint)):
        return
    given = [str(path) for path in images or ()]
    if given and Path(given[0]).suffix.lower() in _WEIGHTS:
        right = f"overfocus {command} {printable(given[0])} {printable(checkpoint)}"
        raise CheckpointError(
            f"{printable(checkpoint)}: expected a checkpoint, this is an image; the checkpoint comes first: {right}"
        )
    right = f"overfocus {command} CHECKPOINT {'' if command == 'heatmap' else '--images '}{printable(checkpoint)}"
    raise CheckpointError(f"{printable(checkpoint)}: expected a checkpoint, this holds images; give them as: {right}")


def require_run(folder: Path) -> None:
    """Raise a `RunError` that names the runs in the folder unless the folder is one itself."""
    names = ("run.json", "comparison.json")
    if any((folder / name).is_file() for name in names) or not folder.is_dir():
        return
    inside = sorted({path.parent for name in names for path in folder.glob(f"*/{name}")})
    if inside:
        listed = " ".join(printable(path) for path in inside[:5]) + (" …" if len(inside) > 5 else "")
        raise RunError(f"{printable(folder)}: expected a run folder, this holds {len(inside)} of them; give them: {listed}")


def _is_images(path: Path) -> bool:
    """Whether a path is an image, or a folder that holds images, directly or in its folders, and no weights."""
    try:
        if not path.is_dir():
            return path.suffix.lower() in _IMAGES
        endings = {entry.suffix.lower() for pattern in ("*", "*/*") for entry in islice(path.glob(pattern), _LOOKED_AT)}
    except (OSError, ValueError):
        return False
    return bool(endings & set(_IMAGES)) and not endings & {*_WEIGHTS, ".json"}
