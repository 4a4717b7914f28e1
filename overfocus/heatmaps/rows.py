"""Where one query token attends, laid over the picture's patch grid."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.attention import AttentionMap
from overfocus.errors import CaptureError

Query = tuple[int, int] | Literal["class"]
"""(row, column) of a patch, counted from 0, or the class token."""


def usual_query(attention: AttentionMap) -> Query:
    """The class token where the layer has one, else the patch in the middle."""
    if attention.kind == "class" or (attention.kind != "window" and attention.prefix_tokens):
        return "class"
    rows, columns = query_grid(attention)
    return rows // 2, columns // 2


def query_grid(attention: AttentionMap) -> tuple[int, int]:
    """(rows, columns) of the patches that queries are chosen from.

    Raises:
        CaptureError: they have no known grid.
    """
    grid = attention.image_grid if attention.kind == "window" else attention.grid
    if grid is None:
        raise CaptureError(f"{attention.module}: its patches have no known grid, so they cannot be laid over the picture")
    return grid


def attended(attention: AttentionMap, query: Query) -> Float[Tensor, "batch rows columns"]:
    """What `query` attends, mean over heads, in multiples of uniform attention on the key patches' grid; NaN out of its window.

    Raises:
        CaptureError: the layer has no such query, or no known grid.
    """
    if attention.kind == "window":
        return _in_window(attention, query)
    grid = query_grid(attention)
    keys = attention.key_grid or grid
    number = 0 if query == "class" else attention.prefix_tokens + patch_number(attention, query, grid)
    if query == "class" and not attention.prefix_tokens:
        raise CaptureError(f"{attention.module}: has no class token; choose a patch as row,column, e.g. {_middle(grid)}")
    if query != "class" and attention.kind == "class":
        raise CaptureError(f"{attention.module}: only the class token attends here; choose the query class")
    row = attention.rows(number, number + 1).mean(1)[:, 0]
    patches = row[:, row.shape[-1] - math.prod(keys) :]
    return patches.reshape(-1, *keys) * row.shape[-1]


def _in_window(attention: AttentionMap, query: Query) -> Tensor:
    grid, partition = query_grid(attention), attention.partition
    if partition is None:
        raise CaptureError(f"{attention.module}: where its windows lie is unknown, so they cannot be laid over the picture")
    if query == "class":
        raise CaptureError(f"{attention.module}: windows have no class token; choose a patch as row,column, e.g. {_middle(grid)}")
    held = (partition == patch_number(attention, query, grid)).nonzero()
    if not len(held):
        raise CaptureError(f"{attention.module}: the patch {query[0]},{query[1]} is in no window; choose another")
    window, token = (int(number) for number in held[0])
    number = attention.prefix_tokens + token
    rows = attention.rows(number, number + 1).mean(1)[window :: attention.windows, 0]
    patches = rows[:, rows.shape[-1] - partition.shape[1] :] * rows.shape[-1]
    places = partition[window].to(rows.device)
    laid = torch.full((len(rows), math.prod(grid)), torch.nan, device=rows.device)
    laid[:, places[places >= 0]] = patches[:, places >= 0]
    return laid.reshape(-1, *grid)


def patch_number(attention: AttentionMap, query: tuple[int, int], grid: tuple[int, int]) -> int:
    """Number of a patch in its grid, row by row.

    Raises:
        CaptureError: it lies outside.
    """
    (row, column), (rows, columns) = query, grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise CaptureError(
            f"{attention.module}: expected a query from 0,0 to {rows - 1},{columns - 1} (row,column), got {row},{column}"
        )
    return row * columns + column


def _middle(grid: tuple[int, int]) -> str:
    return f"{grid[0] // 2},{grid[1] // 2}"
