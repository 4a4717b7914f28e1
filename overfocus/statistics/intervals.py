"""95 % intervals that keep their level on few images, and two-sided tests that answer the same question as the intervals.

| estimate | interval |
| --- | --- |
| mean of a continuous value, or of its paired difference | Student's t |
| rate, the mean of a 0/1 outcome | Wilson's score; of several outcomes for each image, with their effective number |
| difference of two rates on the same images | Newcombe's method 10: the arms of both Wilson intervals with their correlation |
| ratio of two means, and mIoU of a set | percentile bootstrap over images, its quantiles widened to those of Student's t |

| difference of | test |
| --- | --- |
| means | sign flips: each image's difference may as well have the other sign |
| outcomes 0 or 1, one for each image | McNemar's exact test, which is the same with the binomial distribution |
| ratios of means | swaps: each image's numbers may as well belong to the other model |

The image is the unit everywhere: several outcomes on one image are never counted as independent. All sign patterns are tried
where there are few images that differ, else 10,000 drawn ones. Below what these can resolve, the p-value is that of Student's t
for the same differences, never below that of the single most extreme pattern.

Sources: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927; R. G. Newcombe,
"Improved confidence intervals for the difference between binomial proportions based on paired data", Statistics in Medicine 17,
1998; E. L. Korn & B. I. Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated
from survey data", Survey Methodology 24, 1998 (effective number); T. C. Hesterberg, "What teachers should know about the
bootstrap", The American Statistician 69, 2015 (widened percentiles); R. A. Fisher, The Design of Experiments, 1935, section 21;
B. Phipson & G. K. Smyth, "Permutation p-values should never be zero", Statistical Applications in Genetics and Molecular
Biology 9, 2010; Q. McNemar, Psychometrika 12, 1947; S. Holm, "A simple sequentially rejective multiple test procedure",
Scandinavian Journal of Statistics 6, 1979.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import special

from overfocus.metrics.catalogue import CATALOGUE

Array = np.ndarray[Any, Any]
CONFIDENCE = 0.95
_COUNTS_PER_BLOCK = 2**22
_COLUMNS_PER_BLOCK = 512
_NOISE = 1e-6
"""What single precision leaves, relative to the size of the values, of a difference that is exactly zero."""


class Ends(NamedTuple):
    """Lower and upper ends of 95 % intervals, one entry per column; NaN if there is none."""

    low: Float[np.ndarray, "columns"]
    high: Float[np.ndarray, "columns"]


@dataclass(frozen=True)
class Interval:
    """Mean over images and its 95 % interval; the interval is NaN for a single image, all of it where nothing is defined."""

    mean: float
    low: float
    high: float
    count: int
    """Values that the mean rests on."""
    skipped: int
    """Values that were undefined (NaN) and left out."""

    def __bool__(self) -> bool:
        """Whether there is a mean at all."""
        return not math.isnan(self.mean)


def interval_of(values: "pd.Series[float]", name: str) -> Interval:
    """Mean and interval of metric `name`, given once per image: Wilson's of a rate, else Student's t within the metric's range.

    >>> interval_of(pd.Series([1.0, 2.0, 3.0]), "max_ratio").mean
    2.0
    """
    known = values.to_numpy("float64", na_value=np.nan)
    known = known[~np.isnan(known)]
    mean = float(known.mean()) if len(known) else math.nan
    ends = rate_interval(known[:, None]) if is_rate(name, known) else mean_interval(known[:, None])
    low, high = float(ends.low[0]), float(ends.high[0])
    if not is_rate(name, known):
        lowest, highest = value_range(name)
        low, high = max(low, lowest), min(high, highest)
    return Interval(mean, low, high, len(known), len(values) - len(known))


def is_rate(name: str, values: Array) -> bool:
    """Whether a metric's values are outcomes, 0 or 1: those of a prediction that is right or wrong, kept or changed."""
    metric = CATALOGUE.get(name)
    if metric is None or metric.group != "prediction" or value_range(name) != (0.0, 1.0):
        return False
    known = values[~np.isnan(values)]
    return len(known) > 0 and bool(((known == 0) | (known == 1)).all())


def value_range(name: str) -> tuple[float, float]:
    """Smallest and largest value of a metric as the catalogue has them; infinite where it names none that is a number.

    >>> value_range("rank_correlation")
    (-1.0, 1.0)
    """
    metric = CATALOGUE.get(name)
    low, high = (metric.lowest.number, metric.highest.number) if metric else (math.nan, math.nan)
    return (-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)


@cache
def quantile(units: int) -> float:
    """Standard errors that a 95 % interval reaches to either side: Student's t for this many independent units; NaN below 2."""
    return float(student_reach(units - 1)) if units > 1 else math.nan


def student_reach(freedom: Any) -> Any:
    """Bound that |t| of Student's t stays within in 95 % of cases, for each number of degrees of freedom; NaN at 0 and below.

    Of the shape of `freedom`, a number or an array.
    """
    return special.stdtrit(freedom, 0.5 + CONFIDENCE / 2)


def student_p(statistic: Any, freedom: Any) -> Any:
    """Two-sided p-values of values of Student's t, 0 … 1; numbers or arrays, which are broadcast."""
    return 2 * special.stdtr(freedom, -np.abs(statistic))


_NORMAL = float(special.ndtri(0.5 + CONFIDENCE / 2))


def half_width(deviation: Array, count: Int[np.ndarray, "columns"]) -> Array:
    """Half the width of Student's t interval of means, from standard deviations (n − 1) and counts; NaN below two values."""
    with np.errstate(invalid="ignore", divide="ignore"):
        width: Array = student_reach(count - 1) * deviation / np.sqrt(count)
    return width


def mean_and_error(values: Float[np.ndarray, "images columns"]) -> tuple[Array, Array, Array]:
    """Mean, its standard error (NaN below two values) and number of values of each column, NaN left out."""
    known = ~np.isnan(values)
    count = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0).sum(0) / count
        variance = (np.where(known, values - mean, 0) ** 2).sum(0) / np.where(count > 1, count - 1, np.nan)
        return mean, np.sqrt(variance / count), count


def mean_interval(values: Float[np.ndarray, "images columns"]) -> Ends:
    """Student's t interval of the mean of each column, NaN left out; NaN for a column of fewer than two values."""
    mean, error, count = mean_and_error(values)
    half = half_width(error * np.sqrt(count), count)
    return Ends(mean - half, mean + half)


def rate_interval(rates: Float[np.ndarray, "images columns"], trials: Int[np.ndarray, "images columns"] | None = None) -> Ends:
    """Wilson's score interval of the mean of each column; never of zero width, NaN for a column without values.

    `rates` are shares of outcomes per image, `trials` how many outcomes each of them rests on (1 unless given). Outcomes on one
    image resemble each other, so that they count as their effective number, which lies between the number of images and that
    of outcomes: p(1 − p) over the squared standard error of the mean over images.

    >>> rate_interval(np.ones((20, 1))).low.round(2)
    array([0.84])
    """
    mean, error, count = mean_and_error(rates)
    images = count.astype(np.float64)
    size = images
    if trials is not None:
        outcomes = np.where(np.isnan(rates), 0, trials).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.array([_NORMAL / quantile(int(number)) if number > 1 else 1.0 for number in count])
            effective = mean * (1 - mean) / error**2 * scale**2
        # Where all images agree on 0 or 1 nothing tells whether their outcomes are independent: each image counts once.
        size = np.where(np.isfinite(effective), np.clip(effective, images, np.maximum(outcomes, images)), images)
    with np.errstate(invalid="ignore", divide="ignore"):
        squared = _NORMAL**2 / size
        centre = (mean + squared / 2) / (1 + squared)
        half = np.sqrt(squared) * np.sqrt(mean * (1 - mean) + squared / 4) / (1 + squared)
    return Ends(np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1))


def rate_difference_interval(
    rates: Float[np.ndarray, "images columns"],
    others: Float[np.ndarray, "images columns"],
    trials: Int[np.ndarray, "images columns"] | None = None,
) -> Ends:
    """Newcombe's interval of the difference of two rates on the same images; never of zero width.

    Images that lack either are left out. NaN for a column without values.
    """
    unknown = np.isnan(rates) | np.isnan(others)
    first, second = (np.where(unknown, np.nan, part) for part in (rates, others))
    (mean, _, count), (other, _, _) = mean_and_error(first), mean_and_error(second)
    low, high = rate_interval(first, trials)
    other_low, other_high = rate_interval(second, trials)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviations = [np.where(unknown, 0, part - centre) for part, centre in ((first, mean), (second, other))]
        covariance = (deviations[0] * deviations[1]).sum(0) / count
        size = np.sqrt((deviations[0] ** 2).sum(0) * (deviations[1] ** 2).sum(0)) / count
        # Newcombe takes half an image off a positive correlation, which a small sample exaggerates.
        shrunk = np.where(covariance > 0, np.maximum(covariance - 0.5 / count, 0), covariance)
        correlation = np.where(size > 0, shrunk / size, 0)
        down, up, other_down, other_up = mean - low, high - mean, other - other_low, other_high - other
        below = np.sqrt(np.maximum(down**2 - 2 * correlation * down * other_up + other_up**2, 0))
        above = np.sqrt(np.maximum(up**2 - 2 * correlation * up * other_down + other_down**2, 0))
    return Ends(mean - other - below, mean - other + above)


def ratio_difference_interval(
    numerators: Float[np.ndarray, "images columns"],
    denominators: Float[np.ndarray, "images columns"],
    other_numerators: Float[np.ndarray, "images columns"] | None = None,
    other_denominators: Float[np.ndarray, "images columns"] | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Ends:
    """Interval of each column's ratio of means, minus the other ratio where one is given.

    Bootstrap over images: what was measured on an image, numerators and denominators of both, is drawn together. Images that
    lack any of them are left out of a column. NaN for fewer than two images.

    Raises:
        ValueError: `resamples` is below 1.
    """
    given = [numerators, denominators, other_numerators, other_denominators]
    parts = [part for part in given if part is not None]
    known = ~np.isnan(np.stack(parts)).any(0)
    count = known.sum(0)
    ends = Ends(*np.full((2, numerators.shape[1]), np.nan))
    for start in range(0, numerators.shape[1], _COLUMNS_PER_BLOCK):
        block = slice(start, start + _COLUMNS_PER_BLOCK)
        sums = np.zeros((len(parts), known[:, block].shape[1], resamples), np.float32)
        filled = [np.where(known[:, block], part[:, block], 0).astype(np.float32) for part in parts]
        done = 0
        for counts in resample_counts(len(numerators), resamples, seed):
            drawn = slice(done, done + len(counts))
            for place, values in enumerate(filled):
                sums[place][:, drawn] = values.T @ counts.T
            done = drawn.stop
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = sums[0] / sums[1]
            if len(parts) > 2:
                ratios = ratios - sums[2] / sums[3]
        for units in np.unique(count[block]):
            alike = np.flatnonzero(count[block] == units)
            ends.low[start + alike], ends.high[start + alike] = widened_quantiles(ratios[alike], int(units))
    for end in ends:
        end[np.abs(end) < _NOISE] = 0
    return ends


def widened_quantiles(values: Float[np.ndarray, "columns resamples"], units: int) -> Ends:
    """Ends of percentile intervals from bootstrap estimates, widened for the number of independent units; NaN below two.

    The bootstrap draws from a sample whose variance is (n − 1)/n of the population's and knows nothing of Student's t: the
    quantiles are those that make the interval of a mean of normal values as wide as Student's.
    """
    found = np.full((2, len(values)), np.nan)
    if units > 1:
        tail = float(special.ndtr(-math.sqrt(units / (units - 1)) * quantile(units)))
        finite = np.isfinite(values)
        whole, holes = finite.all(1), ~finite.all(1) & finite.any(1)
        found[:, whole] = np.quantile(values[whole], [tail, 1 - tail], axis=1)
        for column in np.flatnonzero(holes):  # resamples that drew no value
            found[:, column] = np.quantile(values[column][finite[column]], [tail, 1 - tail])
    return Ends(found[0], found[1])


def resample_counts(images: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "block images"]]:
    """How often each resample draws each image, in blocks of resamples; the numbers depend on `seed` and `images` alone.

    Raises:
        ValueError: `resamples` is below 1.
    """
    if resamples < 1:
        raise ValueError(f"expected at least 1 resample, got {resamples}; 10,000 is usual")
    random = np.random.default_rng(seed)
    step = max(1, _COUNTS_PER_BLOCK // images)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = random.integers(0, images, (rows, images)) + np.arange(rows)[:, None] * images
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float32)


FEW = 13
"""Up to this many images that differ all sign patterns are tried: 2¹³ of them."""
_DRAWS = 10_000
_RESOLVED = 0.002
"""Smallest p-value that is read off the drawn patterns."""
_TIES = 1e-5
"""Sums nearer than this share of the largest possible one are equal: single precision resolves no more."""
_ENTRIES_PER_BLOCK = 2**22


def sign_flip_test(differences: Float[np.ndarray, "images columns"], *, seed: int = 0) -> Float[np.ndarray, "columns"]:
    """p-value of the mean of each column under flips of sign; NaN left out, 1 where nothing differs, NaN below two values.

    >>> float(sign_flip_test(np.array([[1.0], [2.0], [0.5], [3.0]]))[0])  # the most extreme of 16 patterns, and its mirror
    0.125
    """
    zero = np.zeros_like(differences)
    return _flip_test(differences, zero, differences, zero + 1, seed)


def ratio_swap_test(
    numerators: Float[np.ndarray, "images columns"],
    denominators: Float[np.ndarray, "images columns"],
    other_numerators: Float[np.ndarray, "images columns"],
    other_denominators: Float[np.ndarray, "images columns"],
    *,
    seed: int = 0,
) -> Float[np.ndarray, "columns"]:
    """p-value of the difference of two ratios of means, the two models' numbers swapped image by image.

    Each model's numbers are taken in units of its own mean denominator, which leaves the ratios as they are: else a swap would
    mostly exchange the models' scales and say nothing about ratios. Images that lack any of the four are left out of a column.
    NaN below two images.
    """
    unknown = np.isnan(numerators + denominators + other_numerators + other_denominators)
    first, below, second, other_below = (
        np.where(unknown, np.nan, part) for part in (numerators, denominators, other_numerators, other_denominators)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        scale, other_scale = (mean_and_error(part)[0] for part in (below, other_below))
        first, below, second, other_below = first / scale, below / scale, second / other_scale, other_below / other_scale
    return _flip_test((first - second) / 2, (below - other_below) / 2, (first + second) / 2, (below + other_below) / 2, seed)


def mcnemar_test(
    outcomes: Float[np.ndarray, "images columns"], others: Float[np.ndarray, "images columns"]
) -> Float[np.ndarray, "columns"]:
    """McNemar's exact p-value for outcomes 0 or 1; 1 where nothing differs, NaN below two images."""
    difference = outcomes - others
    gained, lost = (difference > 0).sum(0), (difference < 0).sum(0)
    p_values = np.minimum(2 * special.bdtr(np.minimum(gained, lost), gained + lost, 0.5), 1.0)
    return np.where((~np.isnan(difference)).sum(0) > 1, p_values, np.nan)


def holm(p_values: Float[np.ndarray, "tests"]) -> Float[np.ndarray, "tests"]:
    """p-values adjusted so that the chance of even one false finding among all tests stays below the level; NaN stay NaN.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: int((~np.isnan(p_values)).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return adjusted


def _flip_test(top: Array, bottom: Array, top_middle: Array, bottom_middle: Array, seed: int) -> Array:
    """Tests Σ(m + s·d)/Σ(m' + s·d') − Σ(m − s·d)/Σ(m' − s·d') against the same under signs s = ±1.

    With d' = 0 and m' = 1 this is twice the mean of d; with halves of differences and sums it is the difference of two ratios.
    """
    known = ~np.isnan(top)
    count = known.sum(0)
    parts = [np.where(known, part, 0) for part in (top, bottom, top_middle, bottom_middle)]
    moves = (parts[0] != 0) | (parts[1] != 0)
    p_values = np.where(count > 1, 1.0, np.nan)
    differing = moves.sum(0)
    few = np.flatnonzero((count > 1) & (differing > 0) & (differing <= FEW))
    alike: dict[bytes, list[int]] = {}
    for column in few:  # columns in which the same images differ share their patterns; few images share them in any case
        rows = moves[:, column] if len(moves) > FEW else np.ones(len(moves), bool)
        alike.setdefault(rows.tobytes(), []).append(int(column))
    for key, columns in alike.items():
        rows = np.frombuffer(key, bool)
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=int(rows.sum()))))
        sums = [signs @ part[rows][:, columns] for part in parts[:2]]
        middles = [part[:, columns].sum(0) for part in parts[2:]]
        found = _statistic(sums[0], sums[1], middles[0], middles[1])  # the first pattern is the observed one
        p_values[columns] = (found >= found[0] - 1e-9 * found.max(0)).mean(0)
    many = np.flatnonzero((count > 1) & (differing > FEW))
    for start in range(0, len(many), _COLUMNS_PER_BLOCK):
        block = many[start : start + _COLUMNS_PER_BLOCK]
        some = [part[:, block] for part in parts]
        p_values[block] = _drawn(some[0], some[1], some[2], some[3], differing[block], seed)
    return p_values


def _statistic(top: Array, bottom: Array, top_middle: Array, bottom_middle: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.abs((top_middle + top) / (bottom_middle + bottom) - (top_middle - top) / (bottom_middle - bottom))
    return found


def _drawn(top: Array, bottom: Array, top_middle: Array, bottom_middle: Array, differing: Array, seed: int) -> Array:
    """p-values from drawn sign patterns, and from Student's t of the linearised differences where these do not resolve them."""
    middles = top_middle.sum(0), bottom_middle.sum(0)
    observed = _statistic(top.sum(0), bottom.sum(0), *middles)
    slack = _TIES * _statistic(np.abs(top).sum(0), np.zeros(top.shape[1]), *middles)
    extreme = np.zeros(top.shape[1])
    narrow = top.astype(np.float32), bottom.astype(np.float32)
    constant = not bottom.any()
    for signs in _signs(len(top), seed):
        sums = signs @ narrow[0], np.zeros(1) if constant else signs @ narrow[1]
        extreme += (_statistic(sums[0], sums[1], *middles) >= observed - slack).sum(0)
    p_values = (extreme + 1) / (_DRAWS + 1)
    ratio = middles[0] / middles[1] if not constant else np.zeros(top.shape[1])
    moving = (top != 0) | (bottom != 0)
    mean, error, count = mean_and_error(np.where(moving, top - ratio * bottom, np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        student = student_p(mean / error, count - 1)
    finest = np.maximum(np.nan_to_num(student, nan=0.0), 2.0 ** (1.0 - differing))
    result: Array = np.where(p_values < _RESOLVED, np.minimum(p_values, finest), p_values)
    return result


def _signs(images: int, seed: int) -> Iterable[Float[np.ndarray, "block images"]]:
    """Random signs in blocks of patterns; they depend on `seed` and `images` alone. Those of few images are kept."""
    return _kept_signs(images, seed) if images * _DRAWS <= _ENTRIES_PER_BLOCK else _drawn_signs(images, seed)


@lru_cache(maxsize=2)
def _kept_signs(images: int, seed: int) -> list[Float[np.ndarray, "block images"]]:
    return list(_drawn_signs(images, seed))


def _drawn_signs(images: int, seed: int) -> Iterator[Float[np.ndarray, "block images"]]:
    random = np.random.default_rng(seed)
    step = max(1, _ENTRIES_PER_BLOCK // images)
    for start in range(0, _DRAWS, step):
        yield random.integers(0, 2, (min(step, _DRAWS - start), images)).astype(np.float32) * 2 - 1
