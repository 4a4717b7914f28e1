"""What a map is: its kind, its grids, its windows, worked out from the positions of its queries and keys."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from overfocus.attention import Kind
from overfocus.capturing.places import (
    FREQUENCY,
    IMAGE_BITS,
    MIXTURE,
    NOWHERE,
    SEVERAL,
    constant,
    grid_of,
    image_of,
    index_of,
    renumber,
    representative,
    without_image,
)
from overfocus.capturing.positions import Grid
from overfocus.capturing.sources import Arrangement

_PREFIX, _PADDING, _UNKNOWN = -1, -2, -3


class UnclearAxesError(Exception):
    """What the axes of a map hold is unclear; the message says why."""


class UnplacedTokensError(UnclearAxesError):
    """Nothing places the tokens of a map."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Everything about a map except its weights; the same for every call with inputs of the same size."""

    kind: Kind
    arrangement: Arrangement
    tokens: tuple[int, ...]
    """(queries, keys) of the model's own map."""
    prefix_tokens: int = 0
    key_prefix_tokens: int = 0
    grid: tuple[int, int] | None = None
    key_grid: tuple[int, int] | None = None
    image_grid: tuple[int, int] | None = None
    frames: int = 1
    partition: Tensor | None = None
    branch: str | None = None
    note: str | None = None
    """What the coverage table says of it: why it is unlabelled, or what is unknown."""


def unlabelled(shape: tuple[int, ...], reason: str) -> Layout:
    """A map of which nothing is known but its queries and keys."""
    return Layout("unlabelled", Arrangement((), (), flat=True), shape[-2:], note=reason)


def channel_layout(shape: tuple[int, ...]) -> Layout:
    """Layout of channels that attend channels."""
    heads = shape[1:-2]
    axes = (("image",), *(("head",) for _ in heads))
    return Layout("channel", Arrangement(axes, ((-1,), *((size,) for size in heads))), shape[-2:])


def unplaced(shape: tuple[int, ...], images: int, heads: int | None, prefix: int | None, *, crossed: bool = False) -> Layout:
    """Layout of a map whose tokens nothing places: no grid, and no prefix but the model's own number."""
    leading, (queries, keys) = shape[:-2], shape[-2:]
    if len(leading) == 2 and leading[0] in (1, images):
        arrangement = Arrangement((("image",), ("head",)), ((-1,), (leading[1],)))
    elif len(leading) == 1 and leading[0] == images:
        arrangement = Arrangement((("image",),), ((-1,),))
    elif len(leading) == 1 and heads is not None and leading[0] == images * heads:
        arrangement = Arrangement((("image", "head"),), ((-1, heads),))
    else:
        return unlabelled(shape, f"which of its axes {tuple(leading)} are images, windows or heads is unclear")
    key_prefix = prefix if prefix is not None and prefix < keys else 0
    if queries == 1 or queries <= key_prefix:
        return Layout("class", arrangement, shape[-2:], queries, key_prefix, note=NO_GRID)
    if queries == keys and not crossed:
        return Layout("global", arrangement, shape[-2:], key_prefix, key_prefix, note=NO_GRID)
    return Layout("pooled", arrangement, shape[-2:], 0, 0, note=NO_GRID)


NO_GRID = "no grid"
SUMS = "tokens are made of several places each"


def is_channel_map(values: Tensor) -> bool:
    """Whether the keys of a map are channels: along them every value is at the same place, across them places differ."""
    return constant(values, -2) and not constant(values, -1)


def token_positions(ids: Tensor) -> Tensor:
    """One position per token of queries, keys or values (…, tokens, width), (…, tokens)."""
    return representative(ids, -1).squeeze(-1)


def infer_layout(
    shape: tuple[int, ...],
    queries: Tensor | None,
    keys: Tensor,
    grids: Sequence[Grid],
    origins: Sequence[int],
    *,
    padding_attended: bool = False,
    prefix: int | None = None,
    images: int = 0,
    apart: Collection[int] = (),
) -> Layout:
    """Layout of a map from the positions of its tokens.

    `shape` is (…, queries, keys); `queries` (…, queries) and `keys` (…, keys) are positions, broadcastable to the axes in
    front, that point into `grids`; `origins` says of each image whose copy it is; `padding_attended` that no mask hides padding;
    `prefix` is the model's own number of prefix tokens, `images` how many the input has; `apart` are images that show something
    else than the one they are copies of (frames, mirrored copies).

    Raises:
        UnclearAxesError: the axes cannot be distinguished, or images of several sizes share them.
    """
    leading = shape[:-2]
    keys = keys.expand(*leading, shape[-1]).cpu()
    queries = None if queries is None else queries.expand(*leading, shape[-2]).cpu()
    if bool((keys == MIXTURE).any()) or (queries is not None and bool((queries == MIXTURE).any())):
        raise UnclearAxesError("its tokens are made of several images each")
    arrangement = _arrange_both(keys, queries, origins)
    windows = arrangement.windows
    if 1 < len(set(origins)) <= shape[0] and _row_images(keys)[1] == 1 and not _of_one_image(shape, queries):
        raise UnplacedTokensError  # the same for all images, like an embedding of positions
    if queries is not None:
        arrangement, queries = _query_heads(arrangement, queries, keys)
    _check_images(arrangement, queries, keys, origins, images, apart)
    if windows == 1 and not _padded_alike(arrangement, keys):
        raise UnclearAxesError("images of different sizes share the batch: give one size per batch")
    if windows == 1 and padding_attended and _added(arrangement, keys, grids):
        keys = keys.masked_fill(keys == 0, NOWHERE)
        queries = None if queries is None else queries.masked_fill(queries == 0, NOWHERE)
        padding_attended = False
    windowed = windows > 1 or padding_attended
    key_tokens = TokenPlaces.of(arrangement, keys, grids, keeps_padding=windowed)
    query_tokens = None
    if queries is not None:
        same = torch.equal(queries, keys)
        query_tokens = key_tokens if same else TokenPlaces.of(arrangement, queries, grids, keeps_padding=windowed)
    if windows > 1 and (key_tokens.frames_of_grid > 1 or not key_tokens.alike):
        raise UnclearAxesError(
            "windows of a video" if key_tokens.frames_of_grid > 1 else "windows differ between the images of the batch"
        )
    cut = windows == 1 and (key_tokens.cut or (query_tokens is not None and query_tokens.cut))
    if cut and not (query_tokens is not None and query_tokens.same_tokens(key_tokens) and key_tokens.frames_of_grid == 1):
        raise UnclearAxesError("only part of the queries or keys: the rest may be in other maps")
    if query_tokens is None or bool(query_tokens.prefix.all()):
        spread = queries is not None and bool((queries == FREQUENCY).any())
        kind: Kind = "pooled" if spread else "class"
        query_tokens = None
    elif windowed or (cut and query_tokens.same_tokens(key_tokens)):
        kind, windowed = "window", True
    elif query_tokens.same_tokens(key_tokens):
        kind = "global"
    else:
        kind = "pooled"
    key_prefix, places = key_tokens.split(prefix)
    key_frames, key_grid = key_tokens.cells(places)
    frames, grid = (1, None) if kind == "pooled" else (key_frames, key_grid)
    query_prefix = 0 if kind == "pooled" else shape[-2] // arrangement.query_heads
    if query_tokens is not None:
        query_prefix, query_places = query_tokens.split(prefix)
        frames, grid = query_tokens.cells(query_places)
    note = key_tokens.note or (None if query_tokens is None else query_tokens.note)
    return Layout(
        kind=kind,
        arrangement=replace(
            arrangement, query_order=None if query_tokens is None else query_tokens.order, key_order=key_tokens.order
        ),
        tokens=shape[-2:],
        prefix_tokens=query_prefix,
        key_prefix_tokens=key_prefix,
        grid=grid,
        key_grid=key_grid,
        image_grid=key_tokens.image_grid if key_frames == 1 and (windowed or grid is not None or key_grid is not None) else None,
        frames=frames,
        partition=places.clamp(min=-1) if windowed and not note else None,
        branch=_branch_of(places, key_tokens.image_grid) if windows > 1 and not note else None,
        note=note or (NO_GRID if grid is None and not windowed else None),
    )


def _added(arrangement: Arrangement, keys: Tensor, grids: Sequence[Grid]) -> bool:
    """Whether padding that is attended is no row or column of the grid, but tokens that a sequence was padded with at an end."""
    row = replace(arrangement, query_order=None, key_order=None).fold(keys.unsqueeze(-2))[0, 0, 0]
    real = torch.nonzero(row != 0).squeeze(1)
    numbers = torch.unique(grid_of(row[row > 0])).tolist()
    size = grids[numbers[0]].size if len(numbers) == 1 else None
    together = len(real) > 0 and len(real) == int(real[-1] - real[0]) + 1
    return together and size is not None and bool((len(row) - len(real)) % size[-1])


def _check_images(
    arrangement: Arrangement,
    queries: Tensor | None,
    keys: Tensor,
    origins: Sequence[int],
    images: int,
    apart: Collection[int],
) -> None:
    """Raise `UnclearAxesError` where queries look at another image than their own, or the order of the images is another."""
    owner = _owners(arrangement, keys)
    others = None if queries is None or torch.equal(queries, keys) else _owners(arrangement, queries)
    if others is not None:
        origin = torch.tensor(origins)
        both = (owner >= 0) & (others >= 0)
        other_views = torch.tensor(sorted(apart), dtype=torch.int64)
        differ = origin[owner.clamp(min=0)] != origin[others.clamp(min=0)]
        differ |= (owner != others) & (torch.isin(owner, other_views) | torch.isin(others, other_views))
        if bool(differ[both].any()):
            raise UnclearAxesError("its queries and keys belong to different images")
    own = owner[(owner >= 0) & (owner < images)]
    if bool((own.diff() < 0).any()):
        raise UnclearAxesError("its images are not in the order of the input")


def _owners(arrangement: Arrangement, ids: Tensor) -> Tensor:
    """The image of each row of windows, −1 where no token has a place."""
    rows = replace(arrangement, query_order=None, key_order=None).fold(ids.unsqueeze(-2))[:, 0, 0]
    return torch.where(rows > 0, image_of(rows.clamp(min=0)), -1).amax(-1)


def _of_one_image(shape: tuple[int, ...], queries: Tensor | None) -> bool:
    """Whether a map (heads, queries, keys) is of one image of the batch, as its queries are."""
    return len(shape) == 3 and queries is not None and bool((queries > 0).any()) and _row_images(queries)[1] == 1


def _query_heads(arrangement: Arrangement, queries: Tensor, keys: Tensor) -> tuple[Arrangement, Tensor]:
    """The arrangement and the places of the queries of one head, where their axis holds every query once for each head."""
    rows = queries.reshape(-1, queries.shape[-1])
    row = next((row for row in rows if bool((row > 0).any())), None)
    if row is None:
        return arrangement, queries
    heads = int((row == row[row > 0][0]).sum())
    own = keys.reshape(-1, keys.shape[-1])[0]
    if heads == 1 or len(row) % heads or len(torch.unique(own[own > 0])) < int((own > 0).sum()):
        return arrangement, queries
    for inside in (False, True):
        apart = torch.unflatten(queries, -1, (-1, heads) if inside else (heads, -1))
        one = apart[..., 0] if inside else apart[..., 0, :]
        if bool((apart == one.unsqueeze(-1 if inside else -2)).all()):
            return replace(arrangement, query_heads=heads, heads_inside=inside), one
    return arrangement, queries


def _arrange_both(keys: Tensor, queries: Tensor | None, origins: Sequence[int]) -> Arrangement:
    """The arrangement that both the keys and the queries of a map have."""
    known = queries is not None and bool((queries > 0).any())
    if not known or queries is None or torch.equal(queries, keys):
        return _checked(_arrange(keys), keys)
    try:
        return _checked(_checked(_arrange(keys), keys), queries)
    except UnclearAxesError:
        if len(set(origins)) == len(origins):
            raise
    # keys or queries repeated over the batch axis for the heads are no more images than the other side has
    keys, queries = (_of_origins(ids, origins) for ids in (keys, queries))
    try:
        return _checked(_checked(_arrange(keys), keys), queries)
    except UnclearAxesError:
        return _checked(_checked(_arrange(queries), queries), keys)


def _of_origins(ids: Tensor, origins: Sequence[int]) -> Tensor:
    numbers = torch.tensor(origins)[image_of(ids.clamp(min=0))]
    return torch.where(ids > 0, without_image(ids) + (numbers << IMAGE_BITS), ids)


def _row_images(ids: Tensor) -> tuple[Tensor, int]:
    """The image of each row of tokens, counted as they come (−1 where a row has no place), and how many there are."""
    image = image_of(ids.clamp(min=0))
    highest = torch.where(ids > 0, image, -1).amax(-1)
    lowest = torch.where(ids > 0, image, torch.iinfo(torch.int64).max).amin(-1)
    if bool(((highest != lowest) & (highest >= 0)).any()):
        raise UnclearAxesError("several images are packed into one sequence: give each its own")
    numbers = list(dict.fromkeys(number for number in highest.flatten().tolist() if number >= 0))
    if not numbers:
        raise UnplacedTokensError
    counted = torch.zeros(max(numbers) + 1, dtype=torch.int64)
    counted[numbers] = torch.arange(len(numbers))
    return torch.where(highest >= 0, counted[highest.clamp(min=0)], -1), len(numbers)


def _arrange(ids: Tensor) -> Arrangement:
    """Which axes in front of the tokens hold images, windows and heads: where the image changes, where the place changes."""
    image, images = _row_images(ids)
    place = without_image(ids)
    axes: list[tuple[str, ...]] = []
    sizes: list[tuple[int, ...]] = []
    for axis, size in enumerate(ids.shape[:-1]):
        images_here = images if images > 1 and not _same(image, axis) else 1
        if size % images_here:
            raise UnclearAxesError(f"an axis of {size} holds {images_here} images")
        line = _line(image, axis)
        steps, rest = torch.arange(size), size // images_here
        known = line >= 0
        image_outside = images_here == 1 or bool((line == steps // rest)[known].all())
        if not image_outside and not bool((line == steps % images_here)[known].all()):
            raise UnclearAxesError("the images of the batch are in no recognisable order")
        block = place.narrow(axis, 0, rest) if image_outside else place.index_select(axis, steps[::images_here])
        names, factors = _windows_and_heads(block, axis)
        if images_here > 1:
            names = ["image", *names] if image_outside else [*names, "image"]
            factors = [-1, *factors] if image_outside else [*factors, -1]
        axes.append(tuple(names))
        sizes.append(tuple(factors))
    if not any("image" in axis for axis in axes):
        if not axes:
            raise UnclearAxesError("a map of two axes")
        # one image in the batch: no axis shows which holds images; it is the first, as in every model that we know
        axes[0], sizes[0] = ("image", *axes[0]), (-1, *sizes[0])
    return Arrangement(tuple(axes), tuple(sizes))


def _checked(arrangement: Arrangement, ids: Tensor) -> Arrangement:
    """The arrangement, if these tokens fit it: one image a row, in order, and the same places in every head."""
    if not bool((ids > 0).any()):
        return arrangement
    try:
        rows = arrangement.fold(ids.unsqueeze(-2))[:, :, 0]
    except RuntimeError:
        raise UnclearAxesError("images, windows and heads share its axes in no recognisable order") from None
    image, images = _row_images(rows)
    numbers = torch.arange(len(rows)) // arrangement.windows
    known = image >= 0
    whole = len(rows) // arrangement.windows
    if bool((rows != rows[:, :1]).any()) or images > whole or (images < whole and bool(known.all())):
        raise UnclearAxesError("images, windows and heads share its axes in no recognisable order")
    if images > 1 and bool((image != numbers[:, None])[known].any()):
        raise UnclearAxesError("its queries and keys belong to different images")
    return arrangement


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


def _same(ids: Tensor, axis: int) -> bool:
    return bool((ids == ids.narrow(axis, 0, 1)).all())


def _line(image: Tensor, axis: int) -> Tensor:
    """The image at each step of an axis, as seen at the start of the others; −1 where only padding is seen."""
    others = [other for other in range(image.ndim) if other != axis]
    return image.amax(others) if others else image


def _padded_alike(arrangement: Arrangement, keys: Tensor) -> bool:
    """Whether the same tokens are padding in every image."""
    padding = Arrangement(arrangement.axes, arrangement.sizes).fold(keys.unsqueeze(-2))[:, 0, 0] == 0
    return bool((padding == padding[:1]).all())


@dataclass(frozen=True, eq=False)
class TokenPlaces:
    """Places of the tokens along one axis of a map, per window of an image."""

    places: Tensor
    """(windows, tokens): index in the grid, −1 for prefix, −2 for padding and −3 where it is unknown, in the model's order."""
    size: tuple[int, ...] | None
    """Size of the grid that `places` points into; None if there is none, or several."""
    root: int
    """The input that the grid belongs to."""
    keeps_padding: bool
    """Whether padding is attended, so that it has to stay."""
    alike: bool
    """Whether every image of the batch has its tokens in this order."""
    note: str | None
    cut: bool = False
    """Whether they are neighbouring places of the grid, not all of it."""

    @classmethod
    def of(cls, arrangement: Arrangement, ids: Tensor, grids: Sequence[Grid], *, keeps_padding: bool) -> "TokenPlaces":
        """Places of tokens from their positions (…, tokens)."""
        rows = without_image(Arrangement(arrangement.axes, arrangement.sizes).fold(ids.unsqueeze(-2))[:, 0, 0])
        images = rows.reshape(-1, arrangement.windows, rows.shape[-1])
        alike = bool((images == images[:1]).all())
        first = images[0]
        numbers = torch.unique(grid_of(first[first > 0])).tolist()
        placed = [number for number in numbers if grids[number].size is not None]
        note, size, root = None, None, -1
        if len(numbers) == 1:
            size, root = grids[numbers[0]].size, grids[numbers[0]].root
        elif len(numbers) > 1 and placed:
            note = "no grid: tokens of several grids in one sequence"
        if not alike:
            note = "no grid: the order of tokens differs between the images of the batch"
            size = None
        codes = torch.where(first == 0, _PADDING, torch.where((first == NOWHERE) | (first == FREQUENCY), _PREFIX, _UNKNOWN))
        places = torch.where(first > 0, index_of(first.clamp(min=1)), codes)
        if arrangement.windows == 1 and not alike:
            common = (images == images[:1]).all(0)
            places = torch.where(common & (places == _PREFIX), _PREFIX, _UNKNOWN)
        if arrangement.windows == 1 and _scattered(places[0] == _PREFIX, places[0] == _PADDING):
            note = "no grid: tokens without a position are mixed with the patches"
            places = torch.where(places == _PREFIX, _UNKNOWN, places)
        if bool((places == _UNKNOWN).any()):
            sums = bool((first == SEVERAL).any())
            note = note or f"no grid: {SUMS if sums else 'some tokens have unknown positions (mask tokens, for example)'}"
            size = None
        cut = False
        if size is not None:
            places, size, cut = _regular(places, size)
        return cls(places, size, root, keeps_padding, alike, note, cut)

    @cached_property
    def prefix(self) -> Tensor:
        """Which tokens are prefix in every window."""
        return (self.places == _PREFIX).all(0)

    @property
    def frames_of_grid(self) -> int:
        """Frames of the whole grid."""
        return self.size[0] if self.size is not None and len(self.size) == 3 else 1

    @property
    def image_grid(self) -> tuple[int, int] | None:
        """(rows, columns) of the whole grid."""
        return None if self.size is None else (self.size[-2], self.size[-1])

    @cached_property
    def order(self) -> Tensor | None:
        """Prefix tokens first, patches row by row; None where tokens already are in that order, or windows have no common one."""
        if self.size is None:
            places = self.places[0]
            kept = torch.nonzero((places != _PADDING) | self.keeps_padding).squeeze(1)
            order = torch.cat([kept[places[kept] == _PREFIX], kept[places[kept] != _PREFIX]])
            whole = len(self.places) > 1 or torch.equal(order, torch.arange(len(places)))
            return None if whole else order
        if not self.keeps_padding:
            kept = torch.nonzero(self.places[0] != _PADDING).squeeze(1)
            order = kept[torch.argsort(self.places[0, kept], stable=True)]
            return None if torch.equal(order, torch.arange(self.places.shape[1])) else order
        complete = self.places[(self.places != _PADDING).all(1)]
        if len(complete) == 0:
            return None
        order = torch.argsort(complete[0], stable=True)
        ascending = bool((complete[:, order].diff(dim=1)[:, int(self.prefix.sum()) :] > 0).all())
        in_order = bool((order == torch.arange(len(order))).all())
        return order if ascending and not in_order else None

    @cached_property
    def ordered(self) -> Tensor:
        """The places in that order."""
        order = self.order
        return self.places if order is None else self.places[:, order]

    def split(self, own: int | None) -> tuple[int, Tensor]:
        """(prefix tokens, the places behind them in order); `own` is the model's number, taken where nothing is placed."""
        prefix = int(self.prefix.sum())
        if not prefix and self.size is None and own is not None and own < self.places.shape[1]:
            prefix = own
        return prefix, self.ordered[:, prefix:]

    def cells(self, places: Tensor) -> tuple[int, tuple[int, int] | None]:
        """(frames, (rows, columns)) of one window's tokens in their order; no grid where they form none row by row."""
        if self.size is None:
            return 1, None
        if len(self.size) == 3 and self.size[0] > 1:
            frames, rows, columns = self.size
            whole = torch.equal(places[0], torch.arange(frames * rows * columns))
            return (frames, (rows, columns)) if whole else (1, None)
        return 1, _cell_grid(places, (self.size[-2], self.size[-1]))

    def same_tokens(self, other: "TokenPlaces") -> bool:
        """Whether queries and keys are the same tokens."""
        if self is other:
            return True
        if self.size is None or other.size is None:
            return self.size == other.size and self.root == other.root and torch.equal(self.places, other.places)
        return self.size == other.size and self.root == other.root and torch.equal(self.ordered, other.ordered)


def _scattered(prefix: Tensor, padding: Tensor) -> bool:
    """Whether tokens without a place stand between others, not in front of them or behind."""
    others = torch.nonzero(~prefix & ~padding).squeeze(1)
    return len(others) > 0 and bool(prefix[int(others[0]) : int(others[-1])].any())


def _regular(places: Tensor, size: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...] | None, bool]:
    """Places numbered anew where they are a regular part of the grid (every second row and column, say); whether they are a cut.

    A cut, of neighbouring places, keeps them in the whole.
    """
    real = places >= 0
    if not bool(real.any()):
        return places, size, False
    renumbered = renumber(places, real, size)
    if renumbered is None:
        found = torch.unique(places[real])
        together = int(found[-1] - found[0]) + 1 == len(found)
        return places, size if together else None, together
    index, lines = renumbered
    sides = list(zip(lines, size, strict=True))
    if all(len(line) == 1 < side == 2 and not int(line[0]) for line, side in sides):
        return places, None, False  # the first of two rows and columns: every second one, or a part
    strided = any(len(line) < side and _spans(line, side) for line, side in sides)
    # one of two rows is every second one where columns are left out as well; else it may be a part
    if any(not _spans(line, side) and not (strided and side == 2 and int(line[-1]) == 0) for line, side in sides):
        return places, size, True
    return torch.where(real, index, places), tuple(len(line) for line in lines), False


def _spans(line: Tensor, side: int) -> bool:
    """Whether some of the rows (or columns) of a grid are from all over it."""
    if len(line) == side:
        return True
    if len(line) == 1:
        return False
    gap = int(line.diff().max())
    return int(line[0]) < gap and side - 1 - int(line[-1]) < gap


def _cell_grid(places: Tensor, grid: tuple[int, int]) -> tuple[int, int] | None:
    """(rows, columns) of one window's tokens in their order, or None where they form no row-major grid."""
    window = places[(places >= 0).sum(1).argmax()]
    index = torch.nonzero(window >= 0).squeeze(1)
    if len(index) == 0:
        return None
    row = torch.unique(window[index] // grid[1], return_inverse=True)[1]
    column = torch.unique(window[index] % grid[1], return_inverse=True)[1]
    tokens, columns = len(window), int(column.max()) + 1
    if len(index) < tokens:  # padding lengthens the rows: the second one shows by how much
        columns = int((index[row == 1] - index[0])[0]) if bool((row == 1).any()) else 0
    if columns < 1 or tokens % columns or not torch.equal(index - index[0], row * columns + column):
        return None
    return tokens // columns, columns


def _branch_of(places: Tensor, grid: tuple[int, int] | None) -> str | None:
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
