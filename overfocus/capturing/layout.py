"""What a map is: its kind, its grids, its windows, worked out from the positions of its queries and keys.

Without positions (a model called piecewise, a function that could not be followed) the sizes decide: tokens that are the
model's prefix tokens plus a grid of the image's proportions.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from overfocus.attention import Kind
from overfocus.capturing.positions import IMAGE, Positions, constant, representative
from overfocus.capturing.sources import Arrangement

MOST_PREFIX_TOKENS = 32
"""Prefix tokens that are looked for where a model does not say how many it has."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Everything about a map except its weights; the same for every call with inputs of the same size."""

    kind: Kind
    arrangement: Arrangement
    prefix_tokens: int = 0
    key_prefix_tokens: int = 0
    grid: tuple[int, int] | None = None
    key_grid: tuple[int, int] | None = None
    image_grid: tuple[int, int] | None = None
    partition: Tensor | None = None
    branch: str | None = None
    reason: str | None = None
    """Why the map cannot be used; None where it can."""


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Places of the tokens along one axis of a map, per window of the first image."""

    places: Tensor
    """(windows, tokens): row-major place in the image grid, −1 for prefix and −2 for padding, in the model's order."""
    grid: tuple[int, int] | None
    """The image grid that `places` points into."""

    @property
    def prefix(self) -> Tensor:
        return (self.places == -1).all(0)

    def order(self) -> Tensor | None:
        """Prefix tokens first, patches row by row; None where tokens already are in that order, or windows have no common one."""
        if len(self.places) == 1:
            kept = torch.nonzero(self.places[0] != -2).squeeze(1)
            order = kept[torch.argsort(self.places[0, kept], stable=True)]
            return None if torch.equal(order, torch.arange(self.places.shape[1])) else order
        whole = self.places[(self.places != -2).all(1)]
        if len(whole) == 0:
            return None
        order = torch.argsort(whole[0], stable=True)
        ascending = bool((whole[:, order].diff(dim=1)[:, int(self.prefix.sum()) :] > 0).all())
        in_order = bool((order == torch.arange(len(order))).all())
        return order if ascending and not in_order else None

    def ordered(self) -> Tensor:
        order = self.order()
        return self.places if order is None else self.places[:, order]


def channel_axis(values: Positions) -> bool:
    """Whether the keys of a map are channels: along them every value is at the same place, across them places differ."""
    return constant(values.ids, -2) and not constant(values.ids, -1)


def infer_layout(
    shape: tuple[int, ...], queries: Tensor | None, keys: Tensor, grids: tuple[tuple[int, int] | None, ...]
) -> Layout | None:
    """Layout of a map from the positions of its tokens.

    `shape` is (…, queries, keys); `queries` (…, queries) and `keys` (…, keys) are positions, broadcastable to the axes in
    front; `grids` are the grids that the two point into. None where the axes cannot be told apart.
    """
    leading = shape[:-2]
    keys = keys.expand(*leading, shape[-1]).cpu()
    arrangement = _arrange(keys)
    if arrangement is None:
        return None
    if arrangement.windows == 1 and not _padded_alike(arrangement, keys):
        return Layout(
            "global", arrangement, reason="images of different sizes share the batch: give images of one size per batch"
        )
    key_tokens = _tokens(arrangement, keys, grids[1])
    query_tokens = None
    if queries is not None:
        query_tokens = _tokens(arrangement, queries.expand(*leading, shape[-2]).cpu(), grids[0])
    windows = arrangement.windows
    if query_tokens is None or bool(query_tokens.prefix.all()):
        kind: Kind = "class"
        query_tokens = None
    elif windows > 1:
        kind = "window"
    elif query_tokens.grid == key_tokens.grid and torch.equal(query_tokens.ordered(), key_tokens.ordered()):
        kind = "global"
    else:
        kind = "pooled"
    key_order = key_tokens.order()
    key_prefix = int(key_tokens.prefix.sum())
    places = key_tokens.ordered()[:, key_prefix:]
    key_grid = _cell_grid(places, key_tokens.grid)
    grid = key_grid
    if query_tokens is not None:
        query_prefix = int(query_tokens.prefix.sum())
        grid = _cell_grid(query_tokens.ordered()[:, query_prefix:], query_tokens.grid)
    return Layout(
        kind=kind,
        arrangement=Arrangement(
            arrangement.axes, arrangement.sizes, None if query_tokens is None else query_tokens.order(), key_order
        ),
        prefix_tokens=shape[-2] if query_tokens is None else int(query_tokens.prefix.sum()),
        key_prefix_tokens=key_prefix,
        grid=grid,
        key_grid=key_grid,
        image_grid=key_tokens.grid,
        partition=places.clamp(min=-1) if windows > 1 else None,
        branch=_branch(places, key_tokens.grid) if windows > 1 else None,
    )


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
        return Layout("class", arrangement, queries, key_prefix, key_grid, key_grid, key_grid)
    if queries == keys:
        return Layout("global", arrangement, key_prefix, key_prefix, key_grid, key_grid, key_grid)
    query_prefix, grid = _guess_grid(queries, prefix, image_size)
    return Layout("pooled", arrangement, query_prefix, key_prefix, grid, key_grid, key_grid)


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


def _arrange(keys: Tensor) -> Arrangement | None:
    """Which axes in front of the keys hold images, windows and heads: where the image changes, where the place changes."""
    leading = keys.shape[:-1]
    image = torch.where(keys > 0, keys // IMAGE, -1).amax(-1)
    place = torch.where(keys > 0, keys % IMAGE, keys.clamp(max=0))
    images = int(image.max()) + 1
    if images < 1:
        return None
    axes: list[tuple[str, ...]] = []
    sizes: list[tuple[int, ...]] = []
    for axis, size in enumerate(leading):
        images_here = images if images > 1 and not _same(image, axis) else 1
        if size % images_here:
            return None
        line = _line(image, axis)
        steps, rest = torch.arange(size), size // images_here
        known = line >= 0
        image_outside = images_here == 1 or bool((line == steps // rest)[known].all())
        if not image_outside and not bool((line == steps % images_here)[known].all()):
            return None
        block = place.narrow(axis, 0, rest) if image_outside else place.index_select(axis, steps[::images_here])
        names, factors = _windows_and_heads(block, axis)
        if images_here > 1:
            names = ["image", *names] if image_outside else [*names, "image"]
            factors = [-1, *factors] if image_outside else [*factors, -1]
        axes.append(tuple(names))
        sizes.append(tuple(factors))
    if not any("image" in axis for axis in axes):
        return _with_single_image(axes, sizes)
    return Arrangement(tuple(axes), tuple(sizes))


def _windows_and_heads(place: Tensor, axis: int) -> tuple[list[str], list[int]]:
    """How an axis splits into windows, which look at different places, and heads, which look at the same."""
    size = place.shape[axis]
    if size == 1:
        return [], []
    if _same(place, axis):
        return ["head"], [size]
    rows = place.movedim(axis, 0).reshape(size, -1)
    first = (rows == rows[0]).all(1)
    heads = int(first.sum())
    if heads > 1 and size % heads == 0:
        if bool(first[:heads].all()):
            return ["window", "head"], [size // heads, heads]
        if bool(first[:: size // heads].all()):
            return ["head", "window"], [heads, size // heads]
    return ["window"], [size]


def _with_single_image(axes: list[tuple[str, ...]], sizes: list[tuple[int, ...]]) -> Arrangement:
    """With one image in the batch no axis shows which holds images: it is the first, as in every model that we know."""
    axes[0], sizes[0] = ("image", *axes[0]), (-1, *sizes[0])
    return Arrangement(tuple(axes), tuple(sizes))


def _same(ids: Tensor, axis: int) -> bool:
    return bool((ids == ids.narrow(axis, 0, 1)).all())


def _line(image: Tensor, axis: int) -> Tensor:
    """The image at each step of an axis, as seen at the start of the others; −1 where only padding is seen."""
    others = [other for other in range(image.ndim) if other != axis]
    return image.amax(others) if others else image


def _tokens(arrangement: Arrangement, ids: Tensor, grid: tuple[int, int] | None) -> _Tokens:
    folded = Arrangement(arrangement.axes, arrangement.sizes).fold(ids.unsqueeze(-2))[:, 0, 0]
    folded = folded[: arrangement.windows]
    places = torch.where(folded > 0, folded % IMAGE - 1, torch.where(folded == 0, -2, -1))
    return _Tokens(*_regular(places, grid))


def _padded_alike(arrangement: Arrangement, keys: Tensor) -> bool:
    padding = Arrangement(arrangement.axes, arrangement.sizes).fold(keys.unsqueeze(-2))[:, 0, 0] == 0
    return bool((padding == padding[:1]).all())


def _regular(places: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, tuple[int, int] | None]:
    """Number places anew where they are a regular part of the grid (every second row and column, say)."""
    real = places[places >= 0]
    if grid is None or real.numel() == 0:
        return places, grid
    rows, columns = torch.unique(real // grid[1]), torch.unique(real % grid[1])
    if len(rows) == grid[0] and len(columns) == grid[1]:
        return places, grid
    if len(rows) * len(columns) != torch.unique(real).numel():
        return places, None
    kept = places.clamp(min=0)
    index = torch.searchsorted(rows, kept // grid[1]) * len(columns) + torch.searchsorted(columns, kept % grid[1])
    return torch.where(places >= 0, index, places), (len(rows), len(columns))


def _cell_grid(places: Tensor, grid: tuple[int, int] | None) -> tuple[int, int] | None:
    """(rows, columns) of one window's tokens in their order, or None where they form no row-major grid."""
    tokens = places.shape[1]
    full = places[(places >= 0).all(1)]
    if grid is None or len(full) == 0:
        return None
    window = full[0]
    rows, columns = len(torch.unique(window // grid[1])), len(torch.unique(window % grid[1]))
    if rows * columns != tokens:
        return None
    order = (window // grid[1])[::columns]
    in_rows = bool((window.reshape(rows, columns) // grid[1] == order[:, None]).all())
    return (rows, columns) if in_rows else None


def _branch(places: Tensor, grid: tuple[int, int] | None) -> str | None:
    """How windows lie: "shifted" off the tiling that starts at the corner, "grid" where a window's tokens are strided."""
    real = places[places >= 0]
    if grid is None or not bool((places >= 0).any(1).all()) or len(real) != len(torch.unique(real)):
        return None
    spans, edges = [], []
    for window in places:
        real = window[window >= 0]
        rows, columns = torch.unique(real // grid[1]), torch.unique(real % grid[1])
        spans.append((len(rows), int(rows[-1] - rows[0]) + 1, len(columns), int(columns[-1] - columns[0]) + 1))
        edges.append((int(rows[0]), int(columns[0])))
    if all(rows < row_span or columns < column_span for rows, row_span, columns, column_span in spans):
        return "grid"
    height, width = max(span[0] for span in spans), max(span[2] for span in spans)
    whole = [edge for edge, span in zip(edges, spans, strict=True) if span == (height, height, width, width)]
    return "shifted" if any(row % height or column % width for row, column in whole) else None


def token_positions(tensor: Positions | None, axis: int) -> Tensor | None:
    """One position per token of queries, keys or values, (…, tokens): the channel axis taken out."""
    return None if tensor is None else representative(tensor.ids, axis).squeeze(axis)


def cells(grid: tuple[int, int] | None) -> int:
    """Patches of a grid; 0 where there is none."""
    return 0 if grid is None else math.prod(grid)
