"""Sums of one group of windows, some rows of all images at a time: for maps of long sequences."""

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.metrics.pair_sums import Pairs, PairSums, join_pair_rows, pair_sums
from overfocus.metrics.patch_sums import PatchSums, join_rows, patch_sums, similarity_to_mean
from overfocus.metrics.patches import take_patches
from overfocus.metrics.token_groups import TokenGroup


class QuerySums:
    """Takes the queries of a map in order, then the same once more where they are to be compared with the mean row."""

    def __init__(self, group: TokenGroup, pairs: Pairs | None, *, keep: bool) -> None:
        """`pairs` are items of the group; `keep` the rows, so that they need not come again to be compared."""
        self.group = group
        self.pairs = pairs
        self.keep = keep
        self._rows = 0
        self._parts: list[PatchSums] = []
        self._of_pairs: list[PairSums] = []
        self._similarity: list[Tensor] = []
        self._kept: list[Tensor] = []

    def add(self, weights: Float[Tensor, "map_items heads block keys"], start: int) -> None:
        """Take the queries `start` and following of all images."""
        patches = take_patches(self.group, weights, start)
        rows = patches.block.shape[1]
        if not rows:  # prefix tokens or padding only
            return
        distances = self.group.distances(self._rows, self._rows + rows) if self.group.distances else None
        sums = patch_sums(patches, distances, precise=self.pairs is not None)
        self._rows += rows
        self._parts.append(sums)
        if self.pairs:
            self._of_pairs.append(pair_sums(patches.block, sums, self.pairs))
        if self.keep:
            self._kept.append(patches.block)

    def compare(self, weights: Float[Tensor, "map_items heads block keys"], start: int) -> None:
        """Compare the queries `start` and following with the mean row of all queries, which were added before."""
        self._compare(take_patches(self.group, weights, start).block)

    def compare_kept(self) -> None:
        """Compare the rows that were kept with the mean row of all queries."""
        for block in self._kept:
            self._compare(block)
        self._kept.clear()

    def finish(self) -> tuple[PatchSums, PairSums | None]:
        """The sums of all rows, and what became of the rows of each pair."""
        sums = join_rows(self._parts)
        if self._similarity:
            sums.similarity = torch.cat(self._similarity, 1)
        return sums, None if self.pairs is None else join_pair_rows(self._of_pairs)

    def _compare(self, block: Float[Tensor, "items rows columns"]) -> None:
        mean_row = torch.stack([part.column for part in self._parts]).sum(0) / self.group.rows
        self._similarity.append(similarity_to_mean(block, mean_row, self.group.summed_heads))
