"""How alike the rows of attention maps are, as a loss that keeps no map.

With M the mean map over heads, (queries, keys), t the threshold and M̂ = M where M > t, else 0:

    v_i = M̂_i / ‖M̂_i‖        direction of row i (0 for a row without entries above t)
    r   = mean of M_i        what each key receives; r̂ = r where r > t, else 0
    s   = mean of cos(r̂, M̂_i) = r̂ / ‖r̂‖ · mean of v_i

so the loss needs two sums over the rows of a map, of M_i and of v_i, each as long as one row. Both are added up over blocks of
images and queries. A block's weights are computed from their source (queries and keys, as fused attention leaves them, or a
map that the model made), and again in the backward pass; only what attention keeps anyway is remembered.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from overfocus.capturing.sources import ArrangedWeights, MaterialisedWeights, QueryKeyWeights

NORM_FLOOR = 1e-8
"""ε of the cosine; entries above the threshold lie far above it."""
CPU_BLOCK = 2**19
"""Weights to work on at a time, so that they stay in a processor's cache."""
GPU_BLOCK = 2**26
"""Weights to work on at a time, so that a GPU is busy."""


def row_alignment(source: ArrangedWeights, threshold: float, prefix_queries: int = 0, prefix_keys: int = 0) -> Float[Tensor, ""]:
    """Mean cosine between the rows of each head-mean map and its mean row, 0 … 1; high = all queries look at the same keys.

    Entries of at most threshold / keys count as zero, in the rows and in the mean row; a row of zeros has cosine 0. Prefix
    queries and keys are left out, and what remains of a row is not normalised again.
    """
    _, heads, queries, keys = source.shape
    limit = threshold / (keys - prefix_keys)
    size = CPU_BLOCK if _leading_tensor(source).device.type == "cpu" else GPU_BLOCK
    alignments = []
    for part in cut_images(source, size):
        rows = max(1, size // (part.shape[0] * heads * keys))
        blocks = [
            checkpoint(
                sum_rows,
                part,
                slice(start, min(start + rows, queries)),
                prefix_keys,
                limit,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(prefix_queries, queries, rows)
        ]
        weights, directions = (torch.stack(sums).sum(0) for sums in zip(*blocks, strict=True))
        received = weights / (queries - prefix_queries)
        received = torch.where(received > limit, received, 0.0)
        length = torch.linalg.vector_norm(received, dim=-1).clamp_min(NORM_FLOOR)
        alignments.append((received * directions).sum(-1) / (length * (queries - prefix_queries)))
    return torch.cat(alignments).mean()


def sum_rows(
    source: ArrangedWeights, rows: slice, prefix_keys: int, limit: float
) -> tuple[Float[Tensor, "maps keys"], Float[Tensor, "maps keys"]]:
    """Sums over some queries of the rows of the head-mean map, and of the directions of what lies above `limit`."""
    mean_map = source.rows(rows.start, rows.stop).mean(1)[..., prefix_keys:]
    kept = torch.where(mean_map > limit, mean_map, 0.0)
    inverse = torch.linalg.vector_norm(kept, dim=-1).clamp_min(NORM_FLOOR).reciprocal()
    return mean_map.sum(1), (inverse.unsqueeze(1) @ kept).squeeze(1)


def cut_images(source: ArrangedWeights, size: int) -> list[ArrangedWeights]:
    """The weights in parts of about `size`, cut by images where the first axis of the model's tensors begins with them."""
    raw, arrangement = source.source, source.arrangement
    if arrangement.axes[0][:1] != ("image",):
        return [source]
    entries = raw.shape[0]
    per_image = math.prod(arrangement.sizes[0][1:])
    count = per_image * max(1, size * entries // (per_image * math.prod(source.shape)))
    if isinstance(raw, MaterialisedWeights):
        return [ArrangedWeights(MaterialisedWeights(weights), arrangement) for weights in torch.split(raw.weights, count)]
    assert isinstance(raw, QueryKeyWeights)
    parts = -(-entries // count)
    queries, keys, masks = (
        tensor.split(count)
        if tensor is not None and tensor.ndim == len(raw.shape) and tensor.shape[0] == entries
        else [tensor] * parts
        for tensor in (raw.query, raw.key, raw.mask)
    )
    return [
        ArrangedWeights(replace(raw, query=query, key=key, mask=mask), arrangement)
        for query, key, mask in zip(queries, keys, masks, strict=True)
    ]


def _leading_tensor(source: ArrangedWeights) -> Tensor:
    raw = source.source
    if isinstance(raw, QueryKeyWeights):
        return raw.query
    assert isinstance(raw, MaterialisedWeights)
    return raw.weights
