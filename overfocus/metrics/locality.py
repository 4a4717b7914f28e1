"""Locality: how far tokens look."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.metrics.patch_attention import NEGLIGIBLE, patch_attention

KEPT_ENTRIES = 2**20
"""Distance matrices of up to this many entries (4 MB) are kept."""


def attention_distance(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    grid: tuple[int, int] | None = None,
    key_grid: tuple[int, int] | None = None,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Mean distance between a patch and what it attends: mean_i Σ_j p_ij · d(i,j), p_i the renormalised row, in patches.

    Range 0 … diagonal of the grid; high means that tokens look far away. `grid` is (rows, columns) of the query patches,
    `key_grid` that of the keys where they are pooled: a key then stands at the centre of the patches that it covers. Rows
    without attention on patches are left out of the mean. Source: Dosovitskiy et al. 2021, ViT, appendix D.7.

    >>> attention_distance(torch.eye(4)[None, None, [1, 0, 3, 2]], grid=(2, 2))
    tensor([1.])
    """
    if grid is None:
        raise ValueError(
            "expected grid=(rows, columns) of the patches, got None; a 224-pixel image in patches of 16 has grid=(14, 14)"
        )
    attention = patch_attention(weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head)
    key_grid = key_grid or grid
    rows, columns = attention.shape[-2:]
    if (rows, columns) != (math.prod(grid), math.prod(key_grid)):
        raise ValueError(
            f"expected grid and key_grid that hold the {rows} query and {columns} key patches, got {grid} and {key_grid}; "
            "count the prefix tokens in prefix_tokens"
        )
    mass = attention.sum(-1)
    distance = (attention * patch_distances(grid, key_grid, 0, rows, attention.device)).sum(-1) / mass
    counted = mass > NEGLIGIBLE
    return distance.masked_fill(~counted, 0).sum(-1) / counted.sum(-1)


def patch_distances(
    grid: tuple[int, int], key_grid: tuple[int, int], start: int, stop: int, device: torch.device
) -> Float[Tensor, "block keys"]:
    """Distance in query patches from each query patch `start` to `stop`, in row-major order, to each key patch.

    Small matrices are kept from call to call: do not write into the result.
    """
    if math.prod(grid) * math.prod(key_grid) <= KEPT_ENTRIES:
        return _kept_distances(grid, key_grid, device)[start:stop]
    return _distances(grid, key_grid, start, stop, device)


@lru_cache(maxsize=16)
def _kept_distances(grid: tuple[int, int], key_grid: tuple[int, int], device: torch.device) -> Float[Tensor, "queries keys"]:
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used outside of it
        return _distances(grid, key_grid, 0, math.prod(grid), device)


def _distances(
    grid: tuple[int, int], key_grid: tuple[int, int], start: int, stop: int, device: torch.device
) -> Float[Tensor, "block keys"]:
    query = torch.arange(start, stop, device=device)
    key = torch.arange(math.prod(key_grid), device=device)
    # the centre of a key that covers several query patches
    key_row = (key // key_grid[1] + 0.5) * (grid[0] / key_grid[0]) - 0.5
    key_column = (key % key_grid[1] + 0.5) * (grid[1] / key_grid[1]) - 0.5
    return torch.hypot(
        (query // grid[1]).unsqueeze(1) - key_row,  # torch.cdist would lose digits
        (query % grid[1]).unsqueeze(1) - key_column,
    )
