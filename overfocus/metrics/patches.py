"""From the weights of a map to the block of patch rows and columns that one group of its windows measures."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.metrics.token_groups import TokenGroup

FEW_HEADS = 6
"""Up to so many heads, adding one after the other is faster than a sum over so short an axis."""


class Patches(NamedTuple):
    """Rows of Ā_P times the number of heads that were summed, and what these rows give to tokens that are no patches."""

    block: Float[Tensor, "items rows columns"]
    prefix: Float[Tensor, "items rows"]
    padding: Float[Tensor, "items rows"] | None
    """None where there is no padding."""


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
    if group.windows is not None:
        rows = rows.reshape(-1, group.map_windows, *rows.shape[1:])[:, group.windows].flatten(0, 1)
    if group.kept_queries is not None:
        places = group.kept_queries - (start + prefix - group.query_prefix)
        rows = rows[:, :, places[(places >= 0) & (places < rows.shape[2])]]
    return rows if group.summed_heads > 1 else rows.flatten(0, 1).unsqueeze(1)


def _sum_heads(weights: Float[Tensor, "items heads rows columns"], out: Tensor | None) -> Float[Tensor, "items rows columns"]:
    if weights.shape[1] > FEW_HEADS:
        return torch.sum(weights, 1, out=out)
    total, *others = weights.unbind(1)
    if not others:
        return torch.add(total, 0.0, out=out)
    total = torch.add(total, others[0], out=out)
    for head in others[1:]:
        total.add_(head)
    return total
