"""Similarity: do all tokens look at the same place."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.metrics.patch_attention import NEGLIGIBLE, patch_attention

TAU = 2.0
"""Threshold factor τ of the diversification: entries up to τ/N count as background."""


def token_cosine(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Mean cosine between the rows of two different patch queries: (‖Σ_i u_i‖² − Σ_i ‖u_i‖²) / (N (N − 1)), u_i unit rows.

    Range 0 … 1 (uniform); high means that every token attends alike; NaN for N = 1. A row without attention on patches has
    cosine 0 with every other. Source: METRICS.md, similarity.

    >>> token_cosine(torch.eye(4)[None, None])
    tensor([0.])
    """
    attention = patch_attention(weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head)
    units = unit_rows(attention)
    return mean_pair_cosine(units.sum(-2), units.square().sum((-2, -1)), rows=attention.shape[-2])


def diversification(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Mean cosine between each row and the mean row, both without their entries up to 2/N: mean_i cos(m>t, Ā_P,i>t).

    Range 0 (uniform) … 1; high means that every token looks at what the layer as a whole looks at. A row or mean row with no
    entry above the threshold has cosine 0. Source: Guo et al. 2023, Robustifying Token Attention for Vision Transformers,
    attention diversification loss.

    >>> diversification(torch.eye(4)[None, None, [0, 0, 0, 0]])
    tensor([1.])
    """
    attention = patch_attention(weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head)
    threshold = background_threshold(attention.shape[-1])
    mean_row = attention.mean(-2, keepdim=True)
    rows = attention.masked_fill(attention <= threshold, 0)
    mean_row = mean_row.masked_fill(mean_row <= threshold, 0)
    return torch.cosine_similarity(mean_row, rows, dim=-1).mean(-1).clamp_max(1)


def background_threshold(keys: int) -> float:
    """τ/N, raised by a part in a million so that entries that equal it but for rounding do not exceed it."""
    return TAU / keys * (1 + 2**-20)


def unit_rows(attention: Float[Tensor, "*items rows keys"]) -> Float[Tensor, "*items rows keys"]:
    """Rows scaled to length 1; rows without attention become zero."""
    lengths = torch.linalg.vector_norm(attention, dim=-1, keepdim=True)
    inverse = lengths.reciprocal().masked_fill_(attention.sum(-1, keepdim=True) <= NEGLIGIBLE, 0)
    units: Tensor = attention * inverse
    return units


def mean_pair_cosine(
    unit_sum: Float[Tensor, "*items keys"], squares: Float[Tensor, "*items"], *, rows: int
) -> Float[Tensor, "*items"]:
    """Closed form of the mean cosine over pairs, from the sum of the unit rows and the sum of their squared lengths."""
    pairs = rows * (rows - 1)
    return ((unit_sum.square().sum(-1) - squares) / (pairs or math.nan)).clamp(0, 1)
