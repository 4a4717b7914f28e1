"""Sums of one group of windows, all rows of some images at a time: for maps that fit into the processor's cache."""

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.metrics.pair_sums import Pairs, PairSums, pair_sums
from overfocus.metrics.patch_sums import PatchSums, join_items, patch_sums, similarity_to_mean
from overfocus.metrics.patches import Patches, take_patches
from overfocus.metrics.token_groups import TokenGroup

SUMMED_BYTES = 2**20
"""Images wait until their patches take this much, then are summed together: few calls on what is still in the cache."""


class ImageSums:
    """Takes the maps of a batch, one or more images after the other."""

    def __init__(self, group: TokenGroup, pairs: Pairs | None, *, compare: bool) -> None:
        """`pairs` are items of the group; `compare` each row with the mean row."""
        self.group = group
        self.pairs = pairs
        self.compare = compare
        self._parts: list[PatchSums] = []
        self._waiting: list[Patches] = []
        self._kept: list[Tensor] = []

    def add(self, weights: Float[Tensor, "map_items heads queries keys"]) -> None:
        """Take the maps of the next images."""
        self._waiting.append(take_patches(self.group, weights, 0))
        if sum(patches.block.nbytes for patches in self._waiting) >= SUMMED_BYTES:
            self._sum_waiting()

    def finish(self) -> tuple[PatchSums, PairSums | None]:
        """The sums of all images, and what became of the rows of each pair."""
        if self._waiting:
            self._sum_waiting()
        sums = join_items(self._parts)
        return sums, None if self.pairs is None else pair_sums(torch.cat(self._kept), sums, self.pairs)

    def _sum_waiting(self) -> None:
        block, prefix, padding = (_cat(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        distances = self.group.distances(0, self.group.rows) if self.group.distances else None
        sums = patch_sums(Patches(block, prefix, padding), distances, precise=self.pairs is not None)
        if self.compare:
            sums.similarity = similarity_to_mean(block, sums.column / self.group.rows, self.group.summed_heads)
        self._parts.append(sums)
        if self.pairs:
            self._kept.append(block)


def _cat(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
