"""Does overfocusing explain fragility? How each metric goes with a prediction that flips under corruption."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from overfocus.comparison.alignment import CLEAN, Alignment
from overfocus.comparison.association import auroc, share, spearman
from overfocus.comparison.differences import EVERY
from overfocus.comparison.panel import OUTPUT, Panel, Variant
from overfocus.metrics.catalogue import CATALOGUE

Array = np.ndarray[Any, Any]

FRAGILITY_COLUMNS = (
    "model", "metric", "layers", "corruption", "severity", "spearman", "spearman_low", "spearman_high", "auroc", "auroc_low",
    "auroc_high", "flipped", "count",
)  # fmt: skip
RELIABILITY_COLUMNS = ("model", "metric", "layers", "bin", "value", "flip_rate", "low", "high", "flipped", "count")
MOST_BINS = 10
FEWEST_IMAGES_PER_BIN = 5


class Observations(NamedTuple):
    """A metric beside what became of the predictions, one entry per corrupted picture."""

    model: str
    metric: str
    layers: str
    variant: Variant
    values: Array
    lost: Array
    """1 where the predicted class differs from that of the clean image, else 0; of a segmentation model the share of pixels."""
    flipped: Array
    """Whether it differs; of a segmentation model, whether more pixels do than for its median corrupted picture."""
    images: Array
    """Number of the image."""


def tabulate_fragility(alignment: Alignment, names: Sequence[str]) -> pd.DataFrame:
    """One row per model × metric × layers × corruption × severity: does the metric tell which predictions flip.

    Metrics of one map are those of the clean image, metrics of stability those of the corrupted picture. `spearman` is the
    rank correlation of metric and flip (of a segmentation model, and the share of pixels that flip), `auroc` the chance that a
    picture whose prediction flipped has the higher value; both with 95 % intervals over images. `corruption` "all" (severity 0)
    takes all corrupted pictures together.
    """
    rows = []
    for model, panel in zip(names, alignment.panels, strict=True):
        for seen in _observe(model, panel, [*(variant for variant in panel.variants if variant != CLEAN), (EVERY, 0)]):
            rank = spearman(seen.values, seen.lost, seen.images)
            area = auroc(seen.values, seen.flipped, seen.images)
            identity = (seen.model, seen.metric, seen.layers, *seen.variant)
            rows.append((*identity, *rank, *area, int(seen.flipped.sum()), len(seen.values)))
    return pd.DataFrame(rows, columns=list(FRAGILITY_COLUMNS))


def tabulate_reliability(alignment: Alignment, names: Sequence[str]) -> pd.DataFrame:
    """How often predictions flip as a metric rises: all corrupted pictures in up to ten groups of equal size by its value.

    `value` is the mean of the metric in the group, `flip_rate` the share of flipped predictions with its 95 % interval.
    """
    bins = min(MOST_BINS, max(1, len(alignment.images) // FEWEST_IMAGES_PER_BIN))
    rows = []
    for model, panel in zip(names, alignment.panels, strict=True):
        for seen in _observe(model, panel, [(EVERY, 0)]):
            edges = np.unique(np.quantile(seen.values, np.linspace(0, 1, bins + 1)))
            number = np.clip(np.searchsorted(edges, seen.values, side="right") - 1, 0, max(0, len(edges) - 2))
            for place, group in enumerate(np.unique(number)):
                inside = number == group
                rate = share(seen.flipped[inside], seen.images[inside])
                identity = (seen.model, seen.metric, seen.layers, place, float(seen.values[inside].mean()))
                rows.append((*identity, *rate, int(seen.flipped[inside].sum()), int(inside.sum())))
    return pd.DataFrame(rows, columns=list(RELIABILITY_COLUMNS))


def _observe(model: str, panel: Panel, variants: Sequence[Variant]) -> Iterator[Observations]:
    agreement = panel.values.get(("agreement", OUTPUT))
    if agreement is None:
        return
    corrupted = [place for place, variant in enumerate(panel.variants) if variant != CLEAN]
    clean = panel.variants.index(CLEAN) if CLEAN in panel.variants else None
    changed = 1 - agreement
    usual = 0.5 if panel.pixels is None else _median(changed[:, corrupted])
    for (metric, layers), values in panel.values.items():
        described = CATALOGUE.get(metric)
        if layers == OUTPUT or described is None:
            continue
        if described.group != "stability":
            if clean is None:
                continue
            values = np.repeat(values[:, [clean]], values.shape[1], axis=1)
        for variant in variants:
            chosen = corrupted if variant == (EVERY, 0) else [panel.variants.index(variant)]
            known = ~np.isnan(values[:, chosen]) & ~np.isnan(agreement[:, chosen])
            if not known.any():
                continue
            images = np.nonzero(known)[0]
            lost = changed[:, chosen][known]
            yield Observations(model, metric, layers, variant, values[:, chosen][known], lost, lost > usual, images)


def _median(values: Array) -> float:
    """Without NaN; NaN where there is nothing else."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else np.nan
