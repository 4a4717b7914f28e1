"""Differences between two models on the same images: means, intervals, tests and effect sizes, column by column."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from overfocus.comparison.bootstrap import bootstrap_intervals

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class PairedDifferences:
    """What a model does otherwise than the baseline; one entry per column, over the images where both have a value."""

    mean: Float[np.ndarray, "columns"]
    baseline_mean: Float[np.ndarray, "columns"]
    difference: Float[np.ndarray, "columns"]
    low: Float[np.ndarray, "columns"]
    """Lower end of the 95 % bootstrap interval of the difference; NaN for fewer than two images."""
    high: Float[np.ndarray, "columns"]
    p_value: Float[np.ndarray, "columns"]
    """Of the Wilcoxon signed-rank test, two-sided; 1 where no image differs, NaN for fewer than two images."""
    effect_size: Float[np.ndarray, "columns"]
    """Cohen's d_z: mean difference over the standard deviation of the differences; NaN where that is 0."""
    count: Int[np.ndarray, "columns"]
    """Images where both models have a value."""


def paired_differences(
    model: Float[np.ndarray, "images columns"],
    baseline: Float[np.ndarray, "images columns"],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifferences:
    """Compare two models image by image; NaN in either leaves the image out of that column."""
    differences = model - baseline
    known = ~np.isnan(differences)
    count = known.sum(0)
    low, high = bootstrap_intervals(differences, resamples=resamples, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, baseline_mean, difference = (np.where(known, part, 0).sum(0) / count for part in (model, baseline, differences))
        deviation = np.sqrt((np.where(known, differences - difference, 0) ** 2).sum(0) / (count - 1))
        effect_size = np.where(deviation > 0, difference / deviation, np.nan)
    return PairedDifferences(mean, baseline_mean, difference, low, high, signed_rank_p_values(differences), effect_size, count)


def signed_rank_p_values(differences: Float[np.ndarray, "images columns"]) -> Float[np.ndarray, "columns"]:
    """Two-sided p-value of the Wilcoxon signed-rank test of each column, by the normal approximation with ties corrected.

    NaN are left out, and images that do not differ. 1 where no image differs, NaN for fewer than two values.

    Source: F. Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1, 1945; as in scipy.
    """
    known = ~np.isnan(differences)
    tested = (known & (differences != 0)).any(0) & (known.sum(0) > 1)
    p_values = np.where(known.sum(0) > 1, 1.0, np.nan)
    if tested.any():
        # The exact distribution, which "auto" may take, needs minutes where differences are tied.
        test = stats.wilcoxon(differences[:, tested], axis=0, method="approx", nan_policy="omit")
        p_values[tested] = test.pvalue
    return p_values


def holm(p_values: Float[np.ndarray, "tests"]) -> Float[np.ndarray, "tests"]:
    """p-values adjusted so that the chance of even one false finding among all tests stays below the level; NaN stay NaN.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: int((~np.isnan(p_values)).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return adjusted
