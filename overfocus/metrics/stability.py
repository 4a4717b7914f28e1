"""Stability: the attention on the same image, clean against corrupted."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.metrics.patch_attention import NEGLIGIBLE, patch_attention, result_dtype
from overfocus.metrics.received import precise_profile, tied, top_tokens
from overfocus.metrics.similarity import unit_rows


def top_overlap(
    clean: Float[Tensor, "batch heads queries keys"],
    corrupted: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    top_fraction: float = 0.05,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Share of the k most attended tokens that stay among the k most attended: |T_k(r) ∩ T_k(r')| / k.

    Range 0 … 1, chance level k/N; low means that the important tokens change. Where attention is flat the order of tokens is
    noise: read it beside effective_tokens. Source: METRICS.md, stability.

    >>> top_overlap(torch.eye(4)[None, None, [0, 0, 0, 0]], torch.eye(4)[None, None, [1, 1, 1, 1]])
    tensor([0.])
    """
    before, after = _profiles(clean, corrupted, prefix_tokens, key_prefix_tokens, per_head)
    overlap = (top_marks(before, top_fraction) * top_marks(after, top_fraction)).sum(-1)
    return overlap.to(result_dtype(clean))


def rank_correlation(
    clean: Float[Tensor, "batch heads queries keys"],
    corrupted: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Spearman's ρ of the received attention, clean and corrupted, with average ranks for ties.

    Range −1 … 1; low means that the order of tokens changes; NaN where a profile is constant. Where attention is flat the order
    is noise: read it beside effective_tokens. Source: Spearman 1904; METRICS.md, stability.

    >>> weights = torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(1, 1, 4, 4)
    >>> rank_correlation(weights, weights.flip(-1))
    tensor([-1.])
    """
    before, after = _profiles(clean, corrupted, prefix_tokens, key_prefix_tokens, per_head)
    return (unit_ranks(before) * unit_ranks(after)).sum(-1).clamp(-1, 1).to(result_dtype(clean))


def attention_cosine(
    clean: Float[Tensor, "batch heads queries keys"],
    corrupted: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Mean cosine between a patch's row on the clean and on the corrupted image: mean_i cos(Ā_P,i , Ā'_P,i).

    Range 0 … 1; low means that tokens attend elsewhere. A row without attention on patches has cosine 0. Source: METRICS.md,
    stability.

    >>> attention_cosine(torch.eye(4)[None, None], torch.eye(4)[None, None])
    tensor([1.])
    """
    before, after = _pair(clean, corrupted, prefix_tokens, key_prefix_tokens, per_head)
    return (unit_rows(before) * unit_rows(after)).sum(-1).mean(-1).clamp_max(1)


def js_divergence(
    clean: Float[Tensor, "batch heads queries keys"],
    corrupted: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Mean Jensen–Shannon divergence between a patch's renormalised row on the clean and on the corrupted image, in bits.

    Range 0 … 1; high means that attention has diverged. Rows without attention on patches, in either, are left out of the mean.
    Source: Lin 1991, Divergence measures based on the Shannon entropy, eq. 4.1.

    >>> js_divergence(torch.eye(4)[None, None], torch.eye(4)[None, None, [1, 0, 3, 2]])
    tensor([1.])
    """
    before, after = _pair(clean, corrupted, prefix_tokens, key_prefix_tokens, per_head)
    mass, later_mass = before.sum(-1, keepdim=True), after.sum(-1, keepdim=True)
    before, after = before / mass, after / later_mass
    middle = (before + after) / 2
    nats = torch.xlogy(before, before) + torch.xlogy(after, after) - 2 * torch.xlogy(middle, middle)
    divergence = nats.sum(-1) / (2 * math.log(2))
    counted = torch.minimum(mass, later_mass).squeeze(-1) > NEGLIGIBLE
    return divergence.masked_fill(~counted, 0).clamp_min(0).sum(-1) / counted.sum(-1)


def received_shift(
    clean: Float[Tensor, "batch heads queries keys"],
    corrupted: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads"]:
    """Share of the received attention that moves to other tokens: ½ Σ_j |r_j − r'_j|, the total variation distance.

    Range 0 … 1; high means that mass has moved. Source: METRICS.md, stability.

    >>> received_shift(torch.eye(4)[None, None, [0, 0, 0, 0]], torch.eye(4)[None, None, [1, 1, 1, 1]])
    tensor([1.])
    """
    profiles = _profiles(clean, corrupted, prefix_tokens, key_prefix_tokens, per_head)
    return total_variation(*profiles).to(result_dtype(clean))


def top_marks(profile: Float[Tensor, "*items keys"], top_fraction: float) -> Float[Tensor, "*items keys"]:
    """1/√k for the k largest entries of a profile and 0 for the others, so that the product of two sums to their overlap.

    NaN where the profile is undefined.
    """
    top = top_tokens(profile, top_fraction)
    marks = torch.zeros_like(profile).scatter_(-1, top, top.shape[-1] ** -0.5)
    return marks.masked_fill_(profile.isnan(), math.nan)


def unit_ranks(profile: Float[Tensor, "*items keys"]) -> Float[Tensor, "*items keys"]:
    """Ranks of the entries, those that are tied sharing the mean of theirs, centred and scaled to length 1.

    The product of two sums to Spearman's ρ. NaN where the profile is constant or undefined.
    """
    value = tied(profile)
    ordered = value.sort(-1).values
    below = torch.searchsorted(ordered, value, right=False)
    up_to = torch.searchsorted(ordered, value, right=True)
    # the mean rank of tied entries is (below + up_to + 1) / 2, that of all (keys + 1) / 2
    ranks = (below + up_to - profile.shape[-1]).to(profile.dtype).masked_fill_(profile.isnan(), math.nan)
    scaled: Tensor = ranks / torch.linalg.vector_norm(ranks, dim=-1, keepdim=True)
    return scaled


def total_variation(before: Float[Tensor, "*items keys"], after: Float[Tensor, "*items keys"]) -> Float[Tensor, "*items"]:
    """Half the sum of the absolute differences of two profiles."""
    return (before - after).abs().sum(-1) / 2


def _pair(
    clean: Tensor, corrupted: Tensor, prefix_tokens: int, key_prefix_tokens: int | None, per_head: bool
) -> tuple[Tensor, Tensor]:
    _check_shapes(clean, corrupted)
    return (
        patch_attention(clean, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head),
        patch_attention(corrupted, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head),
    )


def _profiles(
    clean: Tensor, corrupted: Tensor, prefix_tokens: int, key_prefix_tokens: int | None, per_head: bool
) -> tuple[Tensor, Tensor]:
    _check_shapes(clean, corrupted)
    return (
        precise_profile(clean, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head),
        precise_profile(corrupted, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head),
    )


def _check_shapes(clean: Tensor, corrupted: Tensor) -> None:
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"expected clean and corrupted weights of one shape, got {tuple(clean.shape)} and {tuple(corrupted.shape)}"
        )
