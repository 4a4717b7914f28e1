"""One model on the page: its run with everything that panels ask of it, computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from overfocus.run import Run
from overfocus.runs.description import Layer
from overfocus.statistics.panel import LayerStatistics, layer_statistics
from overfocus.variants import CLEAN_VARIANT, Variant, middle_severity
from overfocus_reports.displayed import Displayed, ImageValues, image_values
from overfocus_reports.sentences import summarise
from overfocus_reports.summary import Summary


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
        """Pictures and maps."""
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
