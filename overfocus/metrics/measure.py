"""`measure`: every metric that fits a captured map, from one set of sums, in blocks of queries where the map is large."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overfocus.attention import TOKEN_KINDS, AttentionMap
from overfocus.metrics.catalogue import CATALOGUE
from overfocus.metrics.group_measurement import GroupMeasurement
from overfocus.metrics.image_profile import image_profile
from overfocus.metrics.patch_attention import check_row_sums, check_sign
from overfocus.metrics.token_groups import token_layout

WHOLE_BYTES = 64 * 2**20
"""Maps whose weights take up to this much in float32 are fetched whole."""

BLOCK_BYTES = 16 * 2**20
"""What the weights of one block of queries of a larger map take in float32."""

KEPT_BYTES = 32 * 2**20
"""Means over heads up to this size are kept for the second pass; larger ones are computed again."""


@torch.no_grad()
def measure(
    attention: AttentionMap,
    *,
    top_fraction: float = 0.05,
    per_head: bool = False,
    reference: Int[Tensor, "batch"] | None = None,
    chunk_size: int | None = None,
    profiles: bool = False,
) -> dict[str, Tensor]:
    """Every metric that fits the kind of a map, by name, sharing the sums; equal to the functions of `METRICS` within 1e-5.

    Values are (batch,), or (batch, heads) with `per_head`; the mean over the windows of an image where it has several, those
    with an undefined value left out. Maps of channels give an empty dict.

    Args:
        attention: what `capture` hands to `reduce=`.
        top_fraction: f of k = max(1, round(f·N)).
        per_head: measure each head instead of their mean.
        reference: index in the batch of each image's clean counterpart; adds the metrics of `STABILITY`, NaN where an image is
            its own counterpart.
        chunk_size: queries per block; None takes small maps whole and larger ones in blocks of a few megabytes, so that peak
            memory grows with keys × block. Large maps are computed twice, as diversification needs the mean row first.
        profiles: add "received", the received attention of the mean over heads on the image's grid, (batch, tokens);
            absent where it is unknown from where the windows came.

    Raises:
        CaptureError: NaN, negative weights, or rows that do not sum to 1; names the module.
        ValueError: `reference` does not point into the batch.
    """
    if attention.kind not in TOKEN_KINDS:
        return {}
    if reference is not None:
        _check_reference(reference, attention.batch)
    names = [name for name, metric in CATALOGUE.items() if attention.kind in metric.kinds]
    groups = _gather(attention, per_head=per_head, reference=reference, chunk_size=chunk_size, twice="diversification" in names)
    check_sign(any(group.negative for group in groups), attention.module)
    of_groups = [group.values(names, top_fraction) for group in groups]
    values = {name: _mean_over_windows([of_group[name] for of_group in of_groups]) for name in names if name in of_groups[0]}
    if not per_head:
        values = {name: value.squeeze(-1) for name, value in values.items()}
    if profiles and (profile := image_profile(groups, attention)) is not None:
        values["received"] = profile
    return values


def _gather(
    attention: AttentionMap, *, per_head: bool, reference: Int[Tensor, "batch"] | None, chunk_size: int | None, twice: bool
) -> list[GroupMeasurement]:
    """Pass the map through the sums of each group of its windows, a second time where `twice`."""
    items, heads, queries, keys = attention.shape
    measured_heads = heads if per_head else 1
    chunk = chunk_size or _chunk_size(attention.shape)
    keep = chunk >= queries or (chunk_size is None and items * measured_heads * queries * keys * 4 <= KEPT_BYTES)
    groups: list[GroupMeasurement] = []
    kept: list[list[Tensor]] = []
    for start in range(0, queries, chunk):
        rows, scale = _measured_rows(attention, start, min(start + chunk, queries), per_head=per_head)
        if not groups:
            layout = token_layout(attention, rows.device)
            size = (attention.batch, attention.windows, measured_heads)
            groups = [GroupMeasurement(layout, group, size, reference) for group in layout.groups]
            kept = [[] for _ in groups]
        for group, blocks in zip(groups, kept, strict=True):
            patches = group.patch_rows(rows, start, scale)
            group.add(patches, rows, start, scale)
            if keep:
                blocks.append(patches)
    if twice and keep:
        for group, blocks in zip(groups, kept, strict=True):
            for patches in blocks:
                group.sums.add_similar(patches)
    elif twice:
        for start in range(0, queries, chunk):
            rows, scale = _measured_rows(attention, start, min(start + chunk, queries), per_head=per_head)
            for group in groups:
                group.sums.add_similar(group.patch_rows(rows, start, scale))
    return groups


def _measured_rows(
    attention: AttentionMap, start: int, stop: int, *, per_head: bool
) -> tuple[Float[Tensor, "items block keys"], float]:
    """Rows of the map with its heads folded into the first axis, or summed, and the factor that makes a mean of them."""
    weights = attention.rows(start, stop)
    if not attention.normalised:
        weights = weights.abs()
        weights = weights / weights.sum(-1, keepdim=True)
    rows = weights.flatten(0, 1).float() if per_head else weights.sum(1, dtype=torch.float32)
    scale = 1.0 if per_head else 1 / weights.shape[1]
    check_row_sums(rows.sum(-1) * scale, weights.dtype, attention.module, hidden_rows=attention.hidden_rows)
    return rows, scale


def _chunk_size(shape: tuple[int, int, int, int]) -> int:
    """Queries per block, so that a block of a large map takes `BLOCK_BYTES`."""
    items, heads, queries, keys = shape
    bytes_per_query = items * heads * keys * 4
    return queries if queries * bytes_per_query <= WHOLE_BYTES else max(1, BLOCK_BYTES // bytes_per_query)


def _mean_over_windows(values: list[Float[Tensor, "batch windows heads"]]) -> Float[Tensor, "batch heads"]:
    value = values[0] if len(values) == 1 else torch.cat(values, 1)
    return value[:, 0] if value.shape[1] == 1 else value.nanmean(1)


def _check_reference(reference: Int[Tensor, "batch"], batch: int) -> None:
    if reference.shape != (batch,) or bool(((reference < 0) | (reference >= batch)).any()):
        raise ValueError(
            f"expected reference to hold the index of the clean counterpart of each of {batch} images, got {reference.tolist()}"
        )
