"""Sums of one group of windows, all rows of some images at a time: for maps that fit into the processor's cache."""

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.metrics.pair_sums import Pairs, PairSums, pair_sums
from overfocus.metrics.patch_sums import PatchSums, join_items, patch_sums, similarity_to_mean
from overfocus.metrics.patches import Patches, take_patches
from overfocus.metrics.token_groups import TokenGroup

SUMMED_BYTES = 2**21
"""Images wait until their patches take this much, then are summed together: few calls on what is still in the cache."""


class ImageSums:
    """Takes the maps of a batch, one or more images after the other."""

    def __init__(self, group: TokenGroup, pairs: Pairs | None, *, compare: bool) -> None:
        """`pairs` are items of the group; `compare` each row with the mean row."""
        self.group = group
        self.pairs = pairs
        self.compare = compare
        self._item_bytes = group.rows * group.columns * 4
        self._parts: list[PatchSums] = []
        self._waiting: list[Patches] = []
        self._space: Tensor | None = None
        """Patches of items, which are filled in up to `_filled` and summed up to `_summed`."""
        self._filled = self._summed = 0

    def add(self, weights: Float[Tensor, "map_items heads queries keys"]) -> None:
        """Take the maps of the next images."""
        batch, windows, heads = self.group.size
        items = weights.shape[0] // self.group.map_windows * windows * heads
        if self._space is None:
            # pairs are compared when all images are there; without them, the space is filled again and again
            needed = batch * windows * heads
            if self.pairs is None:
                needed = min(needed, SUMMED_BYTES // self._item_bytes + items)
            self._space = weights.new_empty(needed, self.group.rows, self.group.columns)
        space = self._space[self._filled : self._filled + items]
        self._waiting.append(take_patches(self.group, weights, 0, out=space))
        self._filled += items
        if (self._filled - self._summed) * self._item_bytes >= SUMMED_BYTES:
            self._sum_waiting(self._space)

    def finish(self) -> tuple[PatchSums, PairSums | None]:
        """The sums of all images, and what became of the rows of each pair."""
        assert self._space is not None
        if self._waiting:
            self._sum_waiting(self._space)
        sums = join_items(self._parts)
        return sums, None if self.pairs is None else pair_sums(self._space, sums, self.pairs)

    def _sum_waiting(self, space: Float[Tensor, "items rows columns"]) -> None:
        block = space[self._summed : self._filled]
        prefix = torch.cat([patches.prefix for patches in self._waiting])
        paddings = [patches.padding for patches in self._waiting if patches.padding is not None]
        padding = torch.cat(paddings) if paddings else None
        distances = self.group.distances(0, self.group.rows) if self.group.distances else None
        sums = patch_sums(Patches(block, prefix, padding), distances, precise=self.pairs is not None)
        if self.compare:
            sums.similarity = similarity_to_mean(block, sums.column / self.group.rows, self.group.summed_heads)
        self._parts.append(sums)
        self._waiting.clear()
        self._summed = self._filled = self._filled if self.pairs else 0
