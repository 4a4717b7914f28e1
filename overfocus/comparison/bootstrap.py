"""Bootstrap intervals of means over images, for many columns at once.

A resample of n images is a vector of counts that sum to n, so that the means of all columns over a block of resamples are one
matrix product. All columns share the resamples: what happened to an image stays together.

Source: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979; percentile intervals.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from overfocus.intervals import CONFIDENCE

_COUNTS_PER_BLOCK = 2**22
_COLUMNS_PER_BLOCK = 1024

Array = np.ndarray[Any, Any]


def bootstrap_intervals(
    values: Float[np.ndarray, "images columns"], *, resamples: int = 10_000, seed: int = 0
) -> tuple[Float[np.ndarray, "columns"], Float[np.ndarray, "columns"]]:
    """Lower and upper end of the 95 % percentile interval of each column's mean over images.

    NaN are left out of a column: each resample takes the mean over the values that it drew. Both ends are NaN for a column of
    fewer than two values.

    Raises:
        ValueError: `resamples` is below 1.
    """
    if resamples < 1:
        raise ValueError(f"expected at least 1 resample, got {resamples}; 10,000 is usual")
    known = ~np.isnan(values)
    columns = np.flatnonzero(known.sum(0) > 1)
    low, high = np.full((2, values.shape[1]), np.nan)
    for start in range(0, len(columns), _COLUMNS_PER_BLOCK):
        block = columns[start : start + _COLUMNS_PER_BLOCK]
        means = _resampled_means(values[:, block], known[:, block], resamples, seed)
        tail = (1 - CONFIDENCE) / 2
        ends = np.quantile(means, [tail, 1 - tail], axis=1)
        holes = np.isnan(ends[0])  # of resamples that drew no value
        if holes.any():
            ends[:, holes] = np.nanquantile(means[holes], [tail, 1 - tail], axis=1)
        # What single precision leaves of an exact zero must not look like a side of it.
        ends[np.abs(ends) < 1e-6 * np.nanmax(np.abs(values[:, block]), axis=0)] = 0
        low[block], high[block] = ends
    return low, high


def _resampled_means(values: Array, known: Array, resamples: int, seed: int) -> Array:
    """Mean of each column in each resample, (columns, resamples); NaN where a resample drew no value."""
    count = known.sum(0)
    centre = np.where(known, values, 0).sum(0) / count
    # Single precision is twice as fast and, on values around zero that differ in size by a factor per column, exact enough.
    centred = np.where(known, values - centre, 0)
    size = np.abs(centred).max(0)
    size[size == 0] = 1
    scaled = (centred / size).astype(np.float32)
    incomplete = np.flatnonzero(count < len(values))
    present = known[:, incomplete].astype(np.float32)
    means = np.empty((values.shape[1], resamples), np.float32)
    done = 0
    for counts in resample_counts(len(values), resamples, seed):
        drawn = slice(done, done + len(counts))
        means[:, drawn] = scaled.T @ counts.T
        if len(incomplete):
            with np.errstate(invalid="ignore", divide="ignore"):
                means[incomplete, drawn] /= present.T @ counts.T
        done = drawn.stop
    complete = np.flatnonzero(count == len(values))
    means[complete] /= len(values)
    back: Array = means * size[:, None] + centre[:, None]
    return back


def resample_counts(images: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "block images"]]:
    """How often each resample draws each image, in blocks of resamples; the numbers depend on `seed` and `images` alone."""
    random = np.random.default_rng(seed)
    step = max(1, _COUNTS_PER_BLOCK // images)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = random.integers(0, images, (rows, images)) + np.arange(rows)[:, None] * images
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float32)
