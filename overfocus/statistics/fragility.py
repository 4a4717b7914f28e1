"""What tells that a prediction flips under corruption: each metric within corruption × severity, and beside it the plain guesses.

Corruptions differ in strength, so that pooled over them whatever grows with strength tells flips well, even a number that only
knows which corruption it was. The headline is therefore the association *within* strata of corruption × severity, averaged with
the weights flipped × kept, with the image as cluster; the pooled one, that of the corruption alone and that of the confidence on
the clean image stand beside it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from overfocus.metrics.catalogue import CATALOGUE
from overfocus.statistics.association import auroc, share, spearman
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
    """One row per model × metric × layers × corruption × severity: does the metric tell which predictions flip.

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
