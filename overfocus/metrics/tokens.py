"""Which rows and columns of a map are patch tokens, and how their block is taken: prefix, padding and pooled keys told apart."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overfocus.attention import AttentionMap, row_tolerance
from overfocus.capturing.sources import SameTensor, on_device
from overfocus.errors import CaptureError
from overfocus.metrics.catalogue import TOP_FRACTION
from overfocus.metrics.sums import (
    NEGLIGIBLE,
    MapSums,
    Pairs,
    PairSums,
    Patches,
    map_sums,
    pair_sums,
    precise_dtype,
    sums_above_background,
)

KEPT_DISTANCES = 2**20
"""Distance matrices of up to this many entries (4 MB) are kept; larger ones are computed from coordinates each time."""

FEW_HEADS = 6
"""Up to so many heads, adding one after the other is faster on a processor than a sum over so short an axis."""

Distances = Callable[[int, int], Float[Tensor, "block columns"]]
"""`distances(start, stop)`: from the patches of those rows to those of all columns, in patches."""


@dataclass(frozen=True)
class TokenGroup:
    """Windows of an image that hold their patch tokens at the same places, and are measured together.

    Items are what one value each is computed for, numbered (image, window, head).
    """

    rows: int
    """Patch tokens among the queries."""
    columns: int
    """Patch tokens among the keys."""
    query_prefix: int
    """Tokens in front of the patches among the queries."""
    key_prefix: int
    """Tokens in front of the patches among the keys."""
    windows: int
    """Windows of an image in this group."""
    heads: int
    """Heads that are measured apart; 1 where their mean is measured."""
    summed_heads: int
    """Heads whose mean is measured; 1 where each is."""
    map_windows: int
    """Windows of the whole map."""
    distances: Distances | None
    """None where a grid is unknown."""
    members: Int[Tensor, "windows"] | None = None
    """Numbers of these windows; None for all windows of the map."""
    kept_queries: Int[Tensor, "rows"] | None = None
    """Places of the patch tokens behind the prefix of the queries; None where no place is padding."""
    kept_keys: Int[Tensor, "columns"] | None = None
    """Places of the patch tokens behind the prefix of the keys; None where no place is padding."""
    kept_places: tuple[int, ...] = ()
    """`kept_queries` on the host."""
    image_places: Int[Tensor, "windows columns"] | None = None
    """Place of each patch among the keys in the patch grid of the image; None where it is unknown, or there are no windows."""

    @property
    def items(self) -> int:
        """Items of one image."""
        return self.windows * self.heads


def token_groups(attention: AttentionMap, *, per_head: bool, device: torch.device) -> tuple[TokenGroup, ...]:
    """Find the patch tokens of a map; `per_head` measures each head apart.

    Every query of a "class" map counts as a row, as it has no patch queries. Padding tokens (−1 in the partition) are left out
    of rows and columns: windows with the same padding form a group, windows of padding alone are dropped. Worked out once for
    maps of one layout, so that later batches neither compute indices nor send them to the device.

    Raises:
        CaptureError: the map has no patch tokens.
    """
    queries, keys = attention.shape[-2:]
    query_prefix = 0 if attention.kind == "class" else attention.prefix_tokens
    self_attention = attention.kind in ("global", "window") and queries == keys
    key_prefix = query_prefix if self_attention else attention.key_prefix_tokens
    rows, columns = queries - query_prefix, keys - key_prefix
    if rows < 1 or columns < 1:
        raise CaptureError(
            f"{attention.module}: expected patch tokens, got {queries} queries and {keys} keys "
            f"of which {query_prefix} and {key_prefix} are prefix tokens"
        )
    heads = attention.shape[1]
    grid = attention.grid
    key_grid = attention.key_grid or (grid if rows == columns else None)
    if attention.kind == "class" or not grid or not key_grid or (math.prod(grid), math.prod(key_grid)) != (rows, columns):
        grid = key_grid = None
    whole = TokenGroup(
        rows,
        columns,
        query_prefix,
        key_prefix,
        windows=attention.windows,
        heads=heads if per_head else 1,
        summed_heads=1 if per_head else heads,
        map_windows=attention.windows,
        distances=partial(patch_distances, grid, key_grid, device=device) if grid and key_grid else None,
    )
    if attention.partition is None:
        return (whole,)
    padded = _padding_on(SameTensor(attention.partition), device)
    if not padded:
        return (replace(whole, image_places=on_device(attention.partition, device)),)
    return tuple(_padded_group(whole, padding, attention.partition.shape[1]) for padding in padded)


class _Padding(NamedTuple):
    """Windows of one pattern of padding."""

    members: Int[Tensor, "windows"]
    kept: Int[Tensor, "kept"]
    """Places behind the prefix that hold patches."""
    image_places: Int[Tensor, "windows kept"]


@lru_cache(maxsize=256)
def _padding_on(partition: SameTensor, device: torch.device) -> tuple[tuple[_Padding, tuple[int, ...]], ...]:
    """`_padding` with its indices on a device, and the places kept on the host."""
    with torch.inference_mode(False):
        return tuple(
            (_Padding(*(part.to(device) for part in padding)), tuple(padding.kept.tolist())) for padding in _padding(partition)
        )


@lru_cache(maxsize=256)
def _padding(partition: SameTensor) -> tuple[_Padding, ...]:
    """The patterns of padding; empty where nothing is padding. Windows of padding alone are left out."""
    with torch.inference_mode(False):
        places = partition.tensor.cpu()
        if bool((places >= 0).all()):
            return ()
        patterns, pattern_of_window = torch.unique(places >= 0, dim=0, return_inverse=True)
        found = []
        for number, pattern in enumerate(patterns):
            members, kept = (pattern_of_window == number).nonzero().flatten(), pattern.nonzero().flatten()
            if len(kept):
                found.append(_Padding(members, kept, places[members][:, kept]))
        return tuple(found)


def _padded_group(whole: TokenGroup, found: tuple[_Padding, tuple[int, ...]], tokens: int) -> TokenGroup:
    """The group without padding, on the side of queries and of keys that the partition of so many `tokens` speaks of."""
    padding, places = found
    kept_queries = padding.kept if tokens == whole.rows else None
    kept_keys = padding.kept if tokens == whole.columns else None
    between = whole.distances

    def distances(start: int, stop: int) -> Tensor:
        assert between is not None
        block = between(start, stop) if kept_queries is None else between(0, whole.rows)[kept_queries[start:stop]]
        return block if kept_keys is None else block[:, kept_keys]

    return replace(
        whole,
        rows=whole.rows if kept_queries is None else len(places),
        columns=whole.columns if kept_keys is None else len(places),
        windows=len(padding.members),
        distances=distances if between else None,
        members=padding.members,
        kept_queries=kept_queries,
        kept_keys=kept_keys,
        kept_places=places if kept_queries is not None else (),
        image_places=padding.image_places,
    )


def take_patches(
    group: TokenGroup, weights: Float[Tensor, "map_items heads block keys"], start: int, out: Tensor | None = None
) -> Patches:
    """The part of a group, from queries `start` and following of the map (or of some of its images); `out` takes the block."""
    rows = _patch_rows(group, weights, start)
    columns = rows[..., group.key_prefix :]
    prefix = rows[..., : group.key_prefix].sum((1, 3))
    if group.kept_keys is None:
        return Patches(_sum_heads(columns, out), prefix, None)
    block = _sum_heads(columns[..., group.kept_keys], out)
    return Patches(block, prefix, columns.sum((1, 3)) - block.sum(-1))


def _patch_rows(
    group: TokenGroup, weights: Float[Tensor, "map_items heads block keys"], start: int
) -> Float[Tensor, "items summed_heads rows keys"]:
    """The rows of patch queries; heads that are measured apart go to the items."""
    prefix = max(group.query_prefix - start, 0)
    rows = weights[:, :, prefix:]
    if group.members is not None:
        rows = rows.reshape(-1, group.map_windows, *rows.shape[1:])[:, group.members].flatten(0, 1)
    if group.kept_queries is not None:
        first = start + prefix - group.query_prefix
        inside = [number for number, place in enumerate(group.kept_places) if first <= place < first + rows.shape[2]]
        kept = group.kept_queries[inside[0] : inside[-1] + 1] if inside else group.kept_queries[:0]
        rows = rows[:, :, kept - first]
    return rows if group.summed_heads > 1 else rows.flatten(0, 1).unsqueeze(1)


def _sum_heads(weights: Float[Tensor, "items heads rows columns"], out: Tensor | None) -> Float[Tensor, "items rows columns"]:
    if weights.shape[1] > FEW_HEADS or (weights.device.type != "cpu" and weights.shape[1] > 1):
        return torch.sum(weights, 1, out=out)
    total, *others = weights.unbind(1)
    if not others:
        return torch.add(total, 0.0, out=out)
    total = torch.add(total, others[0], out=out)
    for head in others[1:]:
        total.add_(head)
    return total


def patch_distances(
    grid: tuple[int, int], key_grid: tuple[int, int], start: int, stop: int, device: torch.device
) -> Float[Tensor, "block keys"]:
    """Distance in query patches from each query patch `start` to `stop`, in row-major order, to each key patch.

    Small matrices are kept from call to call: do not write into the result.
    """
    if math.prod(grid) * math.prod(key_grid) <= KEPT_DISTANCES:
        return _kept_distances(grid, key_grid, device)[start:stop]
    row, column, key_row, key_column = _coordinates(grid, key_grid, device)
    return torch.hypot(row[start:stop] - key_row, column[start:stop] - key_column)  # torch.cdist would lose digits


@lru_cache(maxsize=32)
def _kept_distances(grid: tuple[int, int], key_grid: tuple[int, int], device: torch.device) -> Float[Tensor, "queries keys"]:
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used outside of it
        row, column, key_row, key_column = _coordinates(grid, key_grid, device)
        return torch.hypot(row - key_row, column - key_column)


@lru_cache(maxsize=32)
def _coordinates(grid: tuple[int, int], key_grid: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows and columns of the query patches (queries, 1), and of the centres of what each key covers (keys,)."""
    with torch.inference_mode(False):
        query = torch.arange(math.prod(grid), device=device).unsqueeze(1)
        key = torch.arange(math.prod(key_grid), device=device)
        key_row = (key // key_grid[1] + 0.5) * (grid[0] / key_grid[0]) - 0.5
        key_column = (key % key_grid[1] + 0.5) * (grid[1] / key_grid[1]) - 0.5
        return query // grid[1], query % grid[1], key_row, key_column


def sums_of_weights(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    key_grid: tuple[int, int] | None = None,
    top_fraction: float = TOP_FRACTION,
    per_head: bool = False,
    precise: bool = False,
) -> MapSums:
    """All sums of whole weights; items are images or, `per_head`, (image, head). Arguments as for the metrics.

    `precise` computes in double precision.

    Raises:
        ValueError: the shape is not (batch, heads, queries, keys), no patch token is left, or `grid` does not fit.
        CaptureError: NaN, negative weights, or rows that do not sum to 1.
    """
    return _sums_and_block(weights, prefix_tokens, key_prefix_tokens, grid, key_grid, top_fraction, per_head, precise)[0]


def sums_of_pairs(
    clean: Float[Tensor, "batch heads queries keys"],
    corrupted: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int,
    key_prefix_tokens: int | None,
    top_fraction: float,
    per_head: bool,
) -> PairSums:
    """The sums of clean and corrupted weights and of their comparison; raises as `sums_of_weights`."""
    weights = torch.cat([clean, corrupted])
    maps, block = _sums_and_block(weights, prefix_tokens, key_prefix_tokens, None, None, top_fraction, per_head, precise=True)
    first, second = torch.arange(len(maps.mass), device=weights.device).chunk(2)
    return pair_sums(block, maps, Pairs(first, second), block_bytes=block.nbytes)


def _sums_and_block(
    weights: Tensor,
    prefix_tokens: int,
    key_prefix_tokens: int | None,
    grid: tuple[int, int] | None,
    key_grid: tuple[int, int] | None,
    top_fraction: float,
    per_head: bool,
    precise: bool,
) -> tuple[MapSums, Tensor]:
    check_shape(weights)
    key_prefix = prefix_tokens if key_prefix_tokens is None else key_prefix_tokens
    heads, queries, keys = weights.shape[1:]
    if not (0 <= prefix_tokens < queries and 0 <= key_prefix < keys):
        raise ValueError(
            f"expected fewer prefix tokens than queries and keys, got {prefix_tokens} of {queries} queries "
            f"and {key_prefix} of {keys} keys"
        )
    precision = weights.dtype
    if precision != torch.float64:
        weights = weights.to(precise_dtype(weights.device) if precise else torch.float32)
    rows, columns = queries - prefix_tokens, keys - key_prefix
    if grid is not None and (math.prod(grid), math.prod(key_grid or grid)) != (rows, columns):
        raise ValueError(
            f"expected grid and key_grid that hold the {rows} query and {columns} key patches, "
            f"got {grid} and {key_grid or grid}; count the prefix tokens in prefix_tokens"
        )
    distance = patch_distances(grid, key_grid or grid, 0, rows, weights.device) if grid else None
    group = TokenGroup(
        rows, columns, prefix_tokens, key_prefix, windows=1, heads=heads if per_head else 1,
        summed_heads=1 if per_head else heads, map_windows=1, distances=None,
    )  # fmt: skip
    whole = weights if per_head else weights.mean(1)
    worst = (whole.sum(-1) - 1).abs().max()
    raise_faults(float(worst), negative=bool(whole.amin() < 0), precision=precision)
    patches = take_patches(group, weights, 0)
    sums = map_sums(patches, distance, precise=precise, summed_heads=group.summed_heads, top_fraction=top_fraction)
    sums.above_dot, sums.above_length = sums_above_background(
        patches.block, sums.column, rows=rows, summed_heads=group.summed_heads
    )
    return sums, patches.block


def check_shape(weights: Tensor) -> None:
    """Refuse what is not (batch, heads, queries, keys)."""
    if weights.ndim != 4:
        raise ValueError(
            f"expected weights of shape (batch, heads, queries, keys), got {tuple(weights.shape)}; "
            "add a heads axis with weights.unsqueeze(1) to a map that is already averaged"
        )


def faults(sums: MapSums, *, hidden_rows: bool) -> Float[Tensor, "*layers 2"]:
    """By how much a row misses the sum 1 at most (NaN where a weight is NaN), and 1 where a weight is negative, else 0.

    Stays on the device, so that nothing waits for it: `raise_faults` takes both once they are on the host. `hidden_rows` allows
    rows of zeros, of queries that a mask keeps from all keys.
    """
    totals = sums.row_totals
    if hidden_rows:
        totals = totals.masked_fill(totals.abs() <= NEGLIGIBLE, 1.0)
    worst = (totals - 1).abs().flatten(-2).amax(-1)
    negative = sums.log_sum.isnan().flatten(-2).any(-1)  # a row without NaN has one only from a negative logarithm
    return torch.stack([worst.float(), negative.float()], -1)


def raise_faults(worst: float, *, negative: bool, precision: torch.dtype, module: str = "weights") -> None:
    """Refuse what is no attention; weights that came in half precision may miss 1 by two rounding units.

    Raises:
        CaptureError: NaN, negative weights, or rows that do not sum to 1.
    """
    if math.isnan(worst):
        raise CaptureError(f"{module}: expected attention weights, got NaN; look for NaN in the checkpoint and in the input")
    allowed = row_tolerance(precision)
    if worst > allowed:
        raise CaptureError(
            f"{module}: expected attention rows that sum to 1 within {allowed:g}, got one that misses it by {worst:.3g}; "
            "pass weights after the softmax, without dropout"
        )
    if negative:
        raise CaptureError(f"{module}: expected attention weights ≥ 0, got a negative one; pass weights after the softmax")
