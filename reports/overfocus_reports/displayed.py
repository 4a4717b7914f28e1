"""What the page shows of single images: their pixels and maps, and the images on which attention changed most."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from overfocus.figures.overlay import ReceivedMaps, top_places
from overfocus.metrics.catalogue import CATALOGUE
from overfocus.runs.description import Layer
from overfocus.variants import OTHER_IMAGE, Variant, middle_severity
from overfocus_reports.encoding import Codes, picture_uri, png

if TYPE_CHECKING:
    from overfocus.run import Run


RECEIVED = Codes(per_octave=18)
"""Scale of the received attention: steps of 4 %, up to 256 times uniform."""
PICTURES = ((224, 85), (224, 75), (192, 72), (160, 68), (128, 62), (112, 55), (96, 50))
"""Longest side in pixels and JPEG quality, from the finest that is tried."""
LARGE_PICTURES = ((1024, 82), (768, 82), (640, 80), (512, 78), (448, 76), (384, 74), (320, 72), *PICTURES)
"""The same for segmentation, where single pixels are looked at."""
MANY = 128
"""Pictures above which only the middle severity of each corruption is shown."""
SHEET = 256
"""Columns of the sheet that one picture's received attention, all layers in a row, is laid out on."""


@dataclass(frozen=True)
class Displayed:
    """The displayed images in the variants that fit."""

    run: "Run"
    layers: list[Layer]
    variants: list[Variant]
    """All variants of the run; numbers of variants count from here."""

    @cached_property
    def received_maps(self) -> ReceivedMaps:
        """Received attention by image and variant."""
        return ReceivedMaps(self.run)

    @cached_property
    def middle(self) -> list[int]:
        """Numbers of the clean variant and of each corruption at its middle severity."""
        middle = middle_severity([variant.severity for variant in self.variants if variant.severity] or [0])
        return [number for number, variant in enumerate(self.variants) if variant.severity in (0, middle)]

    @cached_property
    def shown(self) -> list[int]:
        """Numbers of the variants to show: all, or the middle ones where that would be too many pictures."""
        few = len(self.run.displayed) * len(self.variants) <= MANY
        return list(range(len(self.variants))) if few else self.middle

    def pictures(self, room: int) -> dict[int, dict[int, str]]:
        """Image → variant → data URI, as fine as `room` characters allow."""
        pixels = {image: self.run.maps(image, ()).pictures for image in self.run.displayed}
        sizes = LARGE_PICTURES if self.run.segmented else PICTURES
        longest, quality = sizes[-1]
        for longest, quality in sizes:
            sample = [
                len(picture_uri(kept[number], longest, quality)) for kept in list(pixels.values())[:2] for number in self.shown
            ]
            if sum(sample) / max(1, len(sample)) * len(self.shown) * len(pixels) <= room:
                break
        return {
            image: {number: picture_uri(kept[number], longest, quality) for number in self.shown}
            for image, kept in pixels.items()
        }

    def same_pictures(self, other: "Displayed") -> bool:
        """Whether both show the very same pixels."""
        if self.run.displayed != other.run.displayed:
            return False
        shown = self.run.displayed
        return all(np.array_equal(self.run.maps(image, ()).pictures, other.run.maps(image, ()).pictures) for image in shown)

    def sheets(self) -> dict[int, dict[int, dict[str, Any]]]:
        """Image → variant → {"sheet": PNG of all layers' maps in a row, "top": places of the top k, layer by layer}."""
        return {image: {number: self.sheet_of(image, number) for number in self.shown} for image in self.run.displayed}

    def sheet_of(self, image: int, number: int) -> dict[str, Any]:
        """The received attention of one picture in multiples of uniform attention."""
        maps = self.received_maps(image, self.variants[number])
        flat = [profile.ravel() * profile.size for profile in maps if profile is not None]
        if not flat:
            return {"sheet": None, "top": [[] for _ in maps]}
        codes = RECEIVED.encode(np.concatenate(flat))
        sheet = np.zeros(-(-len(codes) // SHEET) * SHEET, dtype=np.uint8)
        sheet[: len(codes)] = codes
        top = [top_places(profile, layer) for profile, layer in zip(maps, self.layers, strict=True)]
        return {"sheet": png(sheet.reshape(-1, SHEET)), "top": top}


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
