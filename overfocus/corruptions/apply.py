"""`corrupt`: one corrupted image that depends on nothing but what is asked for.

With ImageNet-C's constants the pixels come from the `imagecorruptions` package where it has the published ones and is quick; the
README beside this file has the table. The package draws from numpy's global generator, which is seeded here for each call
from (pixels, name, severity, seed) and put back afterwards; our own functions draw from a generator of their own with the same
seed. An image therefore gets the same corruption in any order, worker and batch, and two different images get different noise.

Corruption is applied to the uint8 RGB image after it was resized and cropped to the model's input, as ImageNet-C was built.
A model with one input channel gets the luma of the corrupted RGB image, in which noise is weaker: each colour has its own.
"""

import contextlib
import hashlib
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from overfocus.corruptions.constants import (
    CONSTANTS,
    CORRUPTIONS,
    ConstantSet,
    check_constants,
    check_severity,
    choose_constants,
    unknown,
)
from overfocus.errors import CorruptionError
from overfocus.settings import LARGEST_SEED, shown
from overfocus.text import printable

FROM_PACKAGE = frozenset(CORRUPTIONS) - {"glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "elastic_transform"}
"""Corruptions that `imagecorruptions` applies where the constants are ImageNet-C's."""

_SMALLEST_SIDE = 32
"""Pixels; the package works from this size on."""
_IMAGENET_C_SIDE = 244
"""The side that ImageNet-C's elastic transform takes its lengths from, whatever the image's; the authors' constant."""

_global_generator = threading.Lock()
"""Held while numpy's global generator is seeded for one call, so that threads do not draw from each other's."""

Array = np.ndarray[Any, Any]


def corrupt(
    rgb: UInt8[np.ndarray, "height width 3"],
    name: str,
    severity: int = 3,
    seed: int = 0,
    constants: ConstantSet | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Corrupt one RGB image; the same (pixels, name, severity, seed, constants) always give the same result.

    A side below 32 pixels is continued by mirroring to 32 for the call and cut back, so that noise and blur keep their size in
    pixels. `rgb` is not changed.

    Args:
        rgb: the image, at the size at which the model sees it.
        name: one of `CORRUPTIONS`.
        severity: from 1 (weak) to 5 (strong).
        seed: of the random corruptions.
        constants: the benchmark whose constants are applied; None for the one that fits the shorter side (`choose_constants`).

    Raises:
        CorruptionError: unknown name or constants, severity outside 1–5, or pixels that are not uint8 (height, width, 3).
    """
    name = str.__str__(name) if isinstance(name, str) else name  # not a subclass's, which may raise anything
    if not isinstance(name, str) or name not in CORRUPTIONS:
        raise CorruptionError(unknown("corruption", name, CORRUPTIONS))
    check_severity(severity)
    check_constants(constants)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not -LARGEST_SEED <= seed <= LARGEST_SEED:
        raise CorruptionError(f"seed must be a whole number, got {shown(seed)}")
    if not (isinstance(rgb, np.ndarray) and rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3):
        came = f"{rgb.dtype} {rgb.shape}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
        raise CorruptionError(
            f"corrupt expects RGB pixels as a uint8 array (height, width, 3), got {came}; try np.asarray(image)"
        )
    height, width, _ = rgb.shape
    if 0 in (height, width):
        raise CorruptionError(f"corrupt expects an image of at least 1×1 pixels, got {width}×{height}")
    above, left = max(0, _SMALLEST_SIDE - height) // 2, max(0, _SMALLEST_SIDE - width) // 2
    below, right = max(0, _SMALLEST_SIDE - height - above), max(0, _SMALLEST_SIDE - width - left)
    padded = np.pad(rgb, ((above, below), (left, right), (0, 0)), mode="symmetric")
    words = random_words(rgb, name, severity, seed)
    chosen = constants or choose_constants(min(height, width))
    if chosen == "imagenet-c" and name in FROM_PACKAGE:
        result = _from_package(padded, name, int(severity), words)
    else:
        result = _apply(padded, name, int(severity), chosen, words)
    return np.ascontiguousarray(result[above : above + height, left : left + width])


def prepare_corruptions(names: Iterable[str], constants: ConstantSet | None = None) -> None:
    """Import and compile what the corruptions need, before worker processes are started from this one."""
    image = np.zeros((_SMALLEST_SIDE, _SMALLEST_SIDE, 3), np.uint8)
    for name in names:
        for chosen in (constants,) if constants else ("cifar-c", "imagenet-c"):
            corrupt(image, name, 2, constants=chosen)


def _apply(image: Array, name: str, severity: int, constants: ConstantSet, words: list[int]) -> Array:
    """Our own function."""
    from overfocus.corruptions import effects

    parameters = CONSTANTS[constants][name][severity - 1]
    # the package draws from another generator for glass blur, which takes one word
    rng = np.random.RandomState(words[0] if name == "glass_blur" and constants == "imagenet-c" else words)
    if name == "elastic_transform":
        side = _IMAGENET_C_SIDE if constants == "imagenet-c" else min(image.shape[:2])
        parameters = tuple(side * share for share in parameters)
    return effects.EFFECTS[name](image, rng, *parameters).astype(np.uint8)


def _from_package(image: Array, name: str, severity: int, words: list[int]) -> Array:
    """The package's function."""
    keywords = {"seed": words[0]} if name == "impulse_noise" else {}
    package = _package()
    # spatter divides by its strongest drop; where there is none, the result is the image as it is
    with _global_generator, _numpy_seeded(words), np.errstate(invalid="raise" if name == "spatter" else "warn"):
        try:
            result: Array = package.corrupt(image, severity=severity, corruption_name=name, **keywords)
        except FloatingPointError:
            return image
    return result


@cache
def _package() -> ModuleType:
    """The `imagecorruptions` package; imported late because it takes a second."""
    import imagecorruptions

    package: ModuleType = imagecorruptions
    return package


def random_words(pixels: UInt8[np.ndarray, "height width 3"], name: str, severity: int, seed: int) -> list[int]:
    """Four 32-bit numbers that depend on every argument and on nothing else."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    digest.update(f"{pixels.shape} {name} {int(severity)} {int(seed)}".encode())
    return [int.from_bytes(digest.digest()[start : start + 4], "little") for start in range(0, 16, 4)]


@contextlib.contextmanager
def _numpy_seeded(words: list[int]) -> Iterator[None]:
    """Seed numpy's global generator inside the block and put its state back after it."""
    state = np.random.get_state()  # noqa: NPY002  # the package draws from the global generator
    np.random.seed(words)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


CACHE_BYTES = 64 * 2**30
"""What the files of a cache take at most together."""
SPARE_BYTES = 2**30
"""What a cache leaves of the disk."""
_SUBFOLDERS = 256
_DIGEST_BYTES = 16
_RECIPE = 2
"""To be raised whenever `corrupt` gives other pixels than before."""
_LIBRARIES = ("imagecorruptions-imaug", "numba", "numpy", "pillow", "scikit-image", "scipy")
"""Whose versions may change a pixel; OpenCV comes under several names and says its version itself."""


def open_cache(folder: str | Path | None) -> Path | None:
    """A folder for corrupted images, made where it is not there yet; None where none is wanted.

    Raises:
        CorruptionError: nothing can be written there.
    """
    if folder is None:
        return None
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CorruptionError(
            f"{printable(folder)}: cannot keep corrupted images there ({error.strerror or error}); choose another folder or none"
        ) from error
    return folder


def corrupt_cached(
    rgb: UInt8[np.ndarray, "height width 3"],
    name: str,
    severity: int = 3,
    seed: int = 0,
    constants: ConstantSet | None = None,
    *,
    folder: Path | None,
) -> UInt8[np.ndarray, "height width 3"]:
    """`corrupt`, or what it gave for the same pixels, name, severity, seed and constants before; `folder` is None for no cache.

    Each result is a file of its own, as large as its pixels, whose name comes from all of these and from the versions of the
    libraries that compute them. A file that does not hold what was written is written anew. Several processes may share a
    folder. Nothing more is kept where the files take `CACHE_BYTES`, or the disk has less than `SPARE_BYTES` left.

    Raises:
        CorruptionError: as `corrupt`.
    """
    path = None if folder is None else _path(folder, rgb, name, severity, seed, constants)
    if path is None:
        return corrupt(rgb, name, severity, seed, constants)
    found = _read(path, rgb.shape)
    if found is None:
        found = corrupt(rgb, name, severity, seed, constants)
        _keep(path, found)
    return found


def _path(folder: Path, rgb: Any, name: str, severity: int, seed: int, constants: ConstantSet | None) -> Path | None:
    """Where the result belongs; None for what `corrupt` refuses."""
    if not isinstance(rgb, np.ndarray) or rgb.ndim != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        return None
    chosen = constants or choose_constants(min(rgb.shape[:2]))
    digest = hashlib.blake2b(np.ascontiguousarray(rgb).data, digest_size=20)
    digest.update(f"{rgb.shape} {name} {severity} {seed} {chosen} {_versions()}".encode())
    return folder / digest.hexdigest()[:2] / f"{digest.hexdigest()[2:]}.pixels"


@cache
def _versions() -> str:
    import cv2

    return " ".join([str(_RECIPE), cv2.__version__, *(version(library) for library in _LIBRARIES)])


def _digest(path: Path, pixels: bytes | memoryview) -> bytes:
    """What a file begins with: it depends on the pixels and on the file's name."""
    digest = hashlib.blake2b(f"{path.parent.name}{path.name}".encode(), digest_size=_DIGEST_BYTES)
    digest.update(pixels)
    return digest.digest()


def _read(path: Path, shape: tuple[int, ...]) -> Array | None:
    """The pixels in a file; None unless it is there and holds what was written for this shape."""
    expected = _DIGEST_BYTES + math.prod(shape)
    try:
        if not path.is_file() or path.stat().st_size != expected:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    pixels = content[_DIGEST_BYTES:]
    if len(content) != expected or content[:_DIGEST_BYTES] != _digest(path, pixels):
        return None
    return np.frombuffer(bytearray(pixels), np.uint8).reshape(shape)


def _keep(path: Path, pixels: Array) -> None:
    """Write a result where there is room; a full disk is not the caller's problem."""
    data = np.ascontiguousarray(pixels).data
    room = _rooms.setdefault(path.parent, _Room(path.parent))
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        if not room.take(_DIGEST_BYTES + data.nbytes):
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".unfinished", delete=False) as file:
            try:
                file.write(_digest(path, data) + bytes(data))
                file.close()
                Path(file.name).replace(path)
            except OSError:
                Path(file.name).unlink(missing_ok=True)


class _Room:
    """What the files of one of a cache's sub-folders may still take."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken = 0
        self._until_counted = 0

    def take(self, size: int) -> bool:
        """Whether a file of this size may be written; what other processes write is counted now and then."""
        if self._until_counted == 0:
            self._taken = sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(self._folder))
            self._until_counted = 64
        self._until_counted -= 1
        full = self._taken + size > CACHE_BYTES // _SUBFOLDERS or shutil.disk_usage(self._folder).free < SPARE_BYTES + size
        self._taken += 0 if full else size
        return not full


_rooms: dict[Path, _Room] = {}
