"""A run's tables as arrays: means over images by layer with their intervals, and a value per image, variant and layer."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from overfocus.metrics.catalogue import CATALOGUE, TokenCounts, uniform_value
from overfocus.runs.description import Layer, RunDescription
from overfocus.statistics.intervals import half_width, value_range
from overfocus.variants import CLEAN_VARIANT, CONTROL_VARIANT, Variant, sort_variants

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
    def measured(self) -> bool:
        """Whether there is a table of metrics."""

    @property
    def metrics(self) -> Sequence[str]:
        """Columns of the table of metrics."""

    @property
    def measured_images(self) -> Sequence[int]:
        """Numbers of the images that have predictions."""

    @property
    def cells(self) -> "MetricCells":
        """Values of the metrics as arrays."""

    def blocks(self, kind: Literal["metrics", "predictions"], columns: Sequence[str] = ()) -> Iterator[pd.DataFrame]:
        """The rows of a table piece by piece: `overfocus.Run.blocks`."""

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


@dataclass(frozen=True)
class Cells:
    """Values from the table of metrics, of some images."""

    images: Array
    """(images,): their numbers."""
    present: Array
    """(images, variants, layers, heads): whether the table has such a row."""
    values: dict[str, Array]
    """(images, variants, layers, heads) by metric, in the precision of the table; NaN where undefined. One head where single
    heads were not kept."""

    def averaged(self, metric: str) -> Array:
        """(images, variants, layers): heads averaged."""
        values = self.values[metric]
        return values[..., 0] if values.shape[3] == 1 else mean_of_known(values.astype(np.float64), 3)


def read_cells(run: RunTables, metrics: Sequence[str], variants: Sequence[Variant]) -> Iterator[Cells]:
    """The values of these metrics under these variants, a part of the images at a time."""
    heads = max((layer.heads for layer in run.description.layers), default=1) if "head" in run.metrics else 1
    placing: _Placing | None = None
    for rows in run.blocks("metrics", metrics):
        if placing is None or not placing.fits(rows):
            placing = _Placing(rows, run.description.layers, variants, heads)
        values = {}
        for name in metrics:
            kind = np.float32 if rows[name].dtype == np.float32 else np.float64
            values[name] = placing.placed(rows[name].to_numpy(kind, na_value=np.nan))
        yield Cells(rows["image"].to_numpy()[placing.firsts], placing.present, values)


class _Placing:
    """Where the rows of a block belong in an array; most blocks of a run have the same rows, of other images."""

    def __init__(self, rows: pd.DataFrame, layers: Sequence[Layer], variants: Sequence[Variant], heads: int) -> None:
        self._keys, self._categories = self._read(rows)
        image, images = pd.factorize(rows["image"])
        self.firsts = np.unique(image, return_index=True)[1]
        shape = (len(images), len(variants), len(layers), heads)
        head = rows["head"].to_numpy("int64") if "head" in rows else np.zeros(len(rows), np.int64)
        layer = pd.Index([layer.number for layer in layers]).get_indexer(pd.Index(rows["layer"]))
        place = [image, _variant_places(rows, {variant: place for place, variant in enumerate(variants)}), layer, head]
        self._there = (place[1] >= 0) & (layer >= 0) & (head >= 0) & (head < heads)
        self._flat = np.ravel_multi_index([part[self._there] for part in place], shape)
        self._whole = len(self._flat) == math.prod(shape) and np.array_equal(self._flat, np.arange(len(rows)))
        self.present = np.full(shape, self._whole)
        """(images, variants, layers, heads): whether the block has such a row."""
        self.present.ravel()[self._flat] = True

    @staticmethod
    def _read(rows: pd.DataFrame) -> tuple[list[Array], pd.Index]:
        image, corruption = rows["image"].to_numpy(), rows["corruption"].cat
        others = [rows[name].to_numpy() for name in ("severity", "layer", "head") if name in rows]
        return [image - image[:1], corruption.codes.to_numpy(), *others], corruption.categories

    def fits(self, rows: pd.DataFrame) -> bool:
        """Whether the rows are those of this block but for the numbers of the images, which lie as far apart."""
        keys, categories = self._read(rows)
        return categories.equals(self._categories) and all(map(np.array_equal, keys, self._keys))

    def placed(self, column: Array) -> Array:
        """The values of a column at (images, variants, layers, heads); NaN where there is no row."""
        if self._whole:
            return column.reshape(self.present.shape)
        values = np.full(self.present.shape, np.nan, column.dtype)
        values.ravel()[self._flat] = column[self._there]
        return values


def _variant_places(rows: pd.DataFrame, place_of: Mapping[Variant, int]) -> Array:
    """Place of each row's corruption and severity, −1 where it has none."""
    names = rows["corruption"].astype("category")
    severity, severities = pd.factorize(rows["severity"])
    found = [[place_of.get(Variant(str(name), int(one)), -1) for one in severities] for name in names.cat.categories]
    places = np.array([*found, [-1] * len(severities)], np.int64).reshape(len(found) + 1, len(severities))
    result: Array = places[names.cat.codes.to_numpy(), severity]
    return result


class Lazy(Mapping[str, Array]):
    """Arrays by name, each made when it is asked for."""

    def __init__(self, names: Sequence[str], make: Callable[[str], Array]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


MEMORY = 256 * 2**20
"""Bytes of metrics that a run keeps; of a larger one the metrics are read from its folder a few at a time."""


class MetricCells(Lazy):
    """(images, variants, layers) by metric, heads averaged; the control is the last variant."""

    def __init__(self, run: RunTables) -> None:
        super().__init__([name for name in CATALOGUE if name in run.metrics] if run.measured else [], self._read)
        self._run = run
        self.variants = [*run.variants, CONTROL_VARIANT]
        self._held: dict[str, Array] = {}
        self._found: tuple[pd.Index, Array] | None = None

    @property
    def numbers(self) -> pd.Index:
        """Numbers of the images that have rows in the table, in its order."""
        return self._places[0]

    @property
    def present(self) -> Array:
        """(images, variants): which the table has."""
        return self._places[1]

    @property
    def _places(self) -> tuple[pd.Index, Array]:
        if self._found is None:
            for _ in self.read([]):
                pass
        assert self._found is not None
        return self._found

    def read(self, metrics: Sequence[str]) -> Iterator[Cells]:
        """The values of these metrics, a part of the images at a time."""
        found: dict[int, Array] = {}
        for cells in read_cells(self._run, metrics, self.variants):
            held = np.asarray(cells.present.any((2, 3)))
            for number, there in zip(cells.images, held, strict=True):
                found[int(number)] = found[int(number)] | there if int(number) in found else there
            yield cells
        self._found = pd.Index(found), np.array([*found.values()]).reshape(len(found), len(self.variants))

    @property
    def controlled(self) -> bool:
        """Whether the control was measured."""
        return bool(self.present[:, -1].any())

    def of(self, metric: str, variant: Variant) -> Array:
        """(images, layers) under one variant, of the images that the table has under it."""
        place = self.variants.index(variant)
        values: Array = self[metric][self.present[:, place], place]
        return values

    def _read(self, name: str) -> Array:
        if name not in self._held:
            shape = (len(self.numbers), len(self.variants), len(self._run.description.layers))
            exact = "head" in self._run.metrics
            names = list(self)
            many = max(1, MEMORY // max(1, math.prod(shape) * (8 if exact else 4)))
            start = names.index(name) // many * many
            chosen = names[start : start + many]
            self._held = {}
            for cells in self.read(chosen):
                rows = self.numbers.get_indexer(pd.Index(cells.images))
                there = cells.present.any(3)
                whole = bool(there.all())
                for metric in chosen:
                    part = cells.averaged(metric)
                    if metric not in self._held:
                        self._held[metric] = np.full(shape, np.nan, part.dtype)
                    held = self._held[metric]
                    held[rows] = part if whole else np.where(there, part, held[rows])
        return self._held[name].astype(np.float64)


@dataclass(frozen=True)
class Moments:
    """Sums over images; every array is (metrics, variants, layers), the control being the last variant."""

    rows: Array
    count: Array
    mean: Array
    squares: Array
    """Sum of the squared distances from the mean."""

    @classmethod
    def of(cls, present: Array, values: Sequence[Array]) -> "Moments":
        """Of (images, variants, layers), the values by metric."""
        found = []
        for part in values:
            exact = part.astype(np.float64)
            mean, count = exact.mean(0), np.full(part.shape[1:], len(part))
            if np.isnan(mean).any():
                known = ~np.isnan(exact)
                mean, count = mean_of_known(exact, 0), known.sum(0)
                exact = np.where(known, exact, mean)
            exact -= mean
            found.append((count, mean, np.nan_to_num(np.einsum("ivl,ivl->vl", exact, exact))))
        rows = np.broadcast_to(present.sum(0), (len(values), *present.shape[1:]))
        return cls(rows, *(np.stack(parts) for parts in zip(*found, strict=True)))

    def joined(self, other: "Moments") -> "Moments":
        """Of both together (T. F. Chan et al., "Updating formulae and a pairwise algorithm for computing variances", 1979)."""
        count = self.count + other.count
        apart = np.where((self.count > 0) & (other.count > 0), other.mean - self.mean, 0)
        share = other.count / np.maximum(count, 1)
        mean = np.where(self.count > 0, self.mean + apart * share, other.mean)
        return Moments(self.rows + other.rows, count, mean, self.squares + other.squares + apart**2 * self.count * share)

    @property
    def half(self) -> Array:
        """Half the width of the 95 % interval of each mean; NaN where there are fewer than two images."""
        deviation = np.sqrt(self.squares / np.where(self.count > 1, self.count - 1, np.nan))
        return half_width(deviation, self.count)


def _moments(run: RunTables, metrics: Sequence[str]) -> list[Moments]:
    """With each image averaged over heads; then of each head, where the run kept them."""
    found: list[Moments] = []
    for cells in run.cells.read(metrics) if metrics else ():
        there = np.asarray(cells.present.any(3))
        new = [Moments.of(there, [cells.averaged(name) for name in metrics])]
        if (heads := cells.present.shape[3]) > 1:
            new += [
                Moments.of(cells.present[..., head], [cells.values[name][..., head] for name in metrics]) for head in range(heads)
            ]
        found = [old.joined(part) for old, part in zip(found, new, strict=True)] if found else new
    return found


def layer_statistics(run: RunTables) -> LayerStatistics:
    """The statistics of every metric of a run."""
    layers, variants = run.description.layers, run.variants
    metrics = list(run.cells)
    every = _moments(run, metrics)
    moments = {"all": every[0]} | {f"head {head}": one for head, one in enumerate(every[1:]) if one.rows.any()}
    values, control = {}, {}
    for place, name in enumerate(metrics):
        if not moments["all"].count[place, :-1].any():
            continue
        lowest, highest = value_range(name)
        mean, half, count, rows = (
            np.stack([getattr(one, part)[place, :-1] for one in moments.values()]) for part in ("mean", "half", "count", "rows")
        )
        low, high = np.maximum(mean - half, lowest), np.minimum(mean + half, highest)
        counts = {part: np.where(rows > 0, numbers, np.nan) for part, numbers in (("count", count), ("skipped", rows - count))}
        values[name] = {"mean": mean, "low": low, "high": high} | counts
        if CATALOGUE[name].group == "stability" and moments["all"].rows[place, -1].any():
            control[name] = moments["all"].mean[place, -1]
    retained: dict[str, dict[str, Array]] = {}
    kept = run.retained
    by = ["corruption", "severity", "layer"]
    index = pd.MultiIndex.from_tuples([(*variant, layer.number) for variant in variants for layer in layers], names=by)
    for name in control:
        rows_of = kept[kept["metric"] == name].set_index(by)
        retained[name] = {
            part: rows_of[source].reindex(index).to_numpy("float64", na_value=np.nan).reshape(len(variants), len(layers))
            for part, source in (("mean", "retained"), ("low", "low"), ("high", "high"))
        }
    return LayerStatistics(layers, variants, list(moments), values, control, retained)


def summarise_metrics(run: RunTables) -> pd.DataFrame:
    """One row per corruption × severity × layer × metric, in the table's order: mean, 95 % interval, count, skipped.

    `low` and `high` are the ends of Student's t interval of the mean over images; NaN where there are fewer than two.
    """
    metrics, variants, layers = list(run.cells), run.cells.variants, run.description.layers
    columns = ["corruption", "severity", "layer", "module", "kind", "metric", *PARTS]
    found = _moments(run, metrics)
    if not found:
        return pd.DataFrame(columns=columns)
    moments = found[0]
    frame = pd.DataFrame(
        [
            (*variant, layer.number, layer.module, layer.kind, metric)
            for variant in variants for layer in layers for metric in metrics
        ],
        columns=columns[:6],
    )  # fmt: skip
    mean, half, count, rows = (
        np.moveaxis(part, 0, 2).ravel() for part in (moments.mean, moments.half, moments.count, moments.rows)
    )
    frame = frame.assign(mean=mean, low=mean - half, high=mean + half, count=count, skipped=rows - count)
    return frame[rows > 0].reset_index(drop=True)


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
    values: Mapping[str, Array]
    """(images, variants, layers) by metric, heads averaged; NaN where undefined."""
    control: Mapping[str, Array]
    """(images, layers) by metric of stability: each clean image against another one; empty where it was not measured."""
    noise: dict[str, Array]
    """(layers,) by metric of stability: the distance of the same clean image from itself, NaN where it was not measured."""
    output: dict[str, Array]
    """(images, variants) by column of the predictions table."""
    classes: Array
    """(images,): class predicted for the clean image, −1 if there is none."""
    confidence: Array
    """(images,): probability of that class; NaN if there is none."""
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
            values=Lazy(list(self.values), lambda name: _taken(self.values[name], rows, columns)),
            control=Lazy(list(self.control), lambda name: self.control[name][rows]),
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


def _taken(values: Array, rows: Array, columns: Sequence[int]) -> Array:
    """These images and variants of an array, without a copy where they are the first ones in their order."""
    values = values if np.array_equal(rows, np.arange(len(values))) else values[rows]
    return values[:, : len(columns)] if list(columns) == list(range(len(columns))) else values[:, columns]


def read_panel(run: RunTables, *, normalised: bool = False) -> Panel:
    """The tables of a run as arrays; `normalised` rescales each layer's metrics so that 0 and 1 mean the same for every N."""
    variants = run.variants
    variants = sort_variants(variants, list(dict.fromkeys(variant.corruption for variant in variants)))
    keys = image_keys(run)
    numbers = pd.Index(keys.values())
    scores, output, classes, confidence, pixels = _read_predictions(run, numbers, variants)
    layers, cells = run.description.layers, run.cells
    columns = [cells.variants.index(variant) for variant in variants]
    rows = cells.numbers.get_indexer(numbers) if len(cells) else np.empty(0, np.int64)

    def read(metric: str, places: Sequence[int]) -> Array:
        values = _taken(cells[metric], rows, places)
        values[rows < 0] = np.nan
        if normalised:
            for at, layer in enumerate(layers):
                values[:, :, at] = normalise(metric, values[:, :, at], layer)
        return values

    stable = [name for name in cells if CATALOGUE[name].group == "stability"] if len(cells) and cells.controlled else []
    noise = run.description.noise
    return Panel(
        images=list(keys),
        variants=variants,
        depths=tuple(run.description.relative_depth(layer) for layer in layers),
        values=Lazy(list(cells), lambda name: read(name, columns)),
        control=Lazy(stable, lambda name: read(name, [len(cells.variants) - 1])[:, 0]),
        noise={name: np.array(noise.get(name, [None] * len(layers)), np.float64) for name in stable},
        output={name: output[:, :, which] for which, name in enumerate(scores)},
        classes=classes,
        confidence=confidence,
        pixels=pixels,
    )


def _read_predictions(
    run: RunTables, images: pd.Index, variants: Sequence[Variant]
) -> tuple[list[str], Array, Array, Array, Array | None]:
    """Scores, their values (images, variants, scores), class and confidence on clean images, and pixels of segmentations."""
    place_of = {variant: place for place, variant in enumerate(variants)}
    wanted = ["predicted", "confidence", *PREDICTION, *PIXEL_COUNTS]
    scores: list[str] = []
    output = np.full((len(images), len(variants), len(PREDICTION)), np.nan)
    classes, confidence = np.full(len(images), -1, np.int64), np.full(len(images), np.nan)
    pixels = None
    for rows in run.blocks("predictions", wanted):
        scores = [name for name in PREDICTION if name in rows.columns]
        image, place = images.get_indexer(pd.Index(rows["image"])), _variant_places(rows, place_of)
        there = (image >= 0) & (place >= 0)
        image, place, rows = image[there], place[there], rows[there]
        numbers = rows[scores].apply(pd.to_numeric).to_numpy("float64", na_value=np.nan)
        output[image, place, : len(scores)] = numbers
        clean = (rows["corruption"] == CLEAN_VARIANT.corruption).to_numpy()
        for name, target in (("predicted", classes), ("confidence", confidence)):
            if name in rows:
                values = pd.to_numeric(rows[name][clean]).to_numpy("float64", na_value=np.nan)
                known = ~np.isnan(values)
                target[image[clean][known]] = values[known]
        if set(PIXEL_COUNTS) <= set(rows.columns):
            counts = np.stack([np.stack(rows[name].to_list()) for name in PIXEL_COUNTS])
            if pixels is None:
                pixels = np.zeros((2, len(images), len(variants), counts.shape[2]), np.int64)
            pixels[:, image, place] = counts
    return scores, output[:, :, : len(scores)], classes, confidence, pixels


def image_keys(run: RunTables) -> dict[ImageKey, int]:
    """Numbers of the images that a run measured, by what images of several runs are matched with.

    Which of several images of one name and label it is counts among all that were asked for, read or not.
    """
    measured = set(run.measured_images)
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
    groups = [panel.layer_group(group) for panel in panels]
    together = len({panel.depths for panel in panels}) == 1

    def mean(*parts: Array) -> list[Array]:
        known = masked_jointly(parts) if together else parts
        return [mean_of_known(part[:, :, places], 2) for places, part in zip(groups, known, strict=True)]

    return by_images(mean, *arrays)


def by_images(compute: Callable[..., Sequence[Array]], *arrays: Array) -> list[Array]:
    """What `compute` makes of the arrays, some thousand images at a time where there are many: it may copy them."""
    found = [
        compute(*(array[start : start + MOST_IMAGES] for array in arrays)) for start in range(0, len(arrays[0]), MOST_IMAGES)
    ]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)] if len(found) != 1 else list(found[0])


MOST_IMAGES = 4096
"""Images that are averaged over layers at once."""


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
