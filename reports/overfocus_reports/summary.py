"""A run in a few numbers and sentences: the one source of what the report's first lines and the terminal's table say."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from overfocus.figures.layers import Layer, layers_of
from overfocus.figures.variants import CLEAN, Variant, variants_of
from overfocus.intervals import Interval, interval_of
from overfocus.metrics.catalogue import CATALOGUE
from overfocus_reports.key_figures import KeyFigure, key_figures_of
from overfocus_reports.segmentation import set_scores
from overfocus_reports.sentences import sentences_of

if TYPE_CHECKING:
    from overfocus.run import Run

CONCENTRATION = ("top_share", "max_ratio", "gini", "effective_tokens")
NORMS = ("norm_ratio", "outlier_share", "outlier_received")
STABILITY = tuple(name for name, metric in CATALOGUE.items() if metric.group == "stability")
PREDICTION = ("agreement", "confidence_drop", "correct", "output_cosine", "image_iou")


@dataclass(frozen=True)
class LayerSummary:
    """How concentrated the attention of one layer is on clean images."""

    layer: Layer
    concentration: dict[str, Interval]
    """top_share, max_ratio, gini and effective_tokens, over images."""
    norms: dict[str, Interval]
    """norm_ratio, outlier_share and outlier_received, over images; NaN where the run holds none."""

    @property
    def uniform_share(self) -> float:
        """top_share of uniform attention, k/N."""
        return self.layer.uniform_share

    @property
    def excess(self) -> float:
        """What layers are ranked by."""
        return self.layer.excess(self.concentration["top_share"].mean)


@dataclass(frozen=True)
class Survival:
    """What is left of the attention, and of the prediction, under one corruption at one severity."""

    variant: Variant
    stability: dict[str, Interval]
    """The five stability metrics: over images, each image averaged over layers first."""
    prediction: dict[str, Interval]
    """agreement, confidence_drop, correct, output_cosine and image_iou, over images; NaN where the model or the labels give
    none."""
    set_iou: float
    """Of segmentation: mIoU of all images together; NaN without masks."""
    chance: float
    """top_overlap of a random choice of tokens, k/N averaged over layers."""
    weakest_layer: Layer | None
    """The layer with the largest mean received_shift."""


@dataclass(frozen=True)
class Summary:
    """A run in a few numbers and sentences."""

    model: str
    images: int
    skipped_images: int
    layers: tuple[LayerSummary, ...]
    """In the order in which the model called them."""
    survival: tuple[Survival, ...]
    """In the order that was asked for, severities rising."""
    clean_accuracy: Interval
    segmented: bool = False
    """Whether predictions are classes of pixels: agreement and correct are shares of an image's pixels then."""
    clean_iou: float = math.nan
    """Of segmentation: mIoU of all clean images together; NaN without masks."""
    sentences: tuple[str, ...] = ()

    @property
    def ranked(self) -> list[LayerSummary]:
        """The layers, the most overfocused first; those without a value are left out."""
        known = [row for row in self.layers if row.excess == row.excess]
        return sorted(known, key=lambda row: -row.excess)

    @property
    def key_figures(self) -> list[KeyFigure]:
        """The few numbers to look at first."""
        return key_figures_of(self)


def summarise(run: "Run") -> Summary:
    """Sum a run up: which layers overfocus most, how much of the top-k and of the predictions survives each corruption.

    Raises:
        RunError: the run holds no rows yet.
    """
    layers, variants, table = layers_of(run), variants_of(run), run.table
    names = [*CONCENTRATION, *NORMS]
    rows = table[table["severity"] == CLEAN.severity]
    clean = rows.groupby(["layer", "image"], sort=False)[[name for name in names if name in table]].mean().reindex(columns=names)
    scores = set_scores(run) if run.segmented else pd.Series(dtype="float64")
    summary = Summary(
        model=run.model,
        images=int(table["image"].nunique()),
        skipped_images=len(run.skipped),
        layers=tuple(
            LayerSummary(
                layer,
                {name: interval_of(clean.loc[layer.number][name], name) for name in CONCENTRATION},
                {name: interval_of(clean.loc[layer.number][name], name) for name in NORMS},
            )
            for layer in layers
        ),
        survival=survival_of(run, variants[1:], layers, scores),
        clean_accuracy=prediction_intervals(run.predictions, CLEAN)["correct"],
        segmented=run.segmented,
        clean_iou=float(scores.get((CLEAN.corruption, CLEAN.severity), math.nan)),
    )
    return replace(summary, sentences=tuple(sentences_of(summary)))


def survival_of(run: "Run", variants: list[Variant], layers: list[Layer], scores: "pd.Series[float]") -> tuple[Survival, ...]:
    """One row per corruption and severity; `scores` are the mIoU of segmentation."""
    chance = sum(layer.top / layer.tokens for layer in layers) / len(layers)
    by_number = {layer.number: layer for layer in layers}
    groups: dict[Any, pd.DataFrame] = dict(iter(run.table.groupby(["corruption", "severity"], sort=False)))
    rows = []
    for variant in variants:
        measured = groups[variant.corruption, variant.severity]
        per_image = measured.groupby("image", sort=False)[list(STABILITY)].mean()
        shift = measured.groupby("layer")["received_shift"].mean().dropna()
        rows.append(
            Survival(
                variant=variant,
                stability={name: interval_of(per_image[name], name) for name in STABILITY},
                prediction=prediction_intervals(run.predictions, variant),
                set_iou=float(scores.get((variant.corruption, variant.severity), math.nan)),
                chance=chance,
                weakest_layer=by_number[int(shift.index[int(shift.argmax())])] if len(shift) else None,
            )
        )
    return tuple(rows)


def prediction_intervals(predictions: pd.DataFrame, variant: Variant) -> dict[str, Interval]:
    """Mean and interval of every prediction metric for one corruption and severity."""
    rows = predictions[(predictions["corruption"] == variant.corruption) & (predictions["severity"] == variant.severity)]
    found = {name: rows[name] if name in rows else pd.Series(np.nan, rows.index) for name in PREDICTION}
    return {name: interval_of(pd.to_numeric(values).astype("Float64"), name) for name, values in found.items()}
