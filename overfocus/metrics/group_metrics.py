"""From the sums of one group of windows to its metrics."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.metrics.concentration import (
    effective_share,
    gini_coefficient,
    in_units_of_uniform,
    largest_ratio,
    share_of_top,
)
from overfocus.metrics.pair_sums import Pairs, PairSums
from overfocus.metrics.patch_sums import PatchSums
from overfocus.metrics.received import profile_of
from overfocus.metrics.similarity import mean_pair_cosine
from overfocus.metrics.stability import top_marks, total_variation, unit_ranks


def map_metrics(
    sums: PatchSums, profile: Float[Tensor, "items columns"], *, summed_heads: int, top_fraction: float
) -> dict[str, Float[Tensor, "items"]]:
    """Every metric of one map whose sums are there; `profile` is the received attention."""
    rows, columns = sums.mass.shape[1], profile.shape[1]
    counted = sums.counted
    count = counted.sum(-1)
    values = {
        "top_share": share_of_top(profile, top_fraction),
        "max_ratio": largest_ratio(profile),
        "gini": gini_coefficient(profile),
        "effective_tokens": effective_share(profile),
        "row_entropy": in_units_of_uniform(sums.entropy().sum(-1) / count, keys=columns),
        "prefix_share": sums.prefix.mean(-1) / summed_heads,
        "token_cosine": mean_pair_cosine(sums.unit_column, count, rows=rows),
    }
    if sums.similarity is not None:
        values["diversification"] = sums.similarity.mean(-1).clamp_max(1)
    if sums.distance is not None:
        values["attention_distance"] = (sums.distance / sums.mass * counted).sum(-1) / count
    return values


def pair_metrics(
    sums: PairSums, pairs: Pairs, profile: Float[Tensor, "items columns"], top_fraction: float
) -> dict[str, Float[Tensor, "items"]]:
    """Every metric of stability; NaN for items that are no corrupted one of a pair."""
    marks, ranks = top_marks(profile, top_fraction), unit_ranks(profile)
    of_pairs = {
        "top_overlap": (marks[pairs.clean] * marks[pairs.corrupted]).sum(-1),
        "rank_correlation": (ranks[pairs.clean] * ranks[pairs.corrupted]).sum(-1).clamp(-1, 1),
        "attention_cosine": sums.cosine.mean(-1).clamp_max(1),
        "js_divergence": sums.divergence.sum(-1) / (sums.counted.sum(-1) * math.log(2)),
        "received_shift": total_variation(profile[pairs.clean], profile[pairs.corrupted]),
    }
    undefined = torch.full((len(profile),), math.nan, device=profile.device)
    return {name: undefined.index_copy(0, pairs.corrupted, value.float()) for name, value in of_pairs.items()}


def received_profile(sums: PatchSums) -> Float[Tensor, "items columns"]:
    """Received attention r of each item."""
    return profile_of(sums.column, defined=sums.counted.any(-1))
