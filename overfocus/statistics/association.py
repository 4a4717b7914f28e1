"""How a number goes with something that happens or not: rank correlation and AUROC, with intervals.

Corrupted images come in strata, a corruption at a severity each. Strata differ in strength, so that whatever tells which stratum
an image is in also tells flips apart, however little it says about images. The estimates here are those *within* strata; all
images as one stratum give the pooled ones. Versions of one image are not independent: each estimate is a smooth function of
ranks, so that its variance follows from the influence of each version, summed per image; with one stratum and one version for
each image this is DeLong's variance of the AUROC.

Sources: N. A. Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53, 1997; E. R. DeLong et al.,
"Comparing the areas under two or more correlated receiver operating characteristic curves", Biometrics 44, 1988; E. H. Simpson,
"The interpretation of interaction in contingency tables", JRSS B 13, 1951.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from overfocus.statistics.intervals import quantile, rate_interval

Array = np.ndarray[Any, Any]


class Estimate(NamedTuple):
    """A number with the ends of its 95 % interval; NaN where undefined, the ends also where the data show no spread."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(math.nan, math.nan, math.nan)


def auroc(
    values: Float[np.ndarray, "versions"],
    happened: Bool[np.ndarray, "versions"],
    images: Int[np.ndarray, "versions"],
    strata: Int[np.ndarray, "versions"] | None = None,
) -> Estimate:
    """Chance that a version where it happened has a higher value than one of the same stratum where it did not, ties half.

    0 … 1; 0.5 says that the value tells nothing. It is the mean of the strata's AUROCs with the weights happened × did not, so
    that strata where it always or never happened do not count; NaN where that is all of them. `images` is the number of each
    version's image, from 0, `strata` that of its stratum; all are in one unless given.

    >>> auroc(np.array([1.0, 2.0, 8.0, 9.0]), np.array([False, True, False, True]), np.arange(4), np.array([0, 0, 1, 1])).value
    1.0
    """
    wins = np.zeros(len(values))
    opponents = np.zeros(len(values))
    for rows in _strata(values, strata):
        flags = happened[rows]
        positives, negatives = int(flags.sum()), int((~flags).sum())
        if not positives or not negatives:
            continue
        together = _mid_ranks(values[rows])
        won = np.empty(len(rows))
        won[flags] = together[flags] - _mid_ranks(values[rows][flags])
        won[~flags] = positives - (together[~flags] - _mid_ranks(values[rows][~flags]))
        wins[rows] = won
        opponents[rows] = np.where(flags, negatives, positives)
    pairs = float(opponents[happened].sum())
    if not pairs:
        return UNDEFINED
    area = float(wins[happened].sum()) / pairs
    error = _standard_error((wins - area * opponents) / pairs * len(values), images)
    if not 0 < area < 1 or not error > 0:
        return Estimate(area, math.nan, math.nan)
    centre, half = special.logit(area), quantile(_count(images)) * error / (area * (1 - area))
    return Estimate(area, float(special.expit(centre - half)), float(special.expit(centre + half)))


def spearman(
    first: Float[np.ndarray, "versions"],
    second: Float[np.ndarray, "versions"],
    images: Int[np.ndarray, "versions"],
    strata: Int[np.ndarray, "versions"] | None = None,
    weights: Float[np.ndarray, "strata"] | None = None,
) -> Estimate:
    """Spearman's rank correlation within strata, average ranks for ties; −1 … 1.

    It is the mean of the strata's correlations with `weights` by number of the stratum (equal ones unless given), which count
    as known; strata where one of the two is constant are left out. NaN where that is all of them.
    """
    total, mean, influence = 0.0, 0.0, np.zeros(len(first))
    for rows in _strata(first, strata):
        weight = 1.0 if weights is None else float(weights[0 if strata is None else strata[rows[0]]])
        if not weight or np.ptp(first[rows]) == 0 or np.ptp(second[rows]) == 0:
            continue
        correlation, moved = _rank_correlation(first[rows], second[rows])
        influence[rows] = weight * moved * len(first) / len(rows)
        total, mean = total + weight, mean + weight * correlation
    if not total:
        return UNDEFINED
    correlation = mean / total
    error = _standard_error(influence / total, images)
    if not abs(correlation) < 1 or not error > 0:
        return Estimate(correlation, math.nan, math.nan)
    centre, half = math.atanh(correlation), quantile(_count(images)) * error / (1 - correlation**2)
    return Estimate(correlation, math.tanh(centre - half), math.tanh(centre + half))


def share(happened: Bool[np.ndarray, "versions"], images: Int[np.ndarray, "versions"]) -> Estimate:
    """Share of the versions where it happened, with Wilson's interval for outcomes in clusters; NaN for none."""
    if not len(happened):
        return UNDEFINED
    _, place = np.unique(images, return_inverse=True)
    trials = np.bincount(place)
    rates = np.bincount(place, happened) / trials
    ends = rate_interval(rates[:, None], trials[:, None])
    return Estimate(float(happened.mean()), float(ends.low[0]), float(ends.high[0]))


def _strata(values: Array, strata: Array | None) -> list[Array]:
    """Places of the versions of each stratum."""
    if strata is None:
        return [np.arange(len(values))]
    order = np.argsort(strata, kind="stable")
    return [rows for rows in np.split(order, np.flatnonzero(np.diff(strata[order])) + 1) if len(rows)]


def _rank_correlation(first: Array, second: Array) -> tuple[float, Array]:
    """The correlation, and what each pair of values does to it over their number."""
    u, v = (_mid_ranks(values) / len(values) - 0.5 - 0.5 / len(values) for values in (first, second))
    u_variance, v_variance, covariance = (float(product.mean()) for product in (u * u, v * v, u * v))
    correlation = covariance / math.sqrt(u_variance * v_variance)
    # Ranks change with the sample, too: the second terms are what a pair does to the ranks of the others.
    of_covariance = u * v + _share_above(first, v) + _share_above(second, u) - 3 * covariance
    of_u = u * u + 2 * _share_above(first, u) - 3 * u_variance
    of_v = v * v + 2 * _share_above(second, v) - 3 * v_variance
    influence = of_covariance / math.sqrt(u_variance * v_variance) - correlation / 2 * (of_u / u_variance + of_v / v_variance)
    return correlation, influence


def _mid_ranks(values: Array) -> Array:
    """Ranks from 1, the mean of theirs for equal values: `scipy.stats.rankdata`, which takes milliseconds to begin."""
    _, place, often = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(often) - (often - 1) / 2)[place]
    return ranks


def _share_above(values: Array, weights: Array) -> Array:
    """For each value, the mean over all of them of `weights` where their value is higher, of half of it where it is equal."""
    _, place = np.unique(values, return_inverse=True)
    sums = np.bincount(place, weights)
    above = np.cumsum(sums[::-1])[::-1] - sums / 2
    result: Array = above[place] / len(values)
    return result


def _standard_error(influence: Array, images: Array) -> float:
    """Of an estimate whose change by each version is `influence` over their number; NaN for a single image."""
    number = _count(images)
    if number < 2:
        return math.nan
    sums = np.bincount(images, influence)
    return math.sqrt(float((sums**2).sum()) * number / (number - 1)) / len(influence)


def _count(images: Array) -> int:
    """How many images there are."""
    return int(np.count_nonzero(np.bincount(images)))
