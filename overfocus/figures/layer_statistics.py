"""Every metric for every corruption, severity and layer: the arrays behind the curves, the heat maps and their CSV files."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from overfocus.figures.layers import Layer, layers_of
from overfocus.figures.variants import Variant, variants_of
from overfocus.intervals import value_range
from overfocus.metrics.catalogue import CATALOGUE, chance_level, uniform_value
from overfocus.summary import summarise_table

if TYPE_CHECKING:
    from overfocus.run import Run

Array = npt.NDArray[np.float64]
PARTS = ("mean", "low", "high", "count", "skipped")


@dataclass(frozen=True)
class LayerStatistics:
    """Means over images with their intervals; every array is (heads, variants, layers)."""

    layers: list[Layer]
    variants: list[Variant]
    heads: list[str]
    """"all" (each image averaged over heads), then one per head where the run kept them."""
    values: dict[str, dict[str, Array]]
    """Metric → "mean" | "low" | "high" | "count" | "skipped" → array; metrics without any value are absent."""

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

    def grid(self, metric: str, layer: int | None = None) -> Array:
        """Means as (corruptions, severities): of one layer, or over layers; NaN where nothing was measured."""
        mean = self.values[metric]["mean"][0]
        with np.errstate(invalid="ignore"):
            column = mean[:, layer] if layer is not None else pd.DataFrame(mean).mean(axis=1).to_numpy()
        found = dict(zip(self.variants, column, strict=True))
        rows = [[found.get(Variant(name, severity), np.nan) for severity in self.severities] for name in self.corruptions]
        return np.array(rows, dtype=np.float64)

    def matrix(self, metric: str, severity: int) -> Array:
        """Means as (corruptions, layers) at one severity; NaN where nothing was measured."""
        mean = self.values[metric]["mean"][0]
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

    def chance(self, metric: str) -> list[float]:
        """Value of an uninformed guess in each layer; NaN where there is no such level."""
        return [chance_level(metric, layer.tokens, top_fraction=layer.top_fraction) for layer in self.layers]


def layer_statistics(run: "Run") -> LayerStatistics:
    """The statistics of every metric of a run."""
    layers, variants, table = layers_of(run), variants_of(run), run.table
    frames = {"all": run.summary()}
    if "head" in table:
        frames |= {f"head {head}": summarise_table(rows.drop(columns="head")) for head, rows in table.groupby("head")}
    names = [name for name in CATALOGUE if name in table and table[name].notna().any()]
    by = ["corruption", "severity", "layer"]
    index = pd.MultiIndex.from_tuples([(v.corruption, v.severity, layer.number) for v in variants for layer in layers], names=by)
    shape = (len(frames), len(variants), len(layers))
    values = {}
    for name in names:
        rows = [frame[frame["metric"] == name].set_index(by)[list(PARTS)].reindex(index) for frame in frames.values()]
        parts = {part: np.stack([row[part].to_numpy("float64") for row in rows]).reshape(shape) for part in PARTS}
        lowest, highest = value_range(name)
        values[name] = parts | {"low": np.maximum(parts["low"], lowest), "high": np.minimum(parts["high"], highest)}
    return LayerStatistics(layers, variants, list(frames), values)
