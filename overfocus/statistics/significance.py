"""Two-sided tests of paired differences that answer the same question as the intervals, and Holm's adjustment.

| difference of | test |
| --- | --- |
| means | sign flips: each image's difference may as well have the other sign |
| outcomes 0 or 1, one for each image | McNemar's exact test, which is the same with the binomial distribution |
| ratios of means | swaps: each image's numbers may as well belong to the other model |

All sign patterns are tried where there are few images that differ, else 10,000 drawn ones. Below what these can resolve, the
p-value is that of Student's t for the same differences, never below that of the single most extreme pattern.

Sources: R. A. Fisher, The Design of Experiments, 1935, section 21; B. Phipson & G. K. Smyth, "Permutation p-values should never
be zero", 2010 (Statistical Applications in Genetics and Molecular Biology 9); Q. McNemar, Psychometrika 12, 1947; S. Holm, "A
simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
"""

import itertools
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from overfocus.statistics.intervals import mean_and_error

Array = np.ndarray[Any, Any]
FEW = 13
"""Up to this many images that differ all sign patterns are tried: 2¹³ of them."""
_DRAWS = 10_000
_RESOLVED = 0.002
"""Smallest p-value that is read off the drawn patterns."""
_TIES = 1e-5
"""Sums nearer than this share of the largest possible one are equal: single precision tells no more."""
_COLUMNS_PER_BLOCK = 512
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
    mostly exchange the models' scales and tell nothing of ratios. Images that lack any of the four are left out of a column. NaN
    below two images.
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
    p_values = np.minimum(2 * stats.binom.cdf(np.minimum(gained, lost), gained + lost, 0.5), 1.0)
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
        student = 2 * stats.t.sf(np.abs(mean) / error, count - 1)
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
