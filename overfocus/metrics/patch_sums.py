"""The sums over the rows of one map that its metrics need, gathered block by block of queries."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import threshold

from overfocus.metrics.patch_attention import NEGLIGIBLE
from overfocus.metrics.similarity import background_threshold

FLOOR = 1e-18
"""Added to each weight: too little to be seen in a sum, enough that no logarithm is infinite and no square is denormal."""


class Pairs(NamedTuple):
    """Items of the first axis that show one image clean and corrupted."""

    clean: Int[Tensor, "pairs"]
    corrupted: Int[Tensor, "pairs"]


class PatchSums:
    """Sums over the patch rows of Ā_P, per item (image, window and, where asked for, head) or per pair of items.

    `totals` holds, after every row was added once:
        column      Σ_i Ā_ij, (items, keys)
        unit        Σ_i u_i of the unit rows, (items, keys)
        counted     rows that attend patches at all, which is Σ_i ‖u_i‖², (items,)
        entropy     Σ_i H(p_i) in nats over those rows, (items,)
        distance    Σ_i Σ_j p_ij d(i,j) over those rows, (items,); only where `distances` are known
        similar     Σ_i cos(m>t, Ā_P,i>t), (items,); after the second pass
        cosine      Σ_i cos(Ā_P,i , Ā'_P,i), (pairs,)
        divergence  Σ_i JS(p_i , p'_i) in nats over the rows that attend patches in both, (pairs,)
        in_both     number of those rows, (pairs,)
    """

    def __init__(self, distances: Callable[[int, int], Tensor] | None, pairs: Pairs | None) -> None:
        """`distances(start, stop)` gives d(i,j) of those rows to all keys, (block, keys)."""
        self.distances = distances
        self.pairs = pairs
        self.rows = 0
        self.totals: dict[str, Tensor] = {}

    def add(self, block: Float[Tensor, "items block keys"]) -> None:
        """Take the next rows of Ā_P, each entry raised by `FLOOR`."""
        mass = block.sum(-1)
        counted = mass > NEGLIGIBLE
        inverse_mass = mass.reciprocal().masked_fill_(~counted, 0)
        inverse_length = torch.linalg.vector_norm(block, dim=-1).reciprocal_().masked_fill_(~counted, 0)

        scratch = torch.mul(block, inverse_length.unsqueeze(-1))
        self._accumulate("column", block.sum(1))
        self._accumulate("unit", scratch.sum(1))
        self._accumulate("counted", counted.sum(-1))

        # H(p) of p = a / mass is ln(mass) − Σ a ln a / mass
        entropy = mass.log() - torch.log(block, out=scratch).mul_(block).sum(-1) * inverse_mass
        entropy.masked_fill_(~counted, 0)
        self._accumulate("entropy", entropy.sum(-1))

        if self.distances:
            weighted = torch.mul(block, self.distances(self.rows, self.rows + block.shape[1]), out=scratch)
            self._accumulate("distance", (weighted.sum(-1) * inverse_mass).sum(-1))
        if self.pairs:
            self._add_pairs(self.pairs, block, inverse_mass, inverse_length, entropy)
        self.rows += block.shape[1]

    def add_similar(self, block: Float[Tensor, "items block keys"]) -> None:
        """The second pass, which needs the mean row of the first: rows of Ā_P once more, for the diversification."""
        background = background_threshold(block.shape[-1])
        mean_row = threshold(self.totals["column"] / self.rows, background, 0.0)
        above = threshold(block, background, 0.0)
        lengths = torch.linalg.vector_norm(above, dim=-1) * torch.linalg.vector_norm(mean_row, dim=-1, keepdim=True)
        dots = above.mul_(mean_row.unsqueeze(1)).sum(-1)
        self._accumulate("similar", torch.where(lengths > 0, dots / lengths, 0).sum(-1))

    def _add_pairs(
        self,
        pairs: Pairs,
        block: Float[Tensor, "items block keys"],
        inverse_mass: Float[Tensor, "items block"],
        inverse_length: Float[Tensor, "items block"],
        entropy: Float[Tensor, "items block"],
    ) -> None:
        clean, corrupted = block[pairs.clean], block[pairs.corrupted]
        cosines = torch.mul(clean, corrupted).sum(-1) * inverse_length[pairs.clean] * inverse_length[pairs.corrupted]
        middle = clean.mul_(inverse_mass[pairs.clean].div_(2).unsqueeze(-1))
        middle.addcmul_(corrupted, inverse_mass[pairs.corrupted].div_(2).unsqueeze(-1))
        middle_entropy = torch.log(middle, out=corrupted).mul_(middle).sum(-1).neg_()
        divergence = middle_entropy - (entropy[pairs.clean] + entropy[pairs.corrupted]) / 2
        in_both = (inverse_mass[pairs.clean] > 0) & (inverse_mass[pairs.corrupted] > 0)
        self._accumulate("cosine", cosines.sum(-1))
        self._accumulate("divergence", divergence.clamp_min_(0).masked_fill_(~in_both, 0).sum(-1))
        self._accumulate("in_both", in_both.sum(-1))

    def _accumulate(self, name: str, value: Tensor) -> None:
        self.totals[name] = self.totals[name] + value if name in self.totals else value
