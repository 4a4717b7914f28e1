"""A run's tables as arrays: means over images by layer with their intervals, and a value per image, variant and layer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd

from overfocus.metrics.catalogue import CATALOGUE, TokenCounts, uniform_value
from overfocus.runs.description import Layer, RunDescription
from overfocus.statistics.intervals import half_width, value_range
from overfocus.variants import CLEAN_VARIANT, OTHER_IMAGE, Variant, sort_variants

Array = np.ndarray[Any, Any]
ImageKey = tuple[str, str | None, int]
"""Name, label, and which of the images of that name and label it is, from 0."""

LAYER_GROUPS = ("all", "early", "middle", "late")
"""All layers, and the thirds of relative depth."""
OUTPUT = "output"
"""Stands where a layer group would for what the model puts out."""
EVERY = "all"
"""Stands where a corruption would for the mean over all corruptions and severities, never the control; its severity is 0."""
PREDICTION = ("agreement", "confidence_drop", "correct", "output_cosine", "image_iou")
"""Columns of the predictions table that are compared."""
PIXEL_COUNTS = ("intersections", "unions")
"""Columns of the predictions table of a segmentation model that hold numbers of pixels by class."""
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
        parts = {
            part: np.stack([row[part].to_numpy("float64", na_value=np.nan) for row in placed]).reshape(shape) for part in PARTS
        }
        lowest, highest = value_range(name)
        values[name] = parts | {"low": np.maximum(parts["low"], lowest), "high": np.minimum(parts["high"], highest)}
        if CATALOGUE[name].group == "stability" and (table["corruption"] == OTHER_IMAGE).any():
            places = pd.MultiIndex.from_tuples([(OTHER_IMAGE, 0, layer.number) for layer in layers], names=by)
            control[name] = rows[0]["mean"].reindex(places).to_numpy("float64", na_value=np.nan)
    retained: dict[str, dict[str, Array]] = {}
    kept = run.retained
    for name in control:
        rows_of = kept[kept["metric"] == name].set_index(by)
        retained[name] = {
            part: rows_of[source].reindex(index).to_numpy("float64", na_value=np.nan).reshape(shape[1:])
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


def mean_of_known(values: Array, axis: int) -> Array:
    """Mean without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(known, values, 0).sum(axis) / known.sum(axis)
    return mean


@dataclass(frozen=True, eq=False)
class Panel:
    """What one run measured."""

    images: list[ImageKey]
    variants: list[Variant]
    """Without the control."""
    depths: tuple[float, ...]
    """Relative depth of each layer, in (0, 1)."""
    values: dict[str, Array]
    """(images, variants, layers) by metric, heads averaged; NaN where undefined."""
    control: dict[str, Array]
    """(images, layers) by metric of stability: each clean image against another one; empty where it was not measured."""
    noise: dict[str, Array]
    """(layers,) by metric of stability: the distance of the same clean image from itself, NaN where it was not measured."""
    output: dict[str, Array]
    """(images, variants) by column of the predictions table."""
    classes: Array
    """(images,): class predicted for the clean image, −1 where there is none."""
    confidence: Array
    """(images,): probability of that class; NaN where there is none."""
    pixels: Array | None = field(default=None)
    """(2, images, variants, classes): pixels in both mask and prediction, and in either; zeros where no mask is known. None for
    models that give no class for each pixel."""

    @property
    def corrupted(self) -> list[int]:
        """Places of the variants that something was done to."""
        return [place for place, variant in enumerate(self.variants) if variant != CLEAN_VARIANT]

    def select(self, images: Sequence[ImageKey], variants: Sequence[Variant]) -> "Panel":
        """The values of these images and variants, in this order."""
        place = {key: number for number, key in enumerate(self.images)}
        rows = np.array([place[key] for key in images])
        columns = [self.variants.index(variant) for variant in variants]
        return Panel(
            images=list(images),
            variants=list(variants),
            depths=self.depths,
            values={name: values[rows][:, columns] for name, values in self.values.items()},
            control={name: values[rows] for name, values in self.control.items()},
            noise=self.noise,
            output={name: values[rows][:, columns] for name, values in self.output.items()},
            classes=self.classes[rows],
            confidence=self.confidence[rows],
            pixels=None if self.pixels is None else self.pixels[:, rows][:, :, columns],
        )

    def layer_group(self, group: str) -> list[int]:
        """Places of the layers of one of `LAYER_GROUPS`: "early" is the first third of relative depth.

        Layer i of n lies at depth (i + ½)/n, so that models of different depth compare.
        """
        thirds = [LAYER_GROUPS[1 + min(2, int(3 * depth))] for depth in self.depths]
        return [place for place, third in enumerate(thirds) if group in (LAYER_GROUPS[0], third)]


def read_panel(run: RunTables, *, normalised: bool = False) -> Panel:
    """The tables of a run as arrays; `normalised` rescales each layer's metrics so that 0 and 1 mean the same for every N."""
    predictions = run.predictions
    predictions = predictions[predictions["corruption"] != OTHER_IMAGE]
    pairs = predictions[["corruption", "severity"]].drop_duplicates()
    variants = [Variant(str(name), int(severity)) for name, severity in pairs.itertuples(index=False)]
    variants = sort_variants(variants, list(dict.fromkeys(variant.corruption for variant in variants)))
    keys = image_keys(run)
    numbers = pd.Index(keys.values())
    place = pd.MultiIndex.from_tuples(variants)
    scores = [name for name in PREDICTION if name in predictions.columns]
    output = _spread(predictions, predictions[scores].apply(pd.to_numeric), numbers, place)
    clean = predictions[predictions["corruption"] == CLEAN_VARIANT.corruption].set_index("image").reindex(numbers)
    classes = pd.to_numeric(clean["predicted"]).fillna(-1) if "predicted" in clean else pd.Series(-1, numbers)
    confidence = pd.to_numeric(clean["confidence"]) if "confidence" in clean else pd.Series(np.nan, numbers)
    values: dict[str, Array] = {}
    control: dict[str, Array] = {}
    layers = run.description.layers
    table = run.table
    if len(table):
        metrics = [name for name in CATALOGUE if name in table.columns]
        both = pd.MultiIndex.from_tuples([*variants, Variant(OTHER_IMAGE, 0)])
        by_layer = _by_layer(table, metrics, numbers, both, [layer.number for layer in layers])
        if normalised:
            for which, name in enumerate(metrics):
                for at, layer in enumerate(layers):
                    by_layer[:, :, at, which] = normalise(name, by_layer[:, :, at, which], layer)
        values = {name: by_layer[:, :-1, :, which] for which, name in enumerate(metrics)}
        if (table["corruption"] == OTHER_IMAGE).any():
            stable = [name for name in metrics if CATALOGUE[name].group == "stability"]
            control = {name: by_layer[:, -1, :, metrics.index(name)] for name in stable}
    noise = run.description.noise
    return Panel(
        images=list(keys),
        variants=variants,
        depths=tuple(run.description.relative_depth(layer) for layer in layers),
        values=values,
        control=control,
        noise={name: np.array(noise.get(name, [None] * len(layers)), np.float64) for name in control},
        output={name: output[:, :, which] for which, name in enumerate(scores)},
        classes=classes.to_numpy("int64"),
        confidence=confidence.to_numpy("float64", na_value=np.nan),
        pixels=_pixels(predictions, numbers, place),
    )


def image_keys(run: RunTables) -> dict[ImageKey, int]:
    """Numbers of the images that a run measured, by what images of several runs are matched with.

    Which of several images of one name and label it is counts among all that were asked for, read or not.
    """
    measured = set(run.predictions["image"])
    seen: Counter[tuple[str, str | None]] = Counter()
    found: dict[ImageKey, int] = {}
    for entry in run.description.images:
        key = entry.name, entry.label
        if entry.image in measured:
            found[(*key, seen[key])] = entry.image
        seen[key] += 1
    return found


def masked_jointly(arrays: Sequence[Array]) -> list[Array]:
    """The arrays with NaN in all where one of them has NaN: means over them then rest on the same entries."""
    unknown = np.isnan(arrays[0])
    for array in arrays[1:]:
        unknown = unknown | np.isnan(array)
    return [np.where(unknown, np.nan, array) for array in arrays]


def over_layers(panels: Sequence[Panel], arrays: Sequence[Array], group: str) -> list[Array]:
    """Mean over the layers of a group, (images, variants) from (images, variants, layers), one array for each panel.

    Models with layers at the same depths are averaged over the same layers, image by image: where one has no value, none has.
    """
    if len({panel.depths for panel in panels}) == 1:
        arrays = masked_jointly(arrays)
    return [mean_of_known(array[:, :, panel.layer_group(group)], 2) for panel, array in zip(panels, arrays, strict=True)]


def with_every(arrays: Sequence[Array], corrupted: Sequence[int]) -> tuple[list[Array], Array]:
    """(images, variants + 1): the values, then each image's mean over its corrupted variants, the same ones in all arrays.

    Also how many values each entry rests on.
    """
    arrays = masked_jointly(arrays)
    known = ~np.isnan(arrays[0])
    counts = np.column_stack([known, known[:, list(corrupted)].sum(1)])
    return [np.column_stack([array, mean_of_known(array[:, list(corrupted)], 1)]) for array in arrays], counts


def normalise(name: str, values: Array, layer: Layer) -> Array:
    """Rescale a metric whose range depends on the layer's number of tokens N, so that 0 and 1 mean the same for every N.

    0 and 1 are what the metric's row in the catalogue calls its scale. Other metrics stay as they are. NaN where the scale is
    empty or not known.
    """
    scale = CATALOGUE[name].scale
    if scale is None:
        return values
    counts = TokenCounts(layer.tokens, layer.key_prefix_tokens, layer.grid, layer.top_fraction)
    low, high = (end.value(counts) for end in scale)
    scaled: Array = (values - low) / (high - low) if high > low else np.full_like(values, np.nan)
    return scaled


def _by_layer(table: pd.DataFrame, metrics: list[str], images: pd.Index, variants: pd.MultiIndex, layers: list[int]) -> Array:
    """(images, variants, layers, metrics); heads are averaged."""
    keys = ["image", "corruption", "severity", "layer"]
    if "head" in table.columns:
        table = table.groupby(keys, sort=False)[metrics].mean().reset_index()
    values = np.full((len(images), len(variants), len(layers), len(metrics)), np.nan)
    rows = images.get_indexer(pd.Index(table["image"]))
    columns = variants.get_indexer(pd.MultiIndex.from_frame(table[["corruption", "severity"]]))
    there = (rows >= 0) & (columns >= 0)
    places = pd.Index(layers).get_indexer(pd.Index(table["layer"]))
    values[rows[there], columns[there], places[there]] = table[metrics].to_numpy("float64", na_value=np.nan)[there]
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
