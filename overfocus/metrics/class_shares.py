"""How much of the attention lands on each class of a mask: on the object, say, against the background."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

Array = np.ndarray[Any, Any]


def class_areas(
    mask: UInt8[np.ndarray, "height width"], grid: tuple[int, int], ignored: int = 255
) -> tuple[Int[np.ndarray, " classes"], Float[np.ndarray, "classes rows columns"]]:
    """The classes in a mask, ascending, and the share of each token's area on the picture that each of them covers.

    A token of a (rows, columns) `grid` covers a rectangle of the picture; pixels on its edge count with the part inside. Over
    the classes the shares of a token add up to 1, or to less where `ignored` pixels lie in it.

    >>> class_areas(np.array([[0, 1], [1, 1]], np.uint8), (1, 1))[1].ravel()
    array([0.25, 0.75])
    """
    numbers = np.unique(mask)
    numbers = numbers[numbers != ignored].astype(np.int64)
    rows, columns = (_overlaps(*sides) for sides in zip(mask.shape, grid, strict=True))
    areas = [rows @ (mask == number).astype(np.float64) @ columns.T for number in numbers]
    return numbers, np.stack(areas) if areas else np.zeros((0, *grid))


def received_shares(
    received: Float[np.ndarray, "*pictures rows columns"], areas: Float[np.ndarray, "classes rows columns"]
) -> Float[np.ndarray, "*pictures classes"]:
    """Share of the received attention that lands on each class; a token's is spread evenly over its area.

    Between 0 and 1; NaN where the received attention is undefined. Attention that does not look at the content gives each
    class its share of the area, `areas.mean((1, 2))`; the object being looked at gives more.

    >>> areas = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> received_shares(np.array([[0.75, 0.25]]), areas)
    array([0.75, 0.25])
    """
    shares: Array = np.einsum("...rc,krc->...k", received.astype(np.float64), areas)
    return shares


def _overlaps(pixels: int, tokens: int) -> Float[np.ndarray, "tokens pixels"]:
    """Share of each token's side that each pixel covers."""
    edges = np.arange(tokens + 1) * pixels / tokens
    starts = np.arange(pixels)
    inside = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    overlaps: Array = np.clip(inside, 0, None) * tokens / pixels
    return overlaps
