"""One model on the page: its run, restricted to what several runs share, with everything that panels ask of it, computed once."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from overfocus.run import ClassMaps, DisplayedImage, Run
from overfocus.runs.description import ImageEntry, Layer
from overfocus.statistics.panel import LayerStatistics, image_keys, layer_statistics
from overfocus.variants import CLEAN_VARIANT, CONTROL_VARIANT, Variant, middle_severity
from overfocus_reports.displayed import Displayed, ImageValues, image_values
from overfocus_reports.sentences import summarise
from overfocus_reports.summary import Summary

if TYPE_CHECKING:
    import pandas as pd

    from overfocus.figures.images import Profile


class SharedRun(Run):
    """Part of a run under the image numbers of the first one."""

    def __init__(self, run: Run, numbers: dict[int, int], variants: list[Variant], displayed: list[int]) -> None:
        """`numbers` maps the shared numbers to the run's own; `displayed` are shared numbers."""
        asked = list(dict.fromkeys(variant.corruption for variant in variants if variant.severity))
        self.path = run.path
        self.description = replace(run.description, settings=replace(run.description.settings, corruptions=asked))
        self.run = run
        self.numbers = numbers
        self._shared_variants = variants
        self._displayed = displayed

    @property
    def variants(self) -> list[Variant]:
        """The shared variants."""
        return self._shared_variants

    @property
    def images(self) -> list[ImageEntry]:
        """The shared images under their shared numbers."""
        own = self.run.images
        return [replace(own[number], image=shared) for shared, number in self.numbers.items()]

    @property
    def displayed(self) -> list[int]:
        """Shared numbers of the images whose maps all runs kept."""
        return self._displayed

    @property
    def measured(self) -> bool:
        """As `Run.measured`."""
        return self.run.measured

    @property
    def metrics(self) -> tuple[str, ...]:
        """As `Run.metrics`."""
        return self.run.metrics

    def blocks(self, kind: Literal["metrics", "predictions"], columns: Sequence[str] = ()) -> Iterator["pd.DataFrame"]:
        """As `Run.blocks`, of the shared images and variants."""
        return map(self._shared, self.run.blocks(kind, columns))

    @cached_property
    def table(self) -> "pd.DataFrame":
        """Rows of the shared images and variants."""
        return self._shared(self.run.table)

    @cached_property
    def predictions(self) -> "pd.DataFrame":
        """Rows of the shared images and variants."""
        return self._shared(self.run.predictions)

    def received(self, image: int, corruption: str = "clean", severity: int = 0) -> "list[Profile | None]":
        """As `Run.received`, by shared number."""
        return self.run.received(self.numbers[image], corruption, severity)

    def maps(self, image: int, layers: "Collection[int] | None" = None) -> DisplayedImage:
        """As `Run.maps`, by shared number, with the shared variants in their order."""
        kept = self.run.maps(self.numbers[image], layers)
        places = [kept.variants.index(variant) for variant in self.variants]
        attention = {layer: weights[places] for layer, weights in kept.attention.items()}
        return DisplayedImage([kept.variants[place] for place in places], kept.pixels[places], attention)

    @cached_property
    def attention_by_class(self) -> "pd.DataFrame":
        """Rows of the shared images and variants."""
        return self._shared(self.run.attention_by_class)

    def class_maps(self, image: int) -> ClassMaps:
        """As `Run.class_maps`, by shared number, with the shared variants in their order."""
        kept = self.run.class_maps(self.numbers[image])
        places = [kept.variants.index(variant) for variant in self.variants]
        return ClassMaps([kept.variants[place] for place in places], kept.predicted[places], kept.truth)

    def _shared(self, table: "pd.DataFrame") -> "pd.DataFrame":
        shared_of = {number: shared for shared, number in self.numbers.items()}
        known = {*self.variants, CONTROL_VARIANT}
        pairs = list(zip(table["corruption"], table["severity"], strict=True))
        kept = table[table["image"].isin(list(shared_of)) & np.fromiter((pair in known for pair in pairs), bool, len(pairs))]
        return kept.assign(image=kept["image"].map(shared_of))


def shared_runs(runs: Sequence[Run]) -> list[Run]:
    """Each run restricted to the images and versions that all have; a single run as it is."""
    if len(runs) < 2:
        return list(runs)
    keys = [image_keys(run) for run in runs]
    common = [key for key in keys[0] if all(key in others for others in keys)]
    every = [run.variants for run in runs]
    variants = [variant for variant in every[0] if all(variant in others for others in every)]
    shown = [key for key in common if all(of_run[key] in run.displayed for run, of_run in zip(runs, keys, strict=True))]
    displayed = [keys[0][key] for key in shown]
    return [
        SharedRun(run, {keys[0][key]: of_run[key] for key in common}, variants, displayed)
        for run, of_run in zip(runs, keys, strict=True)
    ]


@dataclass(frozen=True)
class Model:
    """A run and the name that it has on the page."""

    run: Run
    name: str

    @cached_property
    def summary(self) -> Summary:
        """The run in a few numbers and sentences."""
        return summarise(self.run)

    @cached_property
    def statistics(self) -> LayerStatistics:
        """Means over images of every metric."""
        return layer_statistics(self.run)

    @cached_property
    def displayed(self) -> Displayed:
        """Images and maps."""
        return Displayed(self.run, self.statistics.layers, self.statistics.variants)

    @cached_property
    def values(self) -> ImageValues:
        """Stability of every single image."""
        return image_values(self.run, self.statistics.variants, self.statistics.layers)

    @cached_property
    def focus(self) -> Layer:
        """The layer to show first: the most overfocused one."""
        return self.summary.ranked[0].layer if self.summary.ranked else self.statistics.layers[0]

    @property
    def most_damaging(self) -> Variant | None:
        """The variant under which least attention is retained, or most moves where the control was not measured."""
        known = [row for row in self.summary.survival if row.stability["received_shift"]]
        kept = [
            row for row in known if "js_divergence" in row.retained and not math.isnan(row.retained["js_divergence"].retained)
        ]
        if kept:
            return min(kept, key=lambda row: row.retained["js_divergence"].retained).variant
        return max(known, key=lambda row: row.stability["received_shift"].mean).variant if known else None

    @property
    def classified(self) -> bool:
        """Whether the model predicts classes."""
        return bool(self.run.predictions["predicted"].notna().any())


def first_picked(models: Sequence[Model]) -> Variant:
    """What the page shows first: the first corruption at its middle severity; the clean version where there is no other."""
    variants = models[0].statistics.variants
    if len(variants) == 1:
        return CLEAN_VARIANT
    first = variants[1].corruption
    return Variant(first, middle_severity([variant.severity for variant in variants if variant.corruption == first]))
