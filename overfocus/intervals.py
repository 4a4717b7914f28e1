"""The mean of one value per image with its 95 % interval, and the range that a metric cannot leave."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from overfocus.metrics.catalogue import CATALOGUE

Array = npt.NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean over images and its 95 % t interval; the interval is NaN for a single image, all of it where nothing is defined."""

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
    """Mean and interval of metric `name`, given once per image.

    >>> interval_of(pd.Series([1.0, 2.0, 3.0]), "max_ratio").mean
    2.0
    """
    known = values.to_numpy("float64")
    known = known[~np.isnan(known)]
    mean = float(known.mean()) if len(known) else math.nan
    half = float(half_width(known.std(ddof=1), np.array(len(known)))) if len(known) > 1 else math.nan
    lowest, highest = value_range(name)
    return Interval(mean, max(mean - half, lowest), min(mean + half, highest), len(known), len(values) - len(known))


def half_width(deviation: Array, count: npt.NDArray[np.int64]) -> Array:
    """Half the width of Student's t interval of means, from standard deviations (n − 1) and counts; NaN below two values."""
    with np.errstate(invalid="ignore", divide="ignore"):
        width: Array = stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * deviation / np.sqrt(count)
    return width


def value_range(name: str) -> tuple[float, float]:
    """Smallest and largest value of a metric as the catalogue has them; infinite where it names none that is a number.

    >>> value_range("rank_correlation")
    (-1.0, 1.0)
    """
    metric = CATALOGUE.get(name)
    low, high = (metric.lowest.number, metric.highest.number) if metric else (math.nan, math.nan)
    return (-math.inf if math.isnan(low) else low, math.inf if math.isnan(high) else high)
