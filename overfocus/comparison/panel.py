"""The tables of one run as arrays: a value per image, version and group of layers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from overfocus.comparison.normalisation import normalise
from overfocus.figures.layers import Layer, layers_of
from overfocus.metrics.catalogue import CATALOGUE, chance_level
from overfocus.variants import OTHER_IMAGE

if TYPE_CHECKING:
    from overfocus.run import Run

Array = np.ndarray[Any, Any]
Variant = tuple[str, int]
ImageKey = tuple[str, str | None, int]
"""Name, label, and which of the images of that name and label it is, from 0."""

LAYER_GROUPS = ("all", "early", "middle", "late")
"""All layers, and the thirds of relative depth."""
OUTPUT = "output"
"""Stands where a layer group would for what the model puts out."""
PREDICTION = ("agreement", "confidence_drop", "correct", "output_cosine", "image_iou")
"""Columns of the predictions table that are compared."""
PIXEL_COUNTS = ("intersections", "unions")
"""Columns of the predictions table of a segmentation model that hold numbers of pixels by class."""


@dataclass(frozen=True, eq=False)
class Panel:
    """What one run measured."""

    images: list[ImageKey]
    variants: list[Variant]
    values: dict[tuple[str, str], Array]
    """(images, variants) by metric and layer group; NaN where undefined."""
    chance: dict[str, float]
    """Chance level of `top_overlap` by layer group, mean over its layers."""
    pixels: Array | None = None
    """(2, images, variants, classes): pixels in both mask and prediction, and in either; zeros where no mask is known. None for
    models that give no class for each pixel."""

    def select(self, images: Sequence[ImageKey], variants: Sequence[Variant]) -> "Panel":
        """The values of these images and variants, in this order."""
        place = {key: number for number, key in enumerate(self.images)}
        rows = [place[key] for key in images]
        columns = [self.variants.index(variant) for variant in variants]
        kept = {key: values[np.ix_(rows, columns)] for key, values in self.values.items()}
        pixels = None if self.pixels is None else self.pixels[:, rows][:, :, columns]
        return Panel(list(images), list(variants), kept, self.chance, pixels)


def read_panel(run: "Run", *, normalised: bool) -> Panel:
    """Mean over the layers of each group, and over heads, of every metric of a run; rescaled per layer if `normalised`."""
    predictions = run.predictions
    pairs = predictions[["corruption", "severity"]].drop_duplicates()
    variants = [(str(name), int(severity)) for name, severity in zip(pairs["corruption"], pairs["severity"], strict=True)]
    named = predictions.drop_duplicates("image")
    numbers = pd.Index(named["image"])
    seen: Counter[tuple[str, str | None]] = Counter()
    images: list[ImageKey] = []
    for name, label in zip(named["name"], named["label"], strict=True):
        key = str(name), None if pd.isna(label) else str(label)
        images.append((*key, seen[key]))
        seen[key] += 1
    place = pd.MultiIndex.from_tuples(variants)
    values = {
        (name, OUTPUT): _spread(predictions, predictions[[name]], numbers, place)[:, :, 0]
        for name in PREDICTION
        if name in predictions.columns
    }
    layers = layers_of(run) if len(run.table) else []
    chance = {}
    if layers:
        metrics = [name for name in CATALOGUE if name in run.table.columns]
        by_layer = _by_layer(run.table, metrics, numbers, place, [layer.number for layer in layers])
        if normalised:
            for at, layer in enumerate(layers):
                for which, name in enumerate(metrics):
                    by_layer[:, :, at, which] = normalise(name, by_layer[:, :, at, which], layer)
        for group, members in group_layers(run).items():
            means = mean_of_known(by_layer[:, :, members], 2)
            values |= {(name, group): means[:, :, which] for which, name in enumerate(metrics)}
            chance[group] = 0.0 if normalised else _chance([layers[member] for member in members])
    return Panel(images, variants, values, chance, _pixels(predictions, numbers, place))


def group_layers(run: "Run") -> dict[str, list[int]]:
    """Places in `run.layers` of the layers of each group; groups without layers are left out.

    Layer i of n lies at relative depth (i + ½)/n, so that models of different depth compare: "early" is the first third.
    """
    depths = [relative_depth(layer, run) for layer in run.layers]
    thirds = [LAYER_GROUPS[1 + min(2, int(3 * depth))] for depth in depths]
    members = {group: [place for place, third in enumerate(thirds) if group in ("all", third)] for group in LAYER_GROUPS}
    return {group: places for group, places in members.items() if places}


def relative_depth(layer: Layer, run: "Run") -> float:
    """Where a layer lies among all attention layers of its model, in (0, 1)."""
    return run.description.relative_depth(layer)


def _chance(layers: Sequence[Layer]) -> float:
    levels = [chance_level("top_overlap", layer.tokens, top_fraction=layer.top_fraction) for layer in layers]
    return float(np.mean(levels))


def _by_layer(table: pd.DataFrame, metrics: list[str], images: pd.Index, variants: pd.MultiIndex, layers: list[int]) -> Array:
    """(images, variants, layers, metrics); heads are averaged."""
    table = table[table["corruption"] != OTHER_IMAGE]
    keys = ["image", "corruption", "severity", "layer"]
    if "head" in table.columns:
        table = table.groupby(keys, sort=False)[metrics].mean().reset_index()
    values = np.full((len(images), len(variants), len(layers), len(metrics)), np.nan)
    rows = images.get_indexer(pd.Index(table["image"]))
    columns = variants.get_indexer(pd.MultiIndex.from_frame(table[["corruption", "severity"]]))
    values[rows, columns, pd.Index(layers).get_indexer(pd.Index(table["layer"]))] = table[metrics].to_numpy("float64")
    return values


def _spread(table: pd.DataFrame, columns: pd.DataFrame, images: pd.Index, variants: pd.MultiIndex) -> Array:
    """(images, variants, columns)."""
    values = np.full((len(images), len(variants), columns.shape[1]), np.nan)
    places = variants.get_indexer(pd.MultiIndex.from_frame(table[["corruption", "severity"]]))
    values[images.get_indexer(pd.Index(table["image"])), places] = columns.to_numpy("float64", na_value=np.nan)
    return values


def _pixels(predictions: pd.DataFrame, images: pd.Index, variants: pd.MultiIndex) -> Array | None:
    """(2, images, variants, classes) from the lists of a segmentation run."""
    if not set(PIXEL_COUNTS) <= set(predictions.columns):
        return None
    rows = images.get_indexer(pd.Index(predictions["image"]))
    columns = variants.get_indexer(pd.MultiIndex.from_frame(predictions[["corruption", "severity"]]))
    counts = np.stack([np.stack(predictions[name].to_list()) for name in PIXEL_COUNTS])
    values = np.zeros((2, len(images), len(variants), counts.shape[2]), np.int64)
    values[:, rows, columns] = counts
    return values


def mean_of_known(values: Array, axis: int) -> Array:
    """Mean without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(known, values, 0).sum(axis) / known.sum(axis)
    return mean
