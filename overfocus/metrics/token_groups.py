"""Which rows and columns of a captured map are patch tokens: prefix tokens, padding and pooled keys told apart."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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
    size: tuple[int, int, int]
    """(batch, windows, heads) of the items; heads is 1 where their mean is measured."""
    summed_heads: int
    """Heads whose mean is measured; 1 where each is."""
    map_windows: int
    """Windows of the whole map."""
    distances: Distances | None
    """None where a grid is unknown."""
    windows: Int[Tensor, "windows"] | None = None
    """Numbers of these windows; None for all windows of the map."""
    kept_queries: Int[Tensor, "rows"] | None = None
    """Places of the patch tokens behind the prefix of the queries; None where no place is padding."""
    kept_keys: Int[Tensor, "columns"] | None = None
    """Places of the patch tokens behind the prefix of the keys; None where no place is padding."""


def token_groups(attention: AttentionMap, *, per_head: bool, device: torch.device) -> tuple[TokenGroup, ...]:
    """Find the patch tokens of a map; `per_head` measures each head apart.

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
            f"{attention.module}: expected patch tokens, got {queries} queries and {keys} keys "
            f"of which {query_prefix} and {key_prefix} are prefix tokens"
        )
    whole = TokenGroup(
        rows,
        columns,
        query_prefix,
        key_prefix,
        size=(attention.batch, attention.windows, attention.shape[1] if per_head else 1),
        summed_heads=1 if per_head else attention.shape[1],
        map_windows=attention.windows,
        distances=_grid_distances(attention, rows, columns, device),
    )
    partition = attention.partition
    if partition is None or not bool((partition < 0).any()):
        return (whole,)
    patterns, pattern_of_window = torch.unique(partition >= 0, dim=0, return_inverse=True)
    return tuple(
        _padded_group(whole, (pattern_of_window == number).nonzero().flatten().to(device), pattern.to(device))
        for number, pattern in enumerate(patterns)
        if bool(pattern.any())
    )


def _padded_group(whole: TokenGroup, windows: Int[Tensor, "windows"], holds_patch: Int[Tensor, "tokens"]) -> TokenGroup:
    """The group without padding, on the side of queries and of keys that the partition speaks of."""
    kept = holds_patch.nonzero().flatten()
    kept_queries = kept if len(holds_patch) == whole.rows else None
    kept_keys = kept if len(holds_patch) == whole.columns else None
    between = whole.distances

    def distances(start: int, stop: int) -> Tensor:
        assert between is not None
        block = between(start, stop) if kept_queries is None else between(0, whole.rows)[kept_queries[start:stop]]
        return block if kept_keys is None else block[:, kept_keys]

    return replace(
        whole,
        rows=whole.rows if kept_queries is None else len(kept),
        columns=whole.columns if kept_keys is None else len(kept),
        size=(whole.size[0], len(windows), whole.size[2]),
        distances=distances if between else None,
        windows=windows,
        kept_queries=kept_queries,
        kept_keys=kept_keys,
    )


def _grid_distances(attention: AttentionMap, rows: int, columns: int, device: torch.device) -> Distances | None:
    grid = attention.grid
    key_grid = attention.key_grid or (grid if rows == columns else None)
    if attention.kind == "class" or grid is None or key_grid is None or (math.prod(grid), math.prod(key_grid)) != (rows, columns):
        return None
    return partial(patch_distances, grid, key_grid, device=device)
