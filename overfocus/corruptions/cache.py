"""Corrupted images kept on disk, so that other models are compared on them without corrupting again."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from overfocus.corruptions.apply import corrupt
from overfocus.corruptions.constants import ConstantSet, choose_constants
from overfocus.errors import CorruptionError
from overfocus.files import atomic_file

_RECIPE = 1
"""To be raised whenever `corrupt` gives other pixels than before."""
_LIBRARIES = ("imagecorruptions-imaug", "numba", "numpy", "pillow", "scikit-image", "scipy")
"""Whose versions may change a pixel; OpenCV comes under several names and says its version itself."""


def corrupt_cached(
    rgb: UInt8[np.ndarray, "height width 3"],
    name: str,
    severity: int = 3,
    seed: int = 0,
    constants: ConstantSet | None = None,
    *,
    folder: Path,
) -> UInt8[np.ndarray, "height width 3"]:
    """`corrupt`, or what it gave for the same pixels, name, severity, seed and constants before.

    Each result is a file of its own, as large as its pixels, whose name comes from all of these and from the versions of the
    libraries that compute them. A file that is damaged or of another size is written anew. Several processes may share a folder.

    Raises:
        CorruptionError: as `corrupt`; or a result cannot be written.
    """
    path = _path(folder, rgb, name, severity, seed, constants)
    if path is not None and (found := _read(path, rgb.shape)) is not None:
        return found
    result = corrupt(rgb, name, severity, seed, constants)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                np.save(file, result, allow_pickle=False)
        except OSError as error:
            raise CorruptionError(
                f"{folder}: cannot keep corrupted images there ({error.strerror or error}); choose another folder or none"
            ) from error
    return result


def _path(folder: Path, rgb: Any, name: str, severity: int, seed: int, constants: ConstantSet | None) -> Path | None:
    """Where the result belongs; None for what `corrupt` refuses."""
    if not isinstance(rgb, np.ndarray) or rgb.ndim != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        return None
    chosen = constants or choose_constants(min(rgb.shape[:2]))
    digest = hashlib.blake2b(np.ascontiguousarray(rgb).data, digest_size=20)
    digest.update(f"{rgb.shape} {name} {severity} {seed} {chosen} {_versions()}".encode())
    return Path(folder) / digest.hexdigest()[:2] / f"{digest.hexdigest()[2:]}.npy"


@cache
def _versions() -> str:
    import cv2

    return " ".join([str(_RECIPE), cv2.__version__, *(version(library) for library in _LIBRARIES)])


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray[Any, Any] | None:
    """The pixels in a file; None unless it is there, whole, and of this shape."""
    try:
        expected = int(np.prod(shape))
        if not path.is_file() or not expected < path.stat().st_size < expected + 1024:
            return None
        found: np.ndarray[Any, Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.uint8 else None
