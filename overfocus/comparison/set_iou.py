"""mIoU of a whole set, compared between two segmentation models.

It is no mean over images: intersections and unions are added up first. So the bootstrap draws images, adds up what it drew and
takes the mIoU of that, for both models from the same draw.
"""

from typing import Any

import numpy as np
from jaxtyping import Int

from overfocus.comparison.bootstrap import resample_counts
from overfocus.comparison.paired import PairedDifferences
from overfocus.intervals import CONFIDENCE
from overfocus.segmentation.scores import mean_iou

MEAN_IOU = "mean_iou"
"""What the metric is called in tables."""
_NOISE = 1e-6
"""What single precision leaves of a difference that is exactly zero."""

Array = np.ndarray[Any, Any]


def set_differences(
    model: Int[np.ndarray, "2 images variants classes"],
    baseline: Int[np.ndarray, "2 images variants classes"],
    every: list[int],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifferences:
    """One entry per variant, and a last one for the mean of the mIoU over the variants in `every`.

    Images without a mask, or that one of the two was not evaluated on, count for neither in a variant. There is no paired
    test of a number that has no value per image: p_value and effect_size are NaN.
    """
    known = (model[1].sum(-1) > 0) & (baseline[1].sum(-1) > 0)
    ours, theirs = (np.where(known[None, ..., None], part, 0) for part in (model, baseline))
    mean, baseline_mean = (_with_every(mean_iou(*part.sum(1)), every) for part in (ours, theirs))
    images, variants = known.shape
    low, high = np.full((2, variants + 1), np.nan)
    drawn = np.empty((variants, resamples), np.float32)
    done = 0
    for counts in resample_counts(images, resamples, seed):
        block = slice(done, done + len(counts))
        for variant in range(variants):
            found = [mean_iou(*(counts @ part[:, :, variant].astype(np.float32))) for part in (ours, theirs)]
            drawn[variant, block] = found[0] - found[1]
        done = block.stop
    count = known.sum(0)
    for place, values in enumerate([*drawn, drawn[every].mean(0) if every else np.full(resamples, np.nan)]):
        fewest = count[place] if place < variants else min(count[every], default=0)
        if fewest > 1:
            tail = (1 - CONFIDENCE) / 2
            low[place], high[place] = np.nanquantile(values, [tail, 1 - tail])
    for ends in (low, high):
        ends[np.abs(ends) < _NOISE] = 0
    undefined = np.full(variants + 1, np.nan)
    counted = np.append(count, min(count[every], default=0))
    return PairedDifferences(mean, baseline_mean, mean - baseline_mean, low, high, undefined, undefined, counted)


def _with_every(values: Array, every: list[int]) -> Array:
    return np.append(values, values[every].mean() if every else np.nan)
