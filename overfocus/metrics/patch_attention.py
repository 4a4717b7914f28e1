"""From attention weights to Ā_P: the mean over heads, restricted to the patch tokens."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.errors import CaptureError

TOLERANCE = 1e-3
"""Largest distance of a row's sum from 1."""

NEGLIGIBLE = 1e-12
"""A row with less attention on patch tokens than this has none: its direction and its renormalised form are undefined."""


def patch_attention(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads patches key_patches"]:
    """Ā_P of METRICS.md: weights averaged over heads (or kept per head), restricted to patch tokens, rows not renormalised.

    `key_prefix_tokens` is the number of prefix tokens at the front of the keys where it differs from that of the queries.
    Half precision is computed in float32; float64 stays.

    Raises:
        ValueError: the shape is not (batch, heads, queries, keys), or no patch token is left.
        CaptureError: NaN, or rows that do not sum to 1.
    """
    attention = heads_or_mean(weights, per_head=per_head)
    _check(attention, weights.dtype)
    query_start, key_start = patch_starts(weights, prefix_tokens, key_prefix_tokens)
    return attention[..., query_start:, key_start:]


def prefix_mass(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads patches"]:
    """Attention that each patch query gives to the prefix tokens of the keys."""
    attention = heads_or_mean(weights, per_head=per_head)
    _check(attention, weights.dtype)
    query_start, key_start = patch_starts(weights, prefix_tokens, key_prefix_tokens)
    return attention[..., query_start:, :key_start].sum(-1)


def heads_or_mean(
    weights: Float[Tensor, "batch heads queries keys"], *, per_head: bool
) -> Float[Tensor, "batch *heads queries keys"]:
    """The weights themselves, or their mean over heads, in float32 or float64."""
    if weights.ndim != 4:
        raise ValueError(
            f"expected weights of shape (batch, heads, queries, keys), got {tuple(weights.shape)}; "
            "add a heads axis with weights.unsqueeze(1) to a map that is already averaged"
        )
    return weights.to(result_dtype(weights)) if per_head else weights.mean(1, dtype=result_dtype(weights))


def result_dtype(weights: Tensor) -> torch.dtype:
    """What metrics are computed and returned in: float64 for float64, else float32."""
    return torch.float64 if weights.dtype == torch.float64 else torch.float32


def patch_starts(weights: Tensor, prefix_tokens: int, key_prefix_tokens: int | None) -> tuple[int, int]:
    """Where the patch tokens start among the queries and among the keys."""
    key_prefix = prefix_tokens if key_prefix_tokens is None else key_prefix_tokens
    queries, keys = weights.shape[-2:]
    if not (0 <= prefix_tokens < queries and 0 <= key_prefix < keys):
        raise ValueError(
            f"expected fewer prefix tokens than queries and keys, got {prefix_tokens} of {queries} queries "
            f"and {key_prefix} of {keys} keys"
        )
    return prefix_tokens, key_prefix


def _check(attention: Float[Tensor, "*items queries keys"], source: torch.dtype) -> None:
    check_row_sums(attention.sum(-1), source)
    check_sign(bool(attention.amin() < 0))


def check_row_sums(
    sums: Float[Tensor, "*items queries"], source: torch.dtype, module: str = "weights", *, hidden_rows: bool = False
) -> None:
    """Refuse what is no attention; weights that came in half precision may miss 1 by two rounding units.

    `hidden_rows` allows rows of zeros, of queries that a mask keeps from all keys.

    Raises:
        CaptureError: NaN, or rows that do not sum to 1.
    """
    if hidden_rows:
        sums = torch.where(sums.abs() <= NEGLIGIBLE, 1, sums)
    allowed = max(TOLERANCE, 2 * torch.finfo(source).eps)
    worst = float((sums - 1).abs().max())
    if worst <= allowed:
        return
    if math.isnan(worst):
        raise CaptureError(f"{module}: expected attention weights, got NaN; look for NaN in the checkpoint and in the input")
    raise CaptureError(
        f"{module}: expected attention rows that sum to 1 within {allowed:g}, got one that misses it by {worst:.3g}; "
        "pass weights after the softmax, without dropout"
    )


def check_sign(negative: bool, module: str = "weights") -> None:
    """Refuse negative weights.

    Raises:
        CaptureError: a weight is negative.
    """
    if negative:
        raise CaptureError(f"{module}: expected attention weights ≥ 0, got a negative one; pass weights after the softmax")
