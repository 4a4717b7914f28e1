"""`measure`: every metric that fits a captured map, from one set of sums, in blocks of queries where the map is large."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overfocus.attention import TOKEN_KINDS, AttentionMap
from overfocus.metrics.catalogue import CATALOGUE
from overfocus.metrics.gathering import gather_sums
from overfocus.metrics.group_metrics import map_metrics, pair_metrics, received_profile
from overfocus.metrics.image_profile import image_profile
from overfocus.metrics.patch_attention import check_row_sums, check_sign
from overfocus.metrics.patch_sums import PatchSums
from overfocus.metrics.token_groups import TokenGroup


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
    compare = "diversification" in names
    groups = gather_sums(attention, per_head=per_head, reference=reference, compare=compare, chunk_size=chunk_size)
    parts: list[tuple[TokenGroup, PatchSums]] = []
    of_windows: list[Float[Tensor, "metrics batch windows heads"]] = []
    for gathered in groups:
        group, (sums, of_pairs) = gathered.group, gathered.finish()
        _check(sums, group, attention)
        profile = received_profile(sums)
        of_items = map_metrics(sums, profile, summed_heads=group.summed_heads, top_fraction=top_fraction)
        if of_pairs is not None and gathered.pairs is not None:
            of_items |= pair_metrics(of_pairs, gathered.pairs, profile, top_fraction)
        names = [name for name in names if name in of_items]
        of_windows.append(torch.stack([of_items[name].float() for name in names]).view(-1, *group.size))
        parts.append((group, sums))
    stacked = of_windows[0] if len(of_windows) == 1 else torch.cat(of_windows, 2)
    stacked = stacked[:, :, 0] if stacked.shape[2] == 1 else stacked.nanmean(2)
    values = dict(zip(names, (stacked if per_head else stacked[..., 0]).unbind(0), strict=True))
    if profiles and (received := image_profile(attention, parts)) is not None:
        values["received"] = received
    return values


def _check(sums: PatchSums, group: TokenGroup, attention: AttentionMap) -> None:
    total = sums.mass + sums.prefix
    if sums.padding is not None:
        total += sums.padding
    check_row_sums(total / group.summed_heads, attention.precision, attention.module, hidden_rows=attention.hidden_rows)
    check_sign(bool(sums.log_sum.isnan().any()), attention.module)  # a row without NaN has one only from a negative logarithm


def _check_reference(reference: Int[Tensor, "batch"], batch: int) -> None:
    if reference.shape != (batch,) or bool(((reference < 0) | (reference >= batch)).any()):
        raise ValueError(
            f"expected reference to hold the index of the clean counterpart of each of {batch} images, got {reference.tolist()}"
        )
