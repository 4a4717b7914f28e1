"""Received attention r, the column-sum profile of a map, and the tokens that receive most."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overfocus.metrics.expectation import top_count
from overfocus.metrics.patch_attention import NEGLIGIBLE, patch_attention


def received_attention(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads key_patches"]:
    """r: the share of the patches' attention that each patch receives; non-negative, sums to 1, uniform attention gives 1/N.

    NaN where the patches give all their attention to prefix tokens.

    >>> weights = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])
    >>> received_attention(weights)
    tensor([[0.7500, 0.2500]])
    """
    attention = patch_attention(weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head)
    return profile_of(attention.sum(-2), defined=(attention.sum(-1) > NEGLIGIBLE).any(-1))


def profile_of(column_sums: Float[Tensor, "*items keys"], *, defined: Tensor) -> Float[Tensor, "*items keys"]:
    """Column sums scaled to sum to 1; NaN where not `defined`."""
    profile = column_sums / column_sums.sum(-1, keepdim=True)
    return profile.masked_fill_(~defined.unsqueeze(-1), torch.nan)


def top_tokens(profile: Float[Tensor, "*items keys"], top_fraction: float = 0.05) -> Int[Tensor, "*items k"]:
    """T_k(r): indices of the k = max(1, round(f·N)) tokens that receive most, most first; ties go to the lower index.

    >>> top_tokens(torch.tensor([0.2, 0.3, 0.2, 0.3]), top_fraction=0.75)
    tensor([1, 3, 0])
    """
    order = torch.sort(tied(profile), dim=-1, descending=True, stable=True).indices
    return order[..., : top_count(profile.shape[-1], top_fraction)]


def tied(profile: Float[Tensor, "*items keys"]) -> Float[Tensor, "*items keys"]:
    """1 + N·r rounded to 20 binary digits, for comparisons: equal columns summed in another order stay equal.

    Without it the rounding of float32 would put the tokens of uniform attention into an order, which is noise. Untouched and
    evenly attended tokens become exactly 1 and 2, in the middle of what is rounded to them.
    """
    value = 1 + profile.float() * profile.shape[-1]
    scaled = value * (2**4 + 1)  # Dekker's split: drops the last 4 of float32's 24 digits
    rounded: Tensor = scaled - (scaled - value)
    return rounded
