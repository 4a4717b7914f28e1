"""Means over images of a run's metrics, with their 95 % intervals."""

import numpy as np
import pandas as pd

from overfocus.intervals import half_width
from overfocus.metrics.catalogue import CATALOGUE


def summarise_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row per corruption × severity × layer × metric, in the table's order: mean, 95 % interval, count, skipped.

    `low` and `high` are the ends of Student's t interval of the mean over images; NaN where there are fewer than two.
    """
    metrics = [name for name in CATALOGUE if name in table.columns]
    keys = ["corruption", "severity", "layer", "module", "kind"]
    if "head" in table.columns:
        table = table.groupby(["image", *keys], sort=False)[metrics].mean().reset_index()
    groups = table.groupby(keys, sort=False)[metrics]
    mean, deviation, counted = groups.mean(), groups.std(), groups.count()
    count = counted.to_numpy().ravel()
    half = half_width(deviation.to_numpy().ravel(), count)
    summary = mean.index.to_frame(index=False).loc[lambda frame: frame.index.repeat(len(metrics))].reset_index(drop=True)
    centre = mean.to_numpy().ravel()
    return summary.assign(
        metric=np.tile(metrics, len(mean)),
        mean=centre,
        low=centre - half,
        high=centre + half,
        count=count,
        skipped=np.repeat(groups.size().to_numpy(), len(metrics)) - count,
    )
