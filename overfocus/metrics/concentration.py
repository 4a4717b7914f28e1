"""Concentration: how few tokens receive the attention."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.metrics.expectation import top_count
from overfocus.metrics.patch_attention import NEGLIGIBLE, patch_attention, prefix_mass
from overfocus.metrics.received import received_attention


def top_share(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    top_fraction: float = 0.05,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Share of the received attention that the k most attended tokens take: Σ_{j∈T_k(r)} r_j.

    Range k/N (uniform) … 1; high means that a few tokens take all. Source: METRICS.md, concentration.

    >>> top_share(torch.full((1, 1, 4, 4), 0.25))
    tensor([0.2500])
    """
    profile = received_attention(weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head)
    return share_of_top(profile, top_fraction)


def max_ratio(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Attention that the most attended token receives, relative to its even share: N · max_j r_j.

    Range 1 (uniform) … N; high means that one token stands out. Source: METRICS.md, concentration.

    >>> max_ratio(torch.full((1, 1, 4, 4), 0.25))
    tensor([1.])
    """
    return largest_ratio(
        received_attention(weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head)
    )


def gini(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Gini coefficient of the received attention: Σ_{a,b} |r_a − r_b| / (2 N).

    Range 0 (uniform) … 1 − 1/N; high means unequal shares. Source: Gini 1912; METRICS.md, concentration.

    >>> gini(torch.eye(4)[None, None, [0, 0, 0, 0]])
    tensor([0.7500])
    """
    return gini_coefficient(
        received_attention(weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head)
    )


def effective_tokens(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Perplexity of the received attention as a share of the tokens: exp(−Σ_j r_j ln r_j) / N.

    Range 1/N … 1 (uniform); low means overfocused. Source: METRICS.md, concentration.

    >>> effective_tokens(torch.eye(4)[None, None, [0, 0, 0, 0]])
    tensor([0.2500])
    """
    return effective_share(
        received_attention(weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head)
    )


def row_entropy(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Mean entropy of the patches' rows, renormalised over the N patch keys, divided by ln N.

    Range 0 (one-hot rows) … 1 (uniform); NaN for N = 1. Rows without attention on patches have no entropy and are left out of
    the mean. Source: METRICS.md, concentration.

    >>> row_entropy(torch.eye(4)[None, None])
    tensor([0.])
    """
    attention = patch_attention(weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head)
    mass = attention.sum(-1, keepdim=True)
    rows = attention / mass
    entropy = -torch.xlogy(rows, rows).sum(-1)
    counted = mass.squeeze(-1) > NEGLIGIBLE
    mean = entropy.masked_fill(~counted, 0).sum(-1) / counted.sum(-1)
    return in_units_of_uniform(mean, keys=attention.shape[-1])


def prefix_share(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Mean attention that patches give to class, distillation and register tokens: mean_i Σ_{j∉P} Ā_ij.

    Range 0 (also where there are none) … 1; high means that patches look at prefix tokens. Source: METRICS.md, concentration.

    >>> prefix_share(torch.full((1, 1, 5, 5), 0.2), prefix_tokens=1)
    tensor([0.2000])
    """
    return prefix_mass(weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head).mean(-1)


def share_of_top(profile: Float[Tensor, "*items keys"], top_fraction: float) -> Float[Tensor, "*items"]:
    """Sum of the k largest entries of a profile."""
    return profile.topk(top_count(profile.shape[-1], top_fraction), sorted=False).values.sum(-1).clamp_max(1)


def largest_ratio(profile: Float[Tensor, "*items keys"]) -> Float[Tensor, "*items"]:
    """Largest entry of a profile relative to 1/N."""
    return (profile.amax(-1) * profile.shape[-1]).clamp_min(1)


def gini_coefficient(profile: Float[Tensor, "*items keys"]) -> Float[Tensor, "*items"]:
    """Gini coefficient from the sorted profile: Σ_j (2j − N − 1) r_(j) / N, the pairwise sum in N ln N steps."""
    keys = profile.shape[-1]
    position = torch.arange(1 - keys, keys, 2, device=profile.device, dtype=profile.dtype)
    return (profile.sort(-1).values * position).sum(-1).clamp_min(0) / keys


def effective_share(profile: Float[Tensor, "*items keys"]) -> Float[Tensor, "*items"]:
    """Perplexity of a profile divided by its length."""
    return (torch.exp(-torch.xlogy(profile, profile).sum(-1)) / profile.shape[-1]).clamp_max(1)


def in_units_of_uniform(entropy: Float[Tensor, "*items"], *, keys: int) -> Float[Tensor, "*items"]:
    """Entropy in nats divided by that of uniform attention; NaN for one key, which has nothing to choose from."""
    return (entropy / (math.log(keys) if keys > 1 else math.nan)).clamp(0, 1)
