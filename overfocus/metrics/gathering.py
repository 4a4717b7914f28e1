"""Passing a captured map through the sums of its groups: image by image where it is small, query by query where it is large."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overfocus.attention import AttentionMap
from overfocus.metrics.image_sums import ImageSums
from overfocus.metrics.pair_sums import Pairs, item_pairs
from overfocus.metrics.query_sums import QuerySums
from overfocus.metrics.token_groups import TokenGroup, token_groups

IMAGES_BYTES = 2**21
"""Weights of as many images as fit in this size are computed at a time, so that they stay in the processor's cache."""

LARGE_IMAGE_BYTES = 8 * 2**20
"""A map of which the images to be computed together take more than this is passed in blocks of queries."""

QUERIES_BYTES = 16 * 2**20
"""Size of a block of queries of all images."""

KEPT_BYTES = 32 * 2**20
"""Means over heads up to this size are kept for the second pass over the queries; larger ones are computed again."""


def gather_sums(
    attention: AttentionMap,
    *,
    per_head: bool,
    reference: Int[Tensor, "batch"] | None,
    compare: bool,
    chunk_size: int | None,
) -> list[ImageSums] | list[QuerySums]:
    """Sums of each group of windows; `compare` rows with their mean; `chunk_size` queries at a time, None for what fits best."""
    items, heads, queries, keys = attention.shape
    image_bytes = attention.windows * heads * queries * keys * 4
    together = max(1, IMAGES_BYTES // image_bytes) if attention.images_first else attention.batch
    if chunk_size is None and together * image_bytes <= LARGE_IMAGE_BYTES:
        return _by_images(attention, together, per_head, reference, compare)
    kept_bytes = items * (heads if per_head else 1) * queries * keys * 4
    keep = compare and kept_bytes <= KEPT_BYTES and chunk_size is None
    chunk_size = chunk_size or max(1, QUERIES_BYTES // (items * heads * keys * 4))
    return _by_queries(attention, chunk_size, per_head, reference, compare, keep)


def _by_images(
    attention: AttentionMap, step: int, per_head: bool, reference: Int[Tensor, "batch"] | None, compare: bool
) -> list[ImageSums]:
    batch, queries = attention.batch, attention.shape[2]
    groups: list[ImageSums] = []
    for first in range(0, batch, step):
        weights = _row_shares(attention, 0, queries, slice(first, min(first + step, batch)))
        groups = groups or [
            ImageSums(group, pairs, compare=compare) for group, pairs in _groups(attention, per_head, reference, weights.device)
        ]
        for group in groups:
            group.add(weights)
    return groups


def _by_queries(
    attention: AttentionMap, step: int, per_head: bool, reference: Int[Tensor, "batch"] | None, compare: bool, keep: bool
) -> list[QuerySums]:
    queries = attention.shape[2]
    blocks = [(start, min(start + step, queries)) for start in range(0, queries, step)]
    groups: list[QuerySums] = []
    for start, stop in blocks:
        weights = _row_shares(attention, start, stop)
        groups = groups or [
            QuerySums(group, pairs, keep=keep) for group, pairs in _groups(attention, per_head, reference, weights.device)
        ]
        for group in groups:
            group.add(weights, start)
    if keep:
        for group in groups:
            group.compare_kept()
    elif compare:
        for start, stop in blocks:
            weights = _row_shares(attention, start, stop)
            for group in groups:
                group.compare(weights, start)
    return groups


def _row_shares(
    attention: AttentionMap, start: int, stop: int, images: slice | None = None
) -> Float[Tensor, "items heads block keys"]:
    """Rows of a map; where the model changes it after its softmax, each entry's share of its row's magnitude."""
    weights = attention.rows(start, stop, images)
    if attention.normalised:
        return weights
    weights = weights.abs()
    return weights / weights.sum(-1, keepdim=True).clamp_min_(torch.finfo(weights.dtype).tiny)


def _groups(
    attention: AttentionMap, per_head: bool, reference: Int[Tensor, "batch"] | None, device: torch.device
) -> list[tuple[TokenGroup, Pairs | None]]:
    """The groups of windows, and which of their items show one image clean and corrupted."""
    return [
        (group, None if reference is None else item_pairs(reference, group.size, device))
        for group in token_groups(attention, per_head=per_head, device=device)
    ]
