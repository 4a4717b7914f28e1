"""Which rows and columns of a captured map are patch tokens: prefix tokens, padding and pooled keys told apart."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overfocus.attention import AttentionMap
from overfocus.errors import CaptureError
from overfocus.metrics.locality import patch_distances

Distances = Callable[[int, int], Float[Tensor, "block columns"]]
"""`distances(start, stop)`: from the patches of those rows to those of all columns, in patches."""


@dataclass(frozen=True)
class TokenGroup:
    """Windows of an image that hold their patch tokens at the same places, and are measured together."""

    rows: int
    """Patch tokens among the queries."""
    columns: int
    """Patch tokens among the keys."""
    distances: Distances | None
    """None where a grid is unknown."""
    windows: Int[Tensor, "windows"] | None = None
    """Numbers of these windows; None for all windows of the map."""
    kept_queries: Int[Tensor, "rows"] | None = None
    """Places of the patch tokens behind the prefix of the queries; None where no place is padding."""
    kept_keys: Int[Tensor, "columns"] | None = None
    """Places of the patch tokens behind the prefix of the keys; None where no place is padding."""


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of a map: prefix tokens in front, patch tokens in one or more groups of windows."""

    query_prefix: int
    key_prefix: int
    groups: tuple[TokenGroup, ...]


def token_layout(attention: AttentionMap, device: torch.device) -> TokenLayout:
    """Find the patch tokens of a map.

    Every query of a "class" map counts as a row, as it has no patch queries. Padding tokens (−1 in the partition) are left out
    of rows and columns: windows with the same padding form a group, windows of padding alone are dropped.

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
            f"expected patch tokens in {attention.module}, got {queries} queries and {keys} keys "
            f"of which {query_prefix} and {key_prefix} are prefix tokens"
        )
    whole = TokenGroup(rows, columns, _grid_distances(attention, rows, columns, device))
    return TokenLayout(query_prefix, key_prefix, _without_padding(whole, attention.partition, device))


def _grid_distances(attention: AttentionMap, rows: int, columns: int, device: torch.device) -> Distances | None:
    grid = attention.grid
    key_grid = attention.key_grid or (grid if rows == columns else None)
    if attention.kind == "class" or grid is None or key_grid is None or (math.prod(grid), math.prod(key_grid)) != (rows, columns):
        return None
    return partial(patch_distances, grid, key_grid, device=device)


def _without_padding(
    whole: TokenGroup, partition: Int[Tensor, "windows tokens"] | None, device: torch.device
) -> tuple[TokenGroup, ...]:
    if partition is None or not bool((partition < 0).any()):
        return (whole,)
    patterns, pattern_of_window = torch.unique(partition >= 0, dim=0, return_inverse=True)
    groups = []
    for number, pattern in enumerate(patterns):
        kept = pattern.nonzero().flatten().to(device)
        if len(kept):
            windows = (pattern_of_window == number).nonzero().flatten().to(device)
            groups.append(_padded_group(whole, windows, kept, tokens=len(pattern)))
    return tuple(groups)


def _padded_group(whole: TokenGroup, windows: Int[Tensor, "windows"], kept: Int[Tensor, "tokens"], *, tokens: int) -> TokenGroup:
    """The group without the places that are not kept, on the side of queries and of keys that the partition speaks of."""
    kept_queries = kept if tokens == whole.rows else None
    kept_keys = kept if tokens == whole.columns else None
    places = torch.arange(whole.rows, device=kept.device) if kept_queries is None else kept_queries

    def distances(start: int, stop: int) -> Tensor:
        assert whole.distances is not None
        between = whole.distances(0, whole.rows)[places[start:stop]]
        return between if kept_keys is None else between[:, kept_keys]

    return TokenGroup(
        rows=len(places),
        columns=whole.columns if kept_keys is None else len(kept_keys),
        distances=distances if whole.distances else None,
        windows=windows,
        kept_queries=kept_queries,
        kept_keys=kept_keys,
    )
