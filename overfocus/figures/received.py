"""Received attention of a run, each picture's maps read from their file once."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from overfocus.errors import RunError
from overfocus.metrics.expectation import top_count
from overfocus.runs.description import Layer
from overfocus.variants import Variant

if TYPE_CHECKING:
    from overfocus.run import Run

Profile = npt.NDArray[np.floating[Any]]


class ReceivedMaps:
    """The received attention of any image in any variant."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self._kept: dict[tuple[int, Variant], list[Profile | None]] = {}

    def __call__(self, image: int, variant: Variant) -> list[Profile | None]:
        """One (rows, columns) profile per layer of the run, summing to 1; None where it was not kept or has no grid."""
        key = (image, variant)
        if key not in self._kept:
            try:
                self._kept[key] = list(self.run.received(image, variant.corruption, variant.severity))
            except RunError:  # a long run keeps the maps of its first images only
                self._kept[key] = [None] * len(self.run.layers)
        return self._kept[key]


def top_places(profile: Profile | None, layer: Layer) -> list[int]:
    """Places of the k most attended patches on the image grid, the most attended first; ties go to the lower place."""
    return [] if profile is None else largest_places(profile, layer.top_fraction)


def largest_places(values: Profile, top_fraction: float) -> list[int]:
    """Places of the k = max(1, round(f·N)) largest of N known values, largest first; ties go to the lower place."""
    flat = values.ravel()
    count = top_count(int(np.isfinite(flat).sum()), top_fraction)
    return [int(place) for place in np.argsort(-flat, kind="stable")[:count]]
