"""The table of a comparison: every metric × layer group × version of the images × model, against the baseline."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from overfocus.comparison.alignment import CLEAN, Alignment
from overfocus.comparison.paired import PairedDifferences, holm, paired_differences
from overfocus.comparison.panel import LAYER_GROUPS, OUTPUT, Panel, mean_of_known
from overfocus.comparison.set_iou import MEAN_IOU, set_differences
from overfocus.metrics.catalogue import CATALOGUE

EVERY = "all"
"""Stands where a corruption would for the mean over all corruptions and severities; its severity is 0."""
COLUMNS = (
    "metric", "layers", "corruption", "severity", "model", "mean", "baseline_mean", "difference", "low", "high", "p_value",
    "p_adjusted", "effect_size", "count", "chance",
)  # fmt: skip


def tabulate_differences(alignment: Alignment, names: Sequence[str], *, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """One row per metric × layers × corruption × severity × model other than the baseline; rows without a value are left out.

    Of segmentation models, "mean_iou" is the mIoU of all images as one set, without a test; "image_iou" the mean of the images'
    own. Columns: those of `COLUMNS`; `p_adjusted` is Holm's over the rows of a metric, `chance` the level of an uninformed guess
    at `top_overlap`, NaN for other metrics.
    """
    baseline = alignment.panels[0]
    variants = [*alignment.variants, (EVERY, 0)]
    frames = []
    for model, panel in zip(names[1:], alignment.panels[1:], strict=True):
        keys = [key for key in _in_order(panel) if key in baseline.values]
        ours, theirs = (np.concatenate([_with_every(part, key) for key in keys], axis=1) for part in (panel, baseline))
        found = paired_differences(ours, theirs, resamples=resamples, seed=seed)
        frame = _frame([(*key, *variant, model) for key in keys for variant in variants], found)
        overlap = frame["metric"] == "top_overlap"
        frame["chance"] = frame["layers"].map(panel.chance).where(overlap).astype(float)
        frames.append(frame[frame["count"] > 0])
        if panel.pixels is not None and baseline.pixels is not None:
            every = _corrupted(panel)
            whole = set_differences(panel.pixels, baseline.pixels, every, resamples=resamples, seed=seed)
            frame = _frame([(MEAN_IOU, OUTPUT, *variant, model) for variant in variants], whole).assign(chance=np.nan)
            frames.append(frame[frame["count"] > 0])
    table = pd.concat(frames, ignore_index=True)
    adjusted = np.full(len(table), np.nan)
    for members in table.groupby("metric").indices.values():
        adjusted[members] = holm(table["p_value"].to_numpy()[members])
    table["p_adjusted"] = adjusted
    return _sorted(table[list(COLUMNS)], list(names[1:]))


def _frame(rows: list[tuple[object, ...]], found: PairedDifferences) -> pd.DataFrame:
    """Identities of rows beside their numbers."""
    frame = pd.DataFrame(rows, columns=["metric", "layers", "corruption", "severity", "model"])
    for name in ("mean", "baseline_mean", "difference", "low", "high", "p_value", "effect_size", "count"):
        frame[name] = getattr(found, name)
    return frame


def _corrupted(panel: Panel) -> list[int]:
    """Places of the versions that something was done to."""
    return [place for place, variant in enumerate(panel.variants) if variant != CLEAN]


def _in_order(panel: Panel) -> list[tuple[str, str]]:
    """(metric, layers) in the order of the catalogue."""
    metrics = list(dict.fromkeys([*CATALOGUE, *(metric for metric, _ in panel.values)]))
    groups = (*LAYER_GROUPS, OUTPUT)
    return sorted(panel.values, key=lambda key: (metrics.index(key[0]), groups.index(key[1])))


def _with_every(panel: Panel, key: tuple[str, str]) -> np.ndarray:
    """(images, variants + 1): the values, and each image's mean over its corrupted versions."""
    values = panel.values[key]
    return np.column_stack([values, mean_of_known(values[:, _corrupted(panel)], 1)])


def _sorted(table: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    """Models side by side within each metric × layers × version."""
    places = table.groupby(["metric", "layers", "corruption", "severity"], sort=False).ngroup()
    order = np.lexsort([table["model"].map(models.index), places])
    return table.iloc[order].reset_index(drop=True)
