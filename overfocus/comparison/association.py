"""How a number goes with something that happens or not: rank correlation and AUROC, with intervals.

Pictures of the same image are not independent. Each estimate is a smooth function of ranks, so that its variance follows
from the influence of each picture, summed per image; for one picture per image this is DeLong's variance of the AUROC.

Sources: N. A. Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53, 1997; E. R. DeLong et al.,
"Comparing the areas under two or more correlated receiver operating characteristic curves", Biometrics 44, 1988.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special, stats

from overfocus.intervals import CONFIDENCE

Array = np.ndarray[Any, Any]


class Estimate(NamedTuple):
    """A number with the ends of its 95 % interval; NaN where undefined, the ends also where the data show no spread."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(math.nan, math.nan, math.nan)


def auroc(
    values: Float[np.ndarray, "pictures"], happened: Bool[np.ndarray, "pictures"], images: Int[np.ndarray, "pictures"]
) -> Estimate:
    """Chance that a picture where it happened has a higher value than one where it did not, ties counted half.

    0 … 1; 0.5 says that the value tells nothing. `images` is the number of each picture's image, from 0.
    NaN where it always or never happened.
    """
    number, positives = len(values), int(happened.sum())
    negatives = number - positives
    if not positives or not negatives:
        return UNDEFINED
    together = _mid_ranks(values)
    placement = np.empty(number)
    placement[happened] = (together[happened] - _mid_ranks(values[happened])) / negatives
    placement[~happened] = 1 - (together[~happened] - _mid_ranks(values[~happened])) / positives
    area = float(placement[happened].mean())
    influence = (placement - area) * np.where(happened, number / positives, number / negatives)
    error = _standard_error(influence, images)
    if not 0 < area < 1 or not error > 0:
        return Estimate(area, math.nan, math.nan)
    centre, half = special.logit(area), _quantile(_count(images)) * error / (area * (1 - area))
    return Estimate(area, float(special.expit(centre - half)), float(special.expit(centre + half)))


def spearman(
    first: Float[np.ndarray, "pictures"], second: Float[np.ndarray, "pictures"], images: Int[np.ndarray, "pictures"]
) -> Estimate:
    """Spearman's rank correlation, average ranks for ties; −1 … 1. NaN where one of the two is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return UNDEFINED
    u, v = (_mid_ranks(values) / len(values) - 0.5 - 0.5 / len(values) for values in (first, second))
    u_variance, v_variance, covariance = (float(product.mean()) for product in (u * u, v * v, u * v))
    correlation = covariance / math.sqrt(u_variance * v_variance)
    # Ranks change with the sample, too: the second terms are what a picture does to the ranks of the others.
    of_covariance = u * v + _share_above(first, v) + _share_above(second, u) - 3 * covariance
    of_u = u * u + 2 * _share_above(first, u) - 3 * u_variance
    of_v = v * v + 2 * _share_above(second, v) - 3 * v_variance
    influence = of_covariance / math.sqrt(u_variance * v_variance) - correlation / 2 * (of_u / u_variance + of_v / v_variance)
    error = _standard_error(influence, images)
    if not abs(correlation) < 1 or not error > 0:
        return Estimate(correlation, math.nan, math.nan)
    centre, half = math.atanh(correlation), _quantile(_count(images)) * error / (1 - correlation**2)
    return Estimate(correlation, math.tanh(centre - half), math.tanh(centre + half))


def share(happened: Bool[np.ndarray, "pictures"], images: Int[np.ndarray, "pictures"]) -> Estimate:
    """Share of the pictures where it happened; NaN for none."""
    if not len(happened):
        return UNDEFINED
    part = float(happened.mean())
    error = _standard_error(happened - part, images)
    if not 0 < part < 1 or not error > 0:
        return Estimate(part, math.nan, math.nan)
    centre, half = special.logit(part), _quantile(_count(images)) * error / (part * (1 - part))
    return Estimate(part, float(special.expit(centre - half)), float(special.expit(centre + half)))


def _mid_ranks(values: Array) -> Array:
    """Ranks from 1, the mean of theirs for equal values: `scipy.stats.rankdata`, which takes milliseconds to begin."""
    _, place, often = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(often) - (often - 1) / 2)[place]
    return ranks


def _share_above(values: Array, weights: Array) -> Array:
    """For each picture, the mean over all pictures of `weights` where their value is higher, of half of it where it is equal."""
    _, place = np.unique(values, return_inverse=True)
    sums = np.bincount(place, weights)
    above = np.cumsum(sums[::-1])[::-1] - sums / 2
    result: Array = above[place] / len(values)
    return result


def _standard_error(influence: Array, images: Array) -> float:
    """Of an estimate whose change by each picture is `influence` over their number; NaN for a single image."""
    number = _count(images)
    if number < 2:
        return math.nan
    sums = np.bincount(images, influence)
    return math.sqrt(float((sums**2).sum()) * number / (number - 1)) / len(influence)


def _count(images: Array) -> int:
    """How many images there are."""
    return int(np.count_nonzero(np.bincount(images)))


@cache
def _quantile(images: int) -> float:
    """How many standard errors the interval reaches to either side."""
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, images - 1))
