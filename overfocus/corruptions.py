"""The 19 image corruptions of ImageNet-C, applied so that the result depends on nothing but what is asked for.

The pixels come from the `imagecorruptions` library. It draws from numpy's global generator, for impulse noise from a
generator of its own and for glass blur from the one inside numba; all three are seeded here for each call from (pixels, name,
severity, seed), and numpy's global state is put back afterwards. A picture therefore gets the same corruption in any order,
worker and batch, and two different pictures get different noise.

Corruption is applied to the uint8 RGB picture after it was resized and cropped to the model's input, as ImageNet-C was built.
A model with one input channel gets the luma of the corrupted RGB picture, in which noise is weaker: each colour has its own.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019;
Michaelis et al., "Benchmarking Robustness in Object Detection", 2019 (the library).
"""

import contextlib
import difflib
import hashlib
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType

import numpy as np
from jaxtyping import UInt8

from overfocus.errors import CorruptionError

GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
"""Names of corruptions by group; "common" are the 15 that ImageNet-C's mCE is computed over."""
GROUPS["common"] = GROUPS["noise"] + GROUPS["blur"] + GROUPS["weather"] + GROUPS["digital"]
GROUPS["all"] = GROUPS["common"] + GROUPS["extra"]

CORRUPTIONS: tuple[str, ...] = GROUPS["all"]
"""The 19 names, in ImageNet-C's order."""

SEVERITIES = (1, 2, 3, 4, 5)

_SMALLEST_SIDE = 32
"""Pixels; the library works from this size on."""
_GLASS_BLUR_KINDS = (1, 3)
"""Severities whose parameters have different number types: numba compiles glass blur once for each of the two."""

_generators = threading.Lock()
"""Held while the global generators are seeded for one call, so that threads do not draw from each other's."""


def corrupt(
    pixels: UInt8[np.ndarray, "height width 3"], name: str, severity: int = 3, seed: int = 0
) -> UInt8[np.ndarray, "height width 3"]:
    """Corrupt one RGB picture; the same (pixels, name, severity, seed) always give the same result.

    `severity` goes from 1 (weak) to 5 (strong). A side below 32 pixels is continued by mirroring to 32 for the call and cut
    back, so that noise and blur keep their size in pixels. `pixels` is not changed.

    Raises:
        CorruptionError: unknown name, severity outside 1–5, or pixels that are not uint8 of shape (height, width, 3).
    """
    if name not in CORRUPTIONS:
        raise CorruptionError(_unknown(name, CORRUPTIONS))
    check_severity(severity)
    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3):
        came = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise CorruptionError(
            f"corrupt expects RGB pixels as a uint8 array (height, width, 3), got {came}; try np.asarray(image)"
        )
    height, width, _ = pixels.shape
    if 0 in (height, width):
        raise CorruptionError(f"corrupt expects a picture of at least 1×1 pixels, got {width}×{height}")
    above, left = max(0, _SMALLEST_SIDE - height) // 2, max(0, _SMALLEST_SIDE - width) // 2
    below, right = max(0, _SMALLEST_SIDE - height - above), max(0, _SMALLEST_SIDE - width - left)
    padded = np.pad(pixels, ((above, below), (left, right), (0, 0)), mode="symmetric")
    words = _random_words(pixels, name, severity, seed)
    keywords = {"seed": words[0]} if name in ("impulse_noise", "glass_blur") else {}
    library = _library()
    with _generators, _numpy_seeded(words):
        result: np.ndarray = library.corrupt(padded, severity=int(severity), corruption_name=name, **keywords)
    return np.ascontiguousarray(result[above : above + height, left : left + width])


def resolve_corruptions(names: str | Iterable[str]) -> list[str]:
    """Names of corruptions for names and groups mixed, in the order given, each once.

    Raises:
        CorruptionError: a name that is neither; the message lists what there is and suggests the nearest.
    """
    resolved: dict[str, None] = {}
    for name in [names] if isinstance(names, str) else names:
        if name in GROUPS:
            resolved.update(dict.fromkeys(GROUPS[name]))
        elif name in CORRUPTIONS:
            resolved[name] = None
        else:
            raise CorruptionError(_unknown(name, (*CORRUPTIONS, *GROUPS)))
    return list(resolved)


def check_severity(severity: int) -> None:
    """Raise `CorruptionError` unless `severity` is a whole number from 1 to 5."""
    if isinstance(severity, bool) or not isinstance(severity, int | np.integer) or severity not in SEVERITIES:
        raise CorruptionError(f"severity must be a whole number from 1 (weak) to 5 (strong), got {severity!r}")


def prepare_corruptions(names: Iterable[str]) -> None:
    """Import the library, and compile glass blur if it is among `names`, before worker processes are started from this one."""
    library = _library()
    if "glass_blur" in names:
        for severity in _GLASS_BLUR_KINDS:
            library.corrupt(np.zeros((_SMALLEST_SIDE, _SMALLEST_SIDE, 3), np.uint8), severity, "glass_blur", seed=0)


@cache
def _library() -> ModuleType:
    """The `imagecorruptions` package; imported late because it takes a second, with glass blur's machine code kept on disk."""
    import imagecorruptions
    from imagecorruptions import corruptions

    # Compiling takes seconds in every new process. Where numba finds no writable folder, it just compiles again.
    with contextlib.suppress(RuntimeError):
        corruptions._shuffle_pixels_njit_glass_blur.enable_caching()
    package: ModuleType = imagecorruptions
    return package


def _random_words(pixels: UInt8[np.ndarray, "height width 3"], name: str, severity: int, seed: int) -> list[int]:
    """Four 32-bit numbers that depend on every argument and on nothing else."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    digest.update(f"{pixels.shape} {name} {int(severity)} {int(seed)}".encode())
    return [int.from_bytes(digest.digest()[start : start + 4], "little") for start in range(0, 16, 4)]


@contextlib.contextmanager
def _numpy_seeded(words: list[int]) -> Iterator[None]:
    """Seed numpy's global generator inside the block and put its state back after it."""
    state = np.random.get_state()  # noqa: NPY002  # the library draws from the global generator
    np.random.seed(words)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _unknown(name: str, known: Iterable[str]) -> str:
    """One line that lists the valid names and suggests the nearest."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name).lower().replace("-", "_").replace(" ", "_"), known, n=1, cutoff=0.5)
    suggestion = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"unknown corruption {name!r}; {suggestion}Valid names: {', '.join(known)}"
