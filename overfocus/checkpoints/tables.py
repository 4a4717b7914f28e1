"""Position tables: what their number of rows says about the patch grid."""

import math
from collections.abc import Mapping

from overfocus.checkpoints.fingerprint import Shape


def square_side(number: int) -> int | None:
    """The side of a square of that many tokens, None where it is no square."""
    root = math.isqrt(max(number, 0))
    return root if root > 0 and root * root == number else None


def fits_table(shapes: Mapping[str, Shape], prefix: int) -> bool:
    """Whether the absolute position table without its prefix tokens covers a square patch grid."""
    shape = shapes.get("pos_embed")
    return shape is not None and len(shape) == 3 and square_side(shape[1] - prefix) is not None
