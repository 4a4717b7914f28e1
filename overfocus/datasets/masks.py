"""Read one mask: a class number for each pixel."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from overfocus.errors import ImageError
from overfocus.images.reading import MAX_PIXELS

IGNORED = 255
"""In a mask: a pixel that neither trains nor counts."""
_NUMBERS = ("1", "L", "P", "I", "I;16", "I;16B")
"""Pillow's modes that hold one number a pixel; "P" gives the index into the palette, whatever colours that has."""
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF entry, and its values that swap width and height."""


def read_mask(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width"]:
    """The numbers in a mask: grey values, or the indices of a palette picture.

    `size` is (width, height) of the picture that it belongs to.

    Raises:
        ImageError: it is missing or damaged, has another size, holds colours instead of numbers, numbers above 255, or was
            compressed with loss.
    """
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ImageError(f"{path}: {opened.width}×{opened.height} pixels exceed the limit of {MAX_PIXELS:,}")
            if size is not None and opened.size != size:
                expected, got = (f"{width}×{height}" for width, height in (size, opened.size))
                raise ImageError(f"{path}: expected a mask of its picture's {expected} pixels, got {got}; resize one of them")
            if opened.mode not in _NUMBERS:
                raise ImageError(
                    f"{path}: expected a class number for each pixel (a grey or palette PNG), got colours ({opened.mode}); "
                    "replace each colour by its class's number"
                )
            if opened.format in ("JPEG", "MPO"):
                raise ImageError(f"{path}: JPEG changes class numbers; expected the mask as PNG or another lossless format")
            numbers = np.asarray(opened)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such mask; check the path") from None
    except Exception as error:  # Pillow's readers raise a dozen classes on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: expected a mask, reading it failed ({reason}); replace it") from error
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) > IGNORED:
        raise ImageError(f"{path}: expected numbers from 0 to {IGNORED}, got {numbers.min()} … {numbers.max()}")
    return np.array(numbers, np.uint8)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as `read_image` gives it, upright, from its header alone.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            turned = opened.getexif().get(_ORIENTATION) in _TURNED
    except Exception as error:
        raise ImageError(
            f"{path}: expected a picture, reading it failed ({type(error).__name__}); replace or remove it"
        ) from error
    return (height, width) if turned else (width, height)
