"""Row by row comparison of Ā_P on the clean image with Ā'_P on the corrupted one."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overfocus.metrics.patch_sums import PatchSums

PAIRS_BYTES = 2**19
"""Rows of as many clean items as fit in this size are copied, with those of their corrupted ones."""


class Pairs(NamedTuple):
    """Items (images, windows and, where asked for, heads) that show one image clean and corrupted."""

    clean: Int[Tensor, "pairs"]
    corrupted: Int[Tensor, "pairs"]


@dataclass
class PairSums:
    """What becomes of each row."""

    cosine: Float[Tensor, "pairs rows"]
    """cos(a_i , a'_i); 0 where a row has no attention on patches."""
    divergence: Float[Tensor, "pairs rows"]
    """JS(p_i , p'_i) in nats; 0 where a row has no attention on patches."""
    counted: Float[Tensor, "pairs rows"]
    """1 for rows that have attention on patches in both, else 0."""


def item_pairs(reference: Int[Tensor, "batch"], size: tuple[int, int, int], device: torch.device) -> Pairs:
    """Pairs of images as pairs of items, numbered (image, window, head); images that are their own reference have none."""
    batch, windows, heads = size
    items = torch.arange(batch * windows * heads).view(batch, windows * heads)
    reference = reference.cpu()
    corrupted = (reference != torch.arange(batch)).nonzero().flatten()
    return Pairs(items[reference[corrupted]].flatten().to(device), items[corrupted].flatten().to(device))


def pair_sums(block: Float[Tensor, "items rows columns"], sums: PatchSums, pairs: Pairs) -> PairSums:
    """Compare rows of Ā_P of the paired items; `sums` are those of the block."""
    entropy, counted = sums.entropy(), sums.counted
    half_share = (0.5 / sums.mass) * counted
    step = max(1, PAIRS_BYTES // (block[0].numel() * block.element_size()))
    dots, middle_entropies = [block.new_empty(0, block.shape[1])], [block.new_empty(0, block.shape[1])]
    for clean, corrupted in zip(torch.split(pairs.clean, step), torch.split(pairs.corrupted, step), strict=True):
        before, after = block[clean], block[corrupted]
        dots.append((before * after).sum(-1))
        # the middle of both renormalised rows, p/2 + p'/2
        middle = before.mul_(half_share[clean].unsqueeze(-1)).addcmul_(after, half_share[corrupted].unsqueeze(-1))
        middle_entropies.append(torch.log(middle, out=after).mul_(middle).sum(-1).neg_())
    both = counted[pairs.clean] * counted[pairs.corrupted]
    divergence = torch.cat(middle_entropies) - (entropy[pairs.clean] + entropy[pairs.corrupted]) / 2
    return PairSums(
        cosine=torch.cat(dots) * sums.inverse_length[pairs.clean] * sums.inverse_length[pairs.corrupted],
        divergence=divergence.clamp_min_(0).masked_fill_(both == 0, 0),
        counted=both,
    )


def join_pair_rows(parts: list[PairSums]) -> PairSums:
    """Comparisons of several blocks of rows of the same pairs, put together."""
    return PairSums(
        torch.cat([part.cosine for part in parts], 1),
        torch.cat([part.divergence for part in parts], 1),
        torch.cat([part.counted for part in parts], 1),
    )
