"""Every metric for every variant and layer of a run: means over images with intervals, as tables and as arrays."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from overfocus.metrics.catalogue import CATALOGUE, uniform_value
from overfocus.runs.description import Layer, RunDescription
from overfocus.statistics.intervals import half_width, value_range
from overfocus.variants import OTHER_IMAGE, Variant

Array = npt.NDArray[np.float64]
PARTS = ("mean", "low", "high", "count", "skipped")


class RunTables(Protocol):
    """What the statistics need of a run."""

    @property
    def description(self) -> RunDescription:
        """The content of run.json."""

    @property
    def table(self) -> pd.DataFrame:
        """One row per image × corruption × severity × layer (× head), one column per metric."""

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per image × corruption × severity."""

    @property
    def variants(self) -> list[Variant]:
        """The variants in the tables: clean first, then the corrupted ones; without the control."""

    @property
    def retained(self) -> pd.DataFrame:
        """Stability against the control: `overfocus.statistics.retained.tabulate_retained`."""


@dataclass(frozen=True)
class LayerStatistics:
    """Means over images with their intervals; every array is (heads, variants, layers)."""

    layers: list[Layer]
    variants: list[Variant]
    """The clean variant and the corrupted ones; the control is in `retained`, never among them."""
    heads: list[str]
    """"all" (each image averaged over heads), then one per head where the run kept them."""
    values: dict[str, dict[str, Array]]
    """Metric → "mean" | "low" | "high" | "count" | "skipped" → array; metrics without any value are absent."""
    control: dict[str, Array]
    """Mean of each metric of stability between two different clean images, one entry per layer; empty if not measured."""
    retained: dict[str, dict[str, Array]]
    """Metric of stability → "mean" | "low" | "high" → (variants, layers): the share of stability that is more than another image
    has in common; NaN where undefined. Empty if the control was not measured."""

    @property
    def metrics(self) -> list[str]:
        """The metrics that have values, in the order of the catalogue."""
        return list(self.values)

    @cached_property
    def corruptions(self) -> list[str]:
        """The corruptions, in the order of the run."""
        return list(dict.fromkeys(variant.corruption for variant in self.variants if variant.severity))

    @cached_property
    def severities(self) -> list[int]:
        """The severities, rising."""
        return sorted({variant.severity for variant in self.variants if variant.severity})

    def means(self, metric: str, *, retained: bool = False) -> Array:
        """Means as (variants, layers): of the metric, or of what it retains against the control."""
        return self.retained[metric]["mean"] if retained else self.values[metric]["mean"][0]

    def grid(self, metric: str, layer: int | None = None, *, retained: bool = False) -> Array:
        """Means as (corruptions, severities): of one layer, or over layers; NaN where nothing was measured."""
        mean = self.means(metric, retained=retained)
        column = mean[:, layer] if layer is not None else mean_of_known(mean, 1)
        found = dict(zip(self.variants, column, strict=True))
        rows = [[found.get(Variant(name, severity), np.nan) for severity in self.severities] for name in self.corruptions]
        return np.array(rows, dtype=np.float64)

    def matrix(self, metric: str, severity: int, *, retained: bool = False) -> Array:
        """Means as (corruptions, layers) at one severity; NaN where nothing was measured."""
        mean = self.means(metric, retained=retained)
        blank = np.full(len(self.layers), np.nan)
        found = dict(zip(self.variants, mean, strict=True))
        return np.array([found.get(Variant(name, severity), blank) for name in self.corruptions])

    def uniform(self, metric: str) -> list[float]:
        """Value that uniform attention would give in each layer; NaN where it has none."""
        return [
            uniform_value(
                metric,
                layer.tokens,
                prefix_tokens=layer.key_prefix_tokens,
                grid=layer.key_grid or layer.grid,
                top_fraction=layer.top_fraction,
            )
            for layer in self.layers
        ]

    def another_image(self, metric: str) -> list[float]:
        """Mean of a metric of stability between two different clean images in each layer; NaN where it was not measured."""
        return list(self.control.get(metric, np.full(len(self.layers), np.nan)))


def layer_statistics(run: RunTables) -> LayerStatistics:
    """The statistics of every metric of a run."""
    layers, variants, table = run.description.layers, run.variants, run.table
    frames = {"all": summarise_table(table)}
    if "head" in table:
        frames |= {f"head {head}": summarise_table(rows.drop(columns="head")) for head, rows in table.groupby("head")}
    varied = table[table["corruption"] != OTHER_IMAGE]
    names = [name for name in CATALOGUE if name in table and varied[name].notna().any()]
    by = ["corruption", "severity", "layer"]
    index = pd.MultiIndex.from_tuples([(*variant, layer.number) for variant in variants for layer in layers], names=by)
    shape = (len(frames), len(variants), len(layers))
    values, control = {}, {}
    for name in names:
        rows = [frame[frame["metric"] == name].set_index(by)[list(PARTS)] for frame in frames.values()]
        placed = [row.reindex(index) for row in rows]
        parts = {part: np.stack([row[part].to_numpy("float64") for row in placed]).reshape(shape) for part in PARTS}
        lowest, highest = value_range(name)
        values[name] = parts | {"low": np.maximum(parts["low"], lowest), "high": np.minimum(parts["high"], highest)}
        if CATALOGUE[name].group == "stability" and (table["corruption"] == OTHER_IMAGE).any():
            places = pd.MultiIndex.from_tuples([(OTHER_IMAGE, 0, layer.number) for layer in layers], names=by)
            control[name] = rows[0]["mean"].reindex(places).to_numpy("float64")
    retained: dict[str, dict[str, Array]] = {}
    kept = run.retained
    for name in control:
        rows_of = kept[kept["metric"] == name].set_index(by)
        retained[name] = {
            part: rows_of[source].reindex(index).to_numpy("float64").reshape(shape[1:])
            for part, source in (("mean", "retained"), ("low", "low"), ("high", "high"))
        }
    return LayerStatistics(layers, variants, list(frames), values, control, retained)


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


def mean_of_known(values: npt.NDArray[np.float64], axis: int) -> Array:
    """Mean without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(known, values, 0).sum(axis) / known.sum(axis)
    return mean
