"""From the weights of a map to the block of patch rows and columns that one group of its windows measures."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.metrics.token_groups import TokenGroup

FLOOR = 1e-18
"""Added to each weight: too little to be seen in a sum, enough that no logarithm is infinite and no square is denormal."""

FEW_HEADS = 6
"""Up to so many heads, adding one after the other is faster than a sum over so short an axis."""


class Patches(NamedTuple):
    """Rows of Ā_P times the number of heads that were summed, and what these rows give to tokens that are no patches."""

    block: Float[Tensor, "items rows columns"]
    """Each entry is raised by `FLOOR`."""
    prefix: Float[Tensor, "items rows"]
    padding: Float[Tensor, "items rows"]


def take_patches(group: TokenGroup, weights: Float[Tensor, "map_items heads block keys"], start: int) -> Patches:
    """The part of a group, from queries `start` and following of the map (or of some of its images)."""
    rows = _patch_rows(group, weights, start)
    columns = rows[..., group.key_prefix :]
    patches = columns if group.kept_keys is None else columns[..., group.kept_keys]
    block = _sum_heads(patches.float()).add_(FLOOR)
    prefix = rows[..., : group.key_prefix].sum((1, 3), dtype=block.dtype)
    padding = torch.zeros_like(prefix) if group.kept_keys is None else columns.sum((1, 3), dtype=block.dtype) - block.sum(-1)
    return Patches(block, prefix, padding)


def _patch_rows(
    group: TokenGroup, weights: Float[Tensor, "map_items heads block keys"], start: int
) -> Float[Tensor, "items summed_heads rows keys"]:
    """The rows of patch queries; heads that are measured apart go to the items."""
    prefix = max(group.query_prefix - start, 0)
    rows = weights[:, :, prefix:]
    if group.windows is not None:
        rows = rows.reshape(-1, group.map_windows, *rows.shape[1:])[:, group.windows].flatten(0, 1)
    if group.kept_queries is not None:
        places = group.kept_queries - (start + prefix - group.query_prefix)
        rows = rows[:, :, places[(places >= 0) & (places < rows.shape[2])]]
    return rows if group.summed_heads > 1 else rows.flatten(0, 1).unsqueeze(1)


def _sum_heads(weights: Float[Tensor, "items heads rows columns"]) -> Float[Tensor, "items rows columns"]:
    heads = weights.unbind(1)
    if len(heads) > FEW_HEADS:
        return weights.sum(1)
    total = heads[0] + heads[1] if len(heads) > 1 else heads[0].clone(memory_format=torch.contiguous_format)
    for head in heads[2:]:
        total += head
    return total
