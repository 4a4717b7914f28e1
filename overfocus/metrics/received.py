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
    profile = precise_profile(weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head)
    return profile if weights.dtype == torch.float64 else profile.float()


def precise_profile(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads key_patches"]:
    """`received_attention` in double precision, for comparisons of tokens that receive nearly the same."""
    attention = patch_attention(weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head)
    column_sums = attention.sum(-2, dtype=precise_dtype(attention.device))
    return profile_of(column_sums, defined=(attention.sum(-1) > NEGLIGIBLE).any(-1))


def precise_dtype(device: torch.device) -> torch.dtype:
    """Double precision where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


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
    """N·r without its last binary digits, for comparisons: equal columns that were summed in another order stay equal.

    Without it the rounding of sums would put the tokens of uniform attention into an order, which is noise. What an evenly
    attended token receives becomes exactly 1, in the middle of what is rounded to it; less than `NEGLIGIBLE` becomes 0.
    """
    value = torch.nn.functional.threshold(profile * profile.shape[-1], NEGLIGIBLE, 0.0)
    dropped = 23 if profile.dtype == torch.float64 else 4  # 30 of 53 digits stay, or 20 of 24
    scaled = value * (2**dropped + 1)  # Dekker's split
    rounded: Tensor = scaled - (scaled - value)
    return rounded
