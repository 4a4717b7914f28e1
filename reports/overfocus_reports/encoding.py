"""How numbers and pictures travel inside the page: attention as 8-bit greyscale PNG, logarithmic; photographs as JPEG."""

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

FLOOR = -6.0
"""Log2 of the smallest value, in multiples of uniform attention, that is told apart from none."""


@dataclass(frozen=True)
class Codes:
    """Byte 0 is "less than the floor"; byte b is 2^(FLOOR + (b − 1) / per_octave) times uniform attention."""

    per_octave: int

    def encode(self, multiples: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
        """Multiples of uniform attention to bytes."""
        with np.errstate(divide="ignore"):
            octaves = np.log2(multiples.astype(np.float32))
        return np.clip(np.round((octaves - FLOOR) * self.per_octave) + 1, 0, 255).astype(np.uint8)

    def decode(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Bytes to multiples of uniform attention; 0 for byte 0."""
        values: npt.NDArray[np.float64] = np.exp2(FLOOR + (codes.astype(np.float64) - 1) / self.per_octave)
        return np.where(codes == 0, 0.0, values)


def png(codes: npt.NDArray[np.uint8]) -> str:
    """Bytes of any shape ending in (rows, columns) as a base64 greyscale PNG, leading axes stacked downwards."""
    return base64_of(Image.fromarray(codes.reshape(-1, codes.shape[-1])), "PNG", optimize=True)


def picture_uri(pixels: npt.NDArray[np.uint8], longest: int, quality: int) -> str:
    """A photograph (height, width, 3) as a data URI, at most `longest` pixels a side; PNG where it is tiny."""
    picture = Image.fromarray(pixels)
    if max(picture.size) <= 96:
        return "data:image/png;base64," + base64_of(picture, "PNG", optimize=True)
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return "data:image/jpeg;base64," + base64_of(picture, "JPEG", quality=quality, optimize=True)


def base64_of(picture: Image.Image, kind: str, **options: object) -> str:
    """An encoded picture as text."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def number(value: float, digits: int = 4) -> float | None:
    """A number as it travels in JSON: short, and null where undefined."""
    return None if not math.isfinite(value) else float(f"{value:.{digits}g}")


def numbers(values: npt.NDArray[np.floating[Any]]) -> object:
    """An array as nested lists of such numbers."""
    if values.ndim == 0:
        return number(float(values))
    return [numbers(part) for part in values]
