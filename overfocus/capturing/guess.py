"""What a map is, from sizes alone: for models called piece by piece, or functions that could not be followed."""

from overfocus.capturing.layout import Layout
from overfocus.capturing.sources import Arrangement

MOST_PREFIX_TOKENS = 32
"""Prefix tokens that are looked for where a model does not say how many it has."""


def guess_layout(
    shape: tuple[int, ...], images: int, heads: int | None, prefix: int | None, image_size: tuple[int, int] | None
) -> Layout | None:
    """Layout of a map from sizes alone; None where its axes fit nothing known."""
    arrangement = _guess_axes(shape, images, heads)
    if arrangement is None or arrangement.windows > 1:
        return None
    queries, keys = shape[-2:]
    key_prefix, key_grid = _guess_grid(keys, prefix, image_size)
    if queries == 1 or queries <= key_prefix:
        return Layout("class", arrangement, shape[-2:], queries, key_prefix, key_grid, key_grid, key_grid)
    if queries == keys:
        return Layout("global", arrangement, shape[-2:], key_prefix, key_prefix, key_grid, key_grid, key_grid)
    query_prefix, grid = _guess_grid(queries, prefix, image_size)
    return Layout("pooled", arrangement, shape[-2:], query_prefix, key_prefix, grid, key_grid, key_grid)


def _guess_axes(shape: tuple[int, ...], images: int, heads: int | None) -> Arrangement | None:
    leading = shape[:-2]
    if len(leading) == 2 and leading[0] == images:
        return Arrangement((("image",), ("head",)), ((-1,), (leading[1],)))
    if len(leading) == 1 and leading[0] % images == 0 and (heads is None or leading[0] == images * heads):
        return Arrangement((("image", "head"),), ((-1, leading[0] // images),))
    return None


def _guess_grid(tokens: int, prefix: int | None, image_size: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None]:
    candidates = [prefix] if prefix is not None else []
    if image_size is None:
        return prefix or 0, None
    for count in [*candidates, *range(MOST_PREFIX_TOKENS + 1)]:
        for stride in range(1, max(image_size) + 1):
            for size in (
                (image_size[0] // stride, image_size[1] // stride),
                (-(-image_size[0] // stride), -(-image_size[1] // stride)),
            ):
                if size[0] * size[1] == tokens - count and min(size) > 1:
                    return count, size
    return prefix or 0, None
