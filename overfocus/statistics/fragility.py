"""What predicts that a prediction flips under corruption: each metric within corruption × severity, beside the plain guesses.

Corrupted images come in strata, a corruption at a severity each. Strata differ in strength, so that pooled over them whatever
grows with strength predicts flips well, even a number that only knows which corruption it was. The headline is therefore the
association (AUROC and rank correlation) *within* strata, averaged with the weights flipped × kept; the pooled one, that of the
corruption alone and that of the confidence on the clean image stand beside it.

Variants of one image are not independent: each estimate is a smooth function of ranks, so that its variance follows from the
influence of each variant, summed per image; with one stratum and one variant for each image this is DeLong's variance of the
AUROC.

Sources: N. A. Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53, 1997; E. R. DeLong et al.,
"Comparing the areas under two or more correlated receiver operating characteristic curves", Biometrics 44, 1988; E. H. Simpson,
"The interpretation of interaction in contingency tables", JRSS B 13, 1951.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import special

from overfocus.metrics.catalogue import CATALOGUE
from overfocus.statistics.intervals import quantile, rate_interval
from overfocus.statistics.panel import EVERY, LAYER_GROUPS, OUTPUT, Panel, over_layers
from overfocus.variants import CLEAN_VARIANT

Array = np.ndarray[Any, Any]

POOLED = "pooled"
"""Stands where a corruption would for all corrupted images as one stratum; its severity is 0."""
CORRUPTION_ALONE = "corruption alone"
"""Stands where a metric would for the share of flips of the image's corruption × severity: what is known without looking."""
CLEAN_CONFIDENCE = "clean confidence"
"""Stands where a metric would for the probability of the predicted class on the clean image."""
FRAGILITY_COLUMNS = (
    "model", "metric", "layers", "corruption", "severity", "spearman", "spearman_low", "spearman_high", "auroc", "auroc_low",
    "auroc_high", "flipped", "count", "strata",
)  # fmt: skip
RELIABILITY_COLUMNS = ("model", "metric", "layers", "bin", "value", "flip_rate", "low", "high", "flipped", "count")
MOST_BINS = 10
FEWEST_IMAGES_PER_BIN = 5


class Estimate(NamedTuple):
    """A number with the ends of its 95 % interval; NaN where undefined, the ends also where the data show no spread."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(math.nan, math.nan, math.nan)


def auroc(
    values: Float[np.ndarray, "variants"],
    happened: Bool[np.ndarray, "variants"],
    images: Int[np.ndarray, "variants"],
    strata: Int[np.ndarray, "variants"] | None = None,
) -> Estimate:
    """Chance that a variant where it happened has a higher value than one of the same stratum where it did not, ties half.

    0 … 1; 0.5 means that the value says nothing. It is the mean of the strata's AUROCs with the weights happened × did not, so
    that strata where it always or never happened do not count; NaN where that is all of them. `images` is the number of each
    variant's image, from 0, `strata` that of its stratum; all are in one unless given.

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
    first: Float[np.ndarray, "variants"],
    second: Float[np.ndarray, "variants"],
    images: Int[np.ndarray, "variants"],
    strata: Int[np.ndarray, "variants"] | None = None,
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


def share(happened: Bool[np.ndarray, "variants"], images: Int[np.ndarray, "variants"]) -> Estimate:
    """Share of the variants where it happened, with Wilson's interval for outcomes in clusters; NaN for none."""
    if not len(happened):
        return UNDEFINED
    _, place = np.unique(images, return_inverse=True)
    trials = np.bincount(place)
    rates = np.bincount(place, happened) / trials
    ends = rate_interval(rates[:, None], trials[:, None])
    return Estimate(float(happened.mean()), float(ends.low[0]), float(ends.high[0]))


def _strata(values: Array, strata: Array | None) -> list[Array]:
    """Places of the variants of each stratum."""
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
    """Of an estimate whose change by each variant is `influence` over their number; NaN for a single image."""
    number = _count(images)
    if number < 2:
        return math.nan
    sums = np.bincount(images, influence)
    return math.sqrt(float((sums**2).sum()) * number / (number - 1)) / len(influence)


def _count(images: Array) -> int:
    """How many images there are."""
    return int(np.count_nonzero(np.bincount(images)))


class Observations(NamedTuple):
    """A metric beside what became of the predictions, one entry per corrupted image."""

    metric: str
    layers: str
    values: Array
    lost: Array
    """1 where the predicted class differs from that of the clean image, else 0; of a segmentation model the share of pixels."""
    flipped: Array
    """Whether it differs; of a segmentation model, whether more pixels do than for its median corrupted image."""
    images: Array
    """Number of the image."""
    strata: Array
    """Number of the run and variant."""
    variants: Array
    """Place of the variant."""

    def only(self, rows: Array) -> "Observations":
        """Those where `rows` holds."""
        return self._replace(**{name: getattr(self, name)[rows] for name in self._fields[2:]})


def tabulate_fragility(sides: Sequence[Sequence[Panel]], names: Sequence[str]) -> pd.DataFrame:
    """One row per model × metric × layers × corruption × severity: does the metric predict which predictions flip.

    Metrics of one map are those of the clean image, metrics of stability those of the corrupted one. `spearman` is the rank
    correlation of metric and flip (of a segmentation model, and the share of pixels that flip), `auroc` the chance that an image
    whose prediction flipped has the higher value than one whose prediction was kept; both with 95 % intervals over images.
    `corruption` "all" (severity 0) is the mean within strata of corruption × severity, `strata` how many of them hold both
    flipped and kept predictions; "pooled" (severity 0) takes all as one.
    """
    rows = []
    for model, side in zip(names, sides, strict=True):
        for seen in _observe(side):
            parts = [(*variant, seen.only(seen.variants == at)) for at, variant in enumerate(side[0].variants)]
            parts = [*((name, severity, part) for name, severity, part in parts if len(part.values)), (EVERY, 0, seen)]
            parts += [(POOLED, 0, seen._replace(strata=np.zeros_like(seen.strata)))]
            for corruption, severity, part in parts:
                if seen.metric == CORRUPTION_ALONE and corruption != POOLED:
                    continue
                weights = _weights(part)
                rank = spearman(part.values, part.lost, part.images, part.strata, weights)
                area = auroc(part.values, part.flipped, part.images, part.strata)
                identity = (model, seen.metric, seen.layers, corruption, severity)
                numbers = int(part.flipped.sum()), len(part.values), int((weights > 0).sum())
                rows.append((*identity, *rank, *area, *numbers))
    return pd.DataFrame(rows, columns=list(FRAGILITY_COLUMNS))


def tabulate_reliability(sides: Sequence[Sequence[Panel]], names: Sequence[str]) -> pd.DataFrame:
    """How often predictions flip as a metric rises: the images of each stratum in up to ten groups of equal size by its value.

    Each group takes the same share of every stratum, so that a group's flips do not come from the strength of its corruptions.
    `value` is the mean of the metric in the group, `flip_rate` the share of flipped predictions with its 95 % interval.
    """
    rows = []
    for model, side in zip(names, sides, strict=True):
        bins = min(MOST_BINS, max(1, len(side[0].images) // FEWEST_IMAGES_PER_BIN))
        for seen in _observe(side):
            if seen.layers == OUTPUT:
                continue
            number = np.zeros(len(seen.values), np.int64)
            for stratum in np.unique(seen.strata):
                inside = seen.strata == stratum
                edges = np.quantile(seen.values[inside], np.linspace(0, 1, bins + 1)[1:-1])
                number[inside] = np.searchsorted(edges, seen.values[inside], side="right")
            for place, group in enumerate(np.unique(number)):
                part = seen.only(number == group)
                rate = share(part.flipped, part.images)
                identity = (model, seen.metric, seen.layers, place, float(part.values.mean()))
                rows.append((*identity, *rate, int(part.flipped.sum()), len(part.values)))
    return pd.DataFrame(rows, columns=list(RELIABILITY_COLUMNS))


def _weights(seen: Observations) -> Array:
    """Flipped × kept by number of the stratum."""
    number = int(seen.strata.max()) + 1 if len(seen.strata) else 0
    flipped = np.bincount(seen.strata, seen.flipped, number)
    return flipped * (np.bincount(seen.strata, minlength=number) - flipped)


def _observe(side: Sequence[Panel]) -> Iterator[Observations]:
    """What was seen of one model: the plain guesses, then every metric in every layer group; runs of other seeds are strata."""
    if not all("agreement" in panel.output and panel.values for panel in side):
        return
    variants = side[0].variants
    for values, name in ((None, CORRUPTION_ALONE), ([panel.confidence for panel in side], CLEAN_CONFIDENCE)):
        if values is None:
            given = [np.zeros(panel.output["agreement"].shape) for panel in side]
        else:
            given = [np.repeat(part[:, None], len(variants), 1) for part in values]
        seen = _joined(side, name, OUTPUT, given)
        if seen is not None and values is None:
            flips = np.bincount(seen.strata, seen.flipped) / np.maximum(np.bincount(seen.strata), 1)
            seen = seen._replace(values=flips[seen.strata])
        if seen is not None:
            yield seen
    clean = variants.index(CLEAN_VARIANT) if CLEAN_VARIANT in variants else None
    for metric, row in CATALOGUE.items():
        if not all(metric in panel.values for panel in side) or (row.group != "stability" and clean is None):
            continue
        for group in LAYER_GROUPS:
            if not side[0].layer_group(group):
                continue
            means = over_layers(side, [panel.values[metric] for panel in side], group)
            if row.group != "stability" and clean is not None:
                means = [np.repeat(part[:, [clean]], part.shape[1], axis=1) for part in means]
            seen = _joined(side, metric, group, means)
            if seen is not None:
                yield seen


def _joined(side: Sequence[Panel], metric: str, layers: str, values: Sequence[Array]) -> Observations | None:
    """Values beside flips of the corrupted images of all runs of a model; None where there is nothing."""
    found = []
    for number, (panel, part) in enumerate(zip(side, values, strict=True)):
        corrupted = np.array(panel.corrupted, np.int64)
        changed = 1 - panel.output["agreement"][:, corrupted]
        usual = 0.5 if panel.pixels is None else _median(changed)
        known = ~np.isnan(part[:, corrupted]) & ~np.isnan(changed)
        images, places = np.nonzero(known)
        variants = corrupted[places]
        lost = changed[known]
        found.append((part[:, corrupted][known], lost, lost > usual, images, number * len(panel.variants) + variants, variants))
    joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    return Observations(metric, layers, *joined) if len(joined[0]) else None


def _median(values: Array) -> float:
    """Without NaN; NaN where there is nothing else."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else np.nan
