"""Passing a captured map through its sums in blocks: image by image where it is small, query by query where it is large.

How large a block is depends on the device alone, and is decided in `block_sizes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.attention import AttentionMap
from overfocus.metrics.sums import MapSums, Pairs, PairSums, Patches, map_sums, pair_sums
from overfocus.metrics.tokens import TokenGroup, take_patches, token_groups

SHARE_OF_FREE_MEMORY = 0.25
"""Of an accelerator's free memory, unless a budget is given."""


@dataclass(frozen=True)
class BlockSizes:
    """Bytes that are worked on at a time."""

    images: int
    """Weights of as many images as fit in this size are computed together."""
    large_image: int
    """A map of which the images to be computed together take more than this is passed in blocks of queries."""
    queries: int
    """A block of queries of all images."""
    summed: int
    """Images wait until their patches take this much, then are summed together."""
    pairs: int
    """Rows of as many clean items as fit are copied, with those of their corrupted ones."""
    held: int
    """Means over heads of whole layers up to this size wait for those of other layers, to be summed together; 0 where a launch
    costs nothing."""


PROCESSOR = BlockSizes(images=2**21, large_image=8 * 2**20, queries=16 * 2**20, summed=2**21, pairs=2**19, held=0)
"""What stays in a processor's cache."""


def block_sizes(device: torch.device, memory: int | None = None) -> BlockSizes:
    """How large blocks are on a device.

    On a processor what fits into its cache. On an accelerator, where each launch costs and memory is fast, whole batches as far
    as they fit into `memory` bytes: by default a share of what is free when the first map is
    measured, 1 GB where that is unknown. While
    a block is at work its scores, its weights and copies of its patches exist side by side.
    """
    if device.type == "cpu":
        return PROCESSOR
    if memory is None:
        memory = 2**30
        if device.type == "cuda" and torch.cuda.is_available():
            free = torch.cuda.mem_get_info(device)[0]
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            memory = int(SHARE_OF_FREE_MEMORY * free)
    share = max(1, memory // 4)
    return BlockSizes(images=share, large_image=share, queries=share, summed=share, pairs=share // 2, held=share // 2)


@dataclass
class GroupSums:
    """The sums of the windows of a map that are measured together."""

    group: TokenGroup
    summed: MapSums | None
    pairs: PairSums | None = None
    waiting: Patches | None = None
    """Patches that are not summed yet."""

    @property
    def maps(self) -> MapSums:
        """The sums; those of layers that wait exist once `sum_waiting` has run."""
        assert self.summed is not None
        return self.summed


@dataclass(frozen=True)
class Gathering:
    """What is asked of a map."""

    top_fraction: float
    per_head: bool
    reference: tuple[int, ...] | None
    """Index in the batch of each image's clean counterpart."""
    chunk_size: int | None
    """Queries at a time; None for what fits best."""
    sizes: BlockSizes


def gather_sums(attention: AttentionMap, asked: Gathering) -> list[GroupSums]:
    """The sums of each group of windows."""
    items, heads, queries, keys = attention.shape
    image_bytes = attention.windows * heads * queries * keys * 4
    together = max(1, asked.sizes.images // image_bytes) if attention.images_first else attention.batch
    together = min(together, attention.batch)
    if asked.chunk_size is None and together * image_bytes <= asked.sizes.large_image:
        return _by_images(attention, asked, together)
    step = asked.chunk_size or max(1, asked.sizes.queries // (items * heads * keys * 4))
    return _by_queries(attention, asked, step)


def _by_images(attention: AttentionMap, asked: Gathering, step: int) -> list[GroupSums]:
    batch, queries = attention.batch, attention.shape[2]
    groups: list[_ImageSums] = []
    for first in range(0, batch, step):
        weights = row_shares(attention, 0, queries, slice(first, min(first + step, batch)))
        groups = groups or [_ImageSums(asked, batch, group, pairs) for group, pairs in _groups(attention, asked, weights.device)]
        for group in groups:
            group.add(weights)
    return [group.finish() for group in groups]


def _by_queries(attention: AttentionMap, asked: Gathering, step: int) -> list[GroupSums]:
    queries = attention.shape[2]
    groups: list[_QuerySums] = []
    for start in range(0, queries, step):
        weights = row_shares(attention, start, min(start + step, queries))
        groups = groups or [_QuerySums(asked, group, pairs) for group, pairs in _groups(attention, asked, weights.device)]
        for group in groups:
            group.add(weights, start)
    return [group.finish() for group in groups]


def row_shares(
    attention: AttentionMap, start: int, stop: int, images: slice | None = None
) -> Float[Tensor, "items heads block keys"]:
    """Rows of a map; where the model changes it after its softmax, each entry's share of its row's magnitude."""
    if images == slice(0, attention.batch):
        images = None
    weights = attention.rows(start, stop, images)
    if attention.normalised:
        return weights
    weights = weights.abs()
    return weights / weights.sum(-1, keepdim=True).clamp_min_(torch.finfo(weights.dtype).tiny)


def _groups(attention: AttentionMap, asked: Gathering, device: torch.device) -> list[tuple[TokenGroup, Pairs | None]]:
    """The groups of windows, and which of their items show one image clean and corrupted."""
    return [
        (group, None if asked.reference is None else item_pairs(asked.reference, group.items, device))
        for group in token_groups(attention, per_head=asked.per_head, device=device)
    ]


@lru_cache(maxsize=64)
def item_pairs(reference: tuple[int, ...], of_image: int, device: torch.device) -> Pairs:
    """Pairs of images as pairs of items, of which each image has so many; images that are their own reference have none."""
    with torch.inference_mode(False):
        corrupted = [image for image, clean in enumerate(reference) if clean != image]
        items = torch.arange(len(reference) * of_image).view(-1, of_image)
        clean = items[[reference[image] for image in corrupted]].flatten()
        return Pairs(clean.to(device), items[corrupted].flatten().to(device))


def sum_waiting(waiting: Sequence[GroupSums], asked: Gathering, batch: int) -> None:
    """Sum the patches of several layers of one size in one go, and give each layer its part."""
    group, parts, layers = waiting[0].group, [one.waiting for one in waiting if one.waiting is not None], len(waiting)
    patches = Patches(torch.cat([part.block for part in parts]), torch.cat([part.prefix for part in parts]), None)
    maps = _whole_sums(group, patches, asked)
    for one, of_layer in zip(waiting, maps.split(layers), strict=True):
        one.summed, one.waiting = of_layer, None
    if asked.reference is None:
        return
    device = patches.block.device
    of_all = tuple(image + layer * batch for layer in range(layers) for image in asked.reference)
    compared = pair_sums(patches.block, maps, item_pairs(of_all, group.items, device), asked.sizes.pairs)
    pairs = item_pairs(asked.reference, group.items, device)
    rows = [value.view(layers, -1, value.shape[-1]).unbind() for value in (compared.dot, compared.both_log_sum)]
    for one, dot, log_sum in zip(waiting, *rows, strict=True):
        one.pairs = PairSums(one.maps, pairs, dot, log_sum)


def _whole_sums(group: TokenGroup, patches: Patches, asked: Gathering) -> MapSums:
    """The sums of all rows of some items."""
    return map_sums(
        patches,
        group.distances(0, group.rows) if group.distances else None,
        precise=asked.reference is not None,
        summed_heads=group.summed_heads,
        top_fraction=asked.top_fraction,
    )


@dataclass
class _ImageSums:
    """Takes the maps of a batch, one or more images after the other."""

    asked: Gathering
    batch: int
    group: TokenGroup
    pairs: Pairs | None
    _parts: list[MapSums] = field(default_factory=list)
    _waiting: list[Patches] = field(default_factory=list)
    _space: Tensor | None = None
    """Patches of items, which are filled in up to `_filled` and summed up to `_summed`."""
    _filled: int = 0
    _summed: int = 0
    _whole: bool = False
    """Whether the whole batch came at once."""

    @property
    def _item_bytes(self) -> int:
        return self.group.rows * self.group.columns * 4

    def add(self, weights: Float[Tensor, "map_items heads queries keys"]) -> None:
        """Take the maps of the next images."""
        items = weights.shape[0] // self.group.map_windows * self.group.items
        if items == self.batch * self.group.items:  # the whole batch at once needs no place to be gathered in
            patches = take_patches(self.group, weights, 0)
            self._waiting, self._space, self._filled, self._whole = [patches], patches.block, items, True
            return
        if self._space is None:
            # pairs are compared when all images are there; without them, the space is filled again and again
            needed = self.batch * self.group.items
            if self.pairs is None:
                needed = min(needed, self.asked.sizes.summed // self._item_bytes + items)
            self._space = weights.new_empty(needed, self.group.rows, self.group.columns)
        space = self._space[self._filled : self._filled + items]
        self._waiting.append(take_patches(self.group, weights, 0, out=space))
        self._filled += items
        if (self._filled - self._summed) * self._item_bytes >= self.asked.sizes.summed:
            self._sum_waiting(self._space)

    def finish(self) -> GroupSums:
        """The sums of all images, and what became of the rows of each pair."""
        assert self._space is not None
        if self._whole and self.asked.sizes.held and self.group.members is None:
            return GroupSums(self.group, None, waiting=self._waiting[0])
        if self._waiting:
            self._sum_waiting(self._space)
        maps = MapSums.join(self._parts, axis=0)
        pairs = None if self.pairs is None else pair_sums(self._space, maps, self.pairs, self.asked.sizes.pairs)
        return GroupSums(self.group, maps, pairs)

    def _sum_waiting(self, space: Float[Tensor, "items rows columns"]) -> None:
        group, block = self.group, space[self._summed : self._filled]
        waiting = self._waiting
        prefix = waiting[0].prefix if len(waiting) == 1 else torch.cat([patches.prefix for patches in waiting])
        paddings = [patches.padding for patches in waiting if patches.padding is not None]
        self._parts.append(_whole_sums(group, Patches(block, prefix, torch.cat(paddings) if paddings else None), self.asked))
        self._waiting = []
        self._summed = self._filled = self._filled if self.pairs else 0


@dataclass
class _QuerySums:
    """Takes the queries of a map in order."""

    asked: Gathering
    group: TokenGroup
    pairs: Pairs | None
    _rows: int = 0
    _parts: list[MapSums] = field(default_factory=list)
    _of_pairs: list[PairSums] = field(default_factory=list)

    def add(self, weights: Float[Tensor, "map_items heads block keys"], start: int) -> None:
        """Take the queries `start` and following of all images."""
        group = self.group
        patches = take_patches(group, weights, start)
        rows = patches.block.shape[1]
        if not rows:  # prefix tokens or padding only
            return
        distances = group.distances(self._rows, self._rows + rows) if group.distances else None
        sums = map_sums(
            patches,
            distances,
            precise=self.pairs is not None,
            summed_heads=group.summed_heads,
            top_fraction=self.asked.top_fraction,
        )
        self._rows += rows
        self._parts.append(sums)
        if self.pairs:
            self._of_pairs.append(pair_sums(patches.block, sums, self.pairs, self.asked.sizes.pairs))

    def finish(self) -> GroupSums:
        """The sums of all rows, and what became of the rows of each pair."""
        maps = MapSums.join(self._parts, axis=1)
        pairs = PairSums.join(self._of_pairs, maps) if self._of_pairs else None
        return GroupSums(self.group, maps, pairs)
