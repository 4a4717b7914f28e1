"""Images in all their variants as batches for the model, and what the batches gave put together again by image."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from overfocus.analysis.groups import Group
from overfocus.analysis.measuring import Array, BatchResult, Measurer
from overfocus.analysis.parts import ClassShares, ImageResult
from overfocus.analysis.pixels import InputSize
from overfocus.analysis.pixelwise import Mask
from overfocus.analysis.variants import Packing
from overfocus.metrics.received import class_areas, received_shares

if TYPE_CHECKING:
    from overfocus.preprocessing import Preprocess


class PackMeasurer:
    """Measures a few images at a time in all their variants."""

    def __init__(
        self,
        measurer: Measurer,
        preprocess: "Preprocess",
        packing: Packing,
        displayed: Collection[int],
    ) -> None:
        self.measurer = measurer
        self.preprocess = preprocess
        self.input_size = InputSize.of(preprocess)
        self.packing = packing
        self.displayed = displayed

    def measure(self, groups: Sequence[Group]) -> list[ImageResult]:
        """Measure images that were read, at most as many as the packing puts together."""
        batches = [self._measure_batch(groups, members) for members in self.packing.batches]
        shown = [group.image for group in groups if group.image in self.displayed]
        results = []
        for place, group in enumerate(groups):
            assert group.size is not None
            mask = self._mask(group)
            result = ImageResult(
                image=group.image,
                size=group.size,
                values={layer: self._joined([batch.values[layer] for batch in batches], place) for layer in batches[0].values},
                received={
                    layer: self._joined([batch.received[layer] for batch in batches], place) for layer in batches[0].received
                },
                predictions={
                    name: self._joined([batch.predictions[name] for batch in batches], place) for name in batches[0].predictions
                },
            )
            if mask is not None:
                result.class_shares = self._class_shares(mask, result.received)
            if group.image in shown:
                at = shown.index(group.image)
                result.pictures = group.pictures[self.input_size]
                maps = [batch.class_maps for batch in batches if batch.class_maps is not None]
                if maps:
                    result.class_maps, result.mask = self._joined(maps, at), mask
                result.attention = {
                    layer: self._joined([batch.attention[layer] for batch in batches], at) for layer in batches[0].attention
                }
            results.append(result)
        return results

    def _measure_batch(self, groups: Sequence[Group], members: Sequence[int]) -> BatchResult:
        device = self.measurer.device
        pictures = [group.pictures[self.input_size][member] for group in groups for member in members]
        with self.measurer.stopwatch.on("normalising"):
            inputs = self.preprocess.normalize_batch(pictures, device)
        size = len(members)
        reference = torch.arange(len(pictures), device=device) // size * size
        shown = [slice(place * size, (place + 1) * size) for place, group in enumerate(groups) if group.image in self.displayed]
        masks = [mask for group in groups for mask in [self._mask(group)] * size]
        return self.measurer.measure(inputs, reference, shown, masks)

    def _mask(self, group: Group) -> Mask | None:
        return None if group.mask is None else self.input_size.fit_mask(group.mask)

    @staticmethod
    def _class_shares(mask: Mask, received: Mapping[int, Array]) -> dict[int, ClassShares]:
        """The attention that each class of the mask receives, by layer; layers of one grid share the mask's areas on it."""
        grids = {profile.shape[1:] for profile in received.values()}
        of_grid = {grid: class_areas(mask, grid) for grid in grids}
        found = {}
        for layer, profile in received.items():
            classes, areas = of_grid[profile.shape[1:]]
            found[layer] = ClassShares(classes, areas.mean((1, 2)), received_shares(profile, areas))
        return found

    def _joined(self, arrays: Sequence[Array], place: int) -> Array:
        """The variants of the image at `place` from the arrays of its batches; the clean one is in each and counts once."""
        parts = []
        for number, (array, members) in enumerate(zip(arrays, self.packing.batches, strict=True)):
            rows = array[place * len(members) : (place + 1) * len(members)]
            parts.append(rows[min(number, 1) :])
        return np.concatenate(parts)
