"""Which images moved most and least: the worst image of every cell of the heat maps, and the galleries."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from overfocus.metrics.catalogue import CATALOGUE
from overfocus.runs.description import Layer
from overfocus.variants import OTHER_IMAGE, Variant

if TYPE_CHECKING:
    from overfocus.run import Run

Array = npt.NDArray[np.float64]
RANKED_BY = "received_shift"
"""What galleries are ranked by: it weighs by mass, so that flat attention does not count as unstable."""


@dataclass(frozen=True)
class ImageValues:
    """Stability of every single image; head means where the run kept heads."""

    images: list[int]
    """Image numbers, the last axis of `values`."""
    values: dict[str, Array]
    """Metric → (variants, layers, images); NaN for the clean variant."""

    @cached_property
    def over_layers(self) -> dict[str, Array]:
        """Metric → (variants, images), the mean over layers that have a value."""
        return {name: mean_over_layers(values) for name, values in self.values.items()}

    def worst(self, metric: str, among: list[int] | None = None) -> tuple[npt.NDArray[np.int64], Array]:
        """Number and value of the image whose attention changed most, (variants, 1 + layers): over layers, then layer by layer.

        The number is −1 where no image of `among` (all by default) has a value.
        """
        values = np.concatenate([self.over_layers[metric][:, None], self.values[metric]], axis=1)
        if among is not None:
            values = np.where(np.isin(self.images, among), values, np.nan)
        changed = -values if CATALOGUE[metric].overfocused == "low" else values
        place = np.where(np.isnan(changed), -np.inf, changed).argmax(axis=2)
        found = np.take_along_axis(values, place[..., None], axis=2)[..., 0]
        return np.where(np.isnan(found), -1, np.array(self.images)[place]), found

    def gallery(self, variant: int, size: int) -> tuple[list[int], list[int]]:
        """Numbers of the images whose attention moved most, worst first, and of those where it moved least, best first.

        Both hold at most `size` images, and no image is in both.
        """
        moved = self.over_layers[RANKED_BY][variant]
        order = [int(place) for place in np.argsort(-moved, kind="stable") if not np.isnan(moved[place])]
        half = min(size, (len(order) + 1) // 2)
        rest = order[half:][::-1][:size]
        return [self.images[place] for place in order[:half]], [self.images[place] for place in rest]

    def moved(self, variant: int, image: int) -> float:
        """Share of attention that moved in one image, the mean over layers."""
        return float(self.over_layers[RANKED_BY][variant, self.images.index(image)])


def image_values(run: "Run", variants: list[Variant], layers: list[Layer]) -> ImageValues:
    """Read the stability metrics of every image from the table, heads averaged."""
    table = run.table[run.table["corruption"] != OTHER_IMAGE]
    images = [int(image) for image in table["image"].unique()]
    shape = (len(variants), len(layers), len(images))
    pairs = pd.MultiIndex.from_arrays([table["corruption"], table["severity"]])
    place_of = (
        pd.MultiIndex.from_tuples([(variant.corruption, variant.severity) for variant in variants]).get_indexer(pairs),
        pd.Index([layer.number for layer in layers]).get_indexer(pd.Index(table["layer"])),
        pd.Index(images).get_indexer(pd.Index(table["image"])),
    )
    places = np.ravel_multi_index(place_of, shape)
    names = [name for name, metric in CATALOGUE.items() if metric.group == "stability" and name in table]
    return ImageValues(images, {name: means_at(places, table[name].to_numpy("float64"), shape) for name in names})


def means_at(places: npt.NDArray[np.int64], values: Array, shape: tuple[int, int, int]) -> Array:
    """Mean of the values at each place of an array of that shape, without the undefined ones; NaN where there is none."""
    known = np.isfinite(values)
    size = math.prod(shape)
    count = np.bincount(places[known], minlength=size)
    total = np.bincount(places[known], values[known], minlength=size)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).reshape(shape)


def mean_over_layers(values: Array) -> Array:
    """Mean over the layers that have a value, (variants, layers, images) to (variants, images); NaN where none has."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
