"""A run in a few numbers: the one source of what the report's first lines and the terminal's table say."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from overfocus.evaluation.results import measure_segmentation
from overfocus.metrics.catalogue import CATALOGUE
from overfocus.runs.description import Layer, MeasureEntry
from overfocus.statistics.intervals import Interval, interval_of
from overfocus.statistics.panel import EVERY, mean_of_known, read_panel
from overfocus.statistics.retained import retained_by_variant
from overfocus.statistics.verdicts import Overfocusing, judge_overfocusing
from overfocus.variants import CLEAN, CLEAN_VARIANT, Variant

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
class Retained:
    """What a metric of stability retains against the control: 1 as if not corrupted, 0 no more than another image."""

    control: float
    """Mean of the metric between two different clean images."""
    retained: float
    """NaN where undefined."""
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Survival:
    """What is left of the attention, and of the prediction, under one corruption at one severity."""

    variant: Variant
    stability: dict[str, Interval]
    """The metrics of stability: over images, each image averaged over layers first."""
    retained: dict[str, Retained]
    """The same against the control; empty where it was not measured."""
    prediction: dict[str, Interval]
    """agreement, confidence_drop, correct, output_cosine and image_iou, over images; NaN where the model or the labels give
    none."""
    set_iou: float
    """Of segmentation: mIoU of all images together; NaN without masks."""
    weakest_layer: Layer | None
    """The layer with the largest mean received_shift."""


@dataclass(frozen=True)
class CustomMeasure:
    """What a metric or probe of the user measured."""

    measure: MeasureEntry
    values: dict[Variant, Interval]
    """Over images by variant, each image averaged over layers first."""


@dataclass(frozen=True)
class KeyFigure:
    """One number in words."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Answer:
    """One of the questions that a run answers, as the first screen of the page shows it."""

    question: str
    answer: str
    """In a word or a number."""
    reason: str
    """In one sentence."""


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
    overfocusing: Overfocusing
    """Does it overfocus, by the rule of `overfocus.statistics.verdicts`."""
    retained: dict[str, Retained]
    """Over all corruptions and severities together; empty where nothing was corrupted or the control was not measured."""
    one_class: bool = False
    """Whether one class is predicted for every clean image: then nothing is known of whether predictions survive."""
    segmented: bool = False
    """Whether predictions are classes of pixels: agreement and correct are shares of an image's pixels then."""
    clean_iou: float = math.nan
    """Of segmentation: mIoU of all clean images together; NaN without masks."""
    sentences: tuple[str, ...] = ()
    """What the run says, in words."""
    answers: tuple[Answer, ...] = ()
    """The same in three lines: does attention overfocus, what is retained under corruption, do predictions follow."""
    key_figures: tuple[KeyFigure, ...] = ()
    """The few numbers to look at first."""
    custom: tuple[CustomMeasure, ...] = ()
    notes: tuple[str, ...] = ()
    """What was assumed or chosen when the checkpoint was loaded, and what a reader should know of the run; one line each."""
    lenient: bool = False
    """Whether the model was loaded although tensors of its trunk were missing or left over: the first note says which."""

    @property
    def ranked(self) -> list[LayerSummary]:
        """The layers, the most overfocused first; those without a value are left out."""
        known = [row for row in self.layers if row.excess == row.excess]
        return sorted(known, key=lambda row: -row.excess)


def summary_numbers(run: "Run") -> Summary:
    """The numbers of a run, without words.

    Raises:
        RunError: the run holds no rows yet.
    """
    layers, variants, cells = run.description.layers, run.variants, run.cells
    names = [*CONCENTRATION, *NORMS]
    clean = {name: cells.of(name, CLEAN_VARIANT) if name in cells else None for name in names}
    scores = set_scores(run) if run.segmented else pd.Series(dtype="float64")
    predictions = run.predictions
    predicted = predictions.loc[predictions["corruption"] == CLEAN, "predicted"].dropna()
    kept = retained_by_variant(read_panel(run))

    def interval(name: str, place: int) -> Interval:
        values = clean[name]
        images = int(cells.present[:, cells.variants.index(CLEAN_VARIANT)].sum())
        return interval_of(pd.Series(np.full(images, np.nan) if values is None else values[:, place]), name)

    return Summary(
        model=run.model,
        images=len(cells.numbers),
        skipped_images=len(run.skipped),
        layers=tuple(
            LayerSummary(
                layer,
                {name: interval(name, place) for name in CONCENTRATION},
                {name: interval(name, place) for name in NORMS},
            )
            for place, layer in enumerate(layers)
        ),
        survival=survival_of(run, variants[1:], layers, scores, kept),
        clean_accuracy=prediction_intervals(predictions, CLEAN_VARIANT)["correct"],
        overfocusing=judge_overfocusing(run),
        retained=retained_of(kept, EVERY, 0),
        one_class=not run.segmented and len(predicted) > 1 and predicted.nunique() == 1,
        notes=(*run.description.checkpoint.notes, *run.description.notes),
        lenient=run.description.checkpoint.lenient,
        segmented=run.segmented,
        clean_iou=float(scores.get((CLEAN, 0), math.nan)),
        custom=tuple(custom_measure(run, measure, variants) for measure in run.description.measures),
    )


def custom_measure(run: "Run", measure: MeasureEntry, variants: list[Variant]) -> CustomMeasure:
    """Means over images of what a metric or probe of the user measured."""
    found = {}
    for variant in variants:
        if measure.table == "metrics":
            values = mean_of_known(run.cells.of(measure.name, variant), 1)
        else:
            rows = run.predictions
            rows = rows[(rows["corruption"] == variant.corruption) & (rows["severity"] == variant.severity)]
            values = rows.groupby("image")[measure.name].mean().to_numpy("float64", na_value=np.nan)
        if len(values):
            found[variant] = interval_of(pd.Series(values), measure.name)
    return CustomMeasure(measure, found)


def survival_of(
    run: "Run", variants: list[Variant], layers: list[Layer], scores: "pd.Series[float]", kept: pd.DataFrame
) -> tuple[Survival, ...]:
    """One row per corruption and severity; `scores` are the mIoU of segmentation, `kept` what is retained by variant."""
    cells = run.cells
    stability: dict[Variant, dict[str, Interval]] = {variant: {} for variant in variants}
    weakest: dict[Variant, Layer] = {}
    for name in STABILITY:
        values = cells.get(name)
        for variant in variants:
            place = cells.variants.index(variant)
            there = cells.present[:, place]
            measured = np.full((int(there.sum()), len(layers)), np.nan) if values is None else values[there, place]
            stability[variant][name] = interval_of(pd.Series(mean_of_known(measured, 1)), name)
            moved = mean_of_known(measured, 0)
            if name == "received_shift" and np.isfinite(moved).any():
                weakest[variant] = layers[int(np.nanargmax(moved))]
    return tuple(
        Survival(
            variant=variant,
            stability=stability[variant],
            retained=retained_of(kept, *variant),
            prediction=prediction_intervals(run.predictions, variant),
            set_iou=float(scores.get((variant.corruption, variant.severity), math.nan)),
            weakest_layer=weakest.get(variant),
        )
        for variant in variants
    )


def retained_of(kept: pd.DataFrame, corruption: str, severity: int) -> dict[str, Retained]:
    """What is retained under one variant, by metric."""
    rows = kept[(kept["corruption"] == corruption) & (kept["severity"] == severity)]
    return {
        str(row["metric"]): Retained(row["control"], row["retained"], row["low"], row["high"], int(row["count"]))
        for row in rows.to_dict("records")
    }


def prediction_intervals(predictions: pd.DataFrame, variant: Variant) -> dict[str, Interval]:
    """Mean and interval of every prediction metric for one corruption and severity."""
    rows = predictions[(predictions["corruption"] == variant.corruption) & (predictions["severity"] == variant.severity)]
    found = {name: rows[name] if name in rows else pd.Series(np.nan, rows.index) for name in PREDICTION}
    return {name: interval_of(pd.to_numeric(values).astype("Float64"), name) for name, values in found.items()}


def set_scores(run: "Run") -> "pd.Series[float]":
    """The mIoU of all images together by (corruption, severity); NaN without masks."""
    names = [str(place) for place in range(len(run.class_colours or []))]
    return measure_segmentation(run.predictions, names).set_index(["corruption", "severity"])["miou"]
