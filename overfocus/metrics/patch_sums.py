"""The sums over rows and columns of Ā_P that the metrics need, gathered block by block."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import threshold

from overfocus.metrics.patch_attention import NEGLIGIBLE
from overfocus.metrics.patches import Patches
from overfocus.metrics.received import precise_dtype
from overfocus.metrics.similarity import background_threshold


@dataclass
class PatchSums:
    """Sums of a_ij, the entries of Ā_P times the number of summed heads, for some items and some rows.

    Items are images, windows and, where asked for, heads.
    """

    column: Float[Tensor, "items columns"]
    """Σ_i a_ij."""
    unit_column: Float[Tensor, "items columns"]
    """Σ_i u_ij of the unit rows u_i = a_i / ‖a_i‖."""
    mass: Float[Tensor, "items rows"]
    """Σ_j a_ij."""
    inverse_length: Float[Tensor, "items rows"]
    """1 / ‖a_i‖; 0 where a row has no attention on patches."""
    log_sum: Float[Tensor, "items rows"]
    """Σ_j a_ij ln a_ij."""
    prefix: Float[Tensor, "items rows"]
    """What the rows give to prefix tokens, times the number of summed heads."""
    padding: Float[Tensor, "items rows"] | None
    """What the rows give to padding tokens, times the number of summed heads; None where there is no padding."""
    distance: Float[Tensor, "items rows"] | None
    """Σ_j a_ij d(i,j); None where the distances are unknown."""
    similarity: Float[Tensor, "items rows"] | None = None
    """cos(m>t, a_i>t) to the mean row m; None until the second pass."""

    @property
    def counted(self) -> Float[Tensor, "items rows"]:
        """1 for rows that have attention on patches, else 0."""
        return (self.inverse_length > 0).to(self.mass.dtype)

    def entropy(self) -> Float[Tensor, "items rows"]:
        """H(p_i) of the renormalised rows in nats: ln(mass) − Σ a ln a / mass; 0 where a row has no attention on patches."""
        return (self.mass.log() - self.log_sum / self.mass) * self.counted


FLOOR = 1e-18
"""Added to each weight: too little to be seen in a sum, enough that no logarithm is infinite and no square is denormal."""


def patch_sums(patches: Patches, distances: Float[Tensor, "rows columns"] | None, *, precise: bool) -> PatchSums:
    """Sum the rows of a block; `distances` belong to these rows; `precise` sums columns in double precision, to compare them.

    Adds `FLOOR` to the block, for this and what comes after.
    """
    block = patches.block.add_(FLOOR)
    mass = block.sum(-1)
    inverse_length = torch.linalg.vector_norm(block, dim=-1).reciprocal_().masked_fill_(mass <= NEGLIGIBLE, 0)
    unit_column = (inverse_length.unsqueeze(1) @ block).squeeze(1)
    scratch = torch.log(block)
    log_sum = scratch.mul_(block).sum(-1)
    distance = None if distances is None else torch.mul(block, distances, out=scratch).sum(-1)
    column = block.sum(1, dtype=precise_dtype(block.device) if precise else None)
    return PatchSums(column, unit_column, mass, inverse_length, log_sum, patches.prefix, patches.padding, distance)


def similarity_to_mean(
    block: Float[Tensor, "items rows columns"], mean_row: Float[Tensor, "items columns"], summed_heads: int
) -> Float[Tensor, "items rows"]:
    """Cosine of each row with the mean row, both without their entries up to the threshold of the diversification."""
    background = background_threshold(block.shape[-1]) * summed_heads
    mean_row = threshold(mean_row.to(block.dtype), background, 0.0).unsqueeze(1)
    above = threshold(block, background, 0.0)
    lengths = torch.linalg.vector_norm(above, dim=-1) * torch.linalg.vector_norm(mean_row, dim=-1)
    cosine: Tensor = (above @ mean_row.mT).squeeze(-1) / lengths.clamp_min_(NEGLIGIBLE)
    return cosine


def join_items(parts: list[PatchSums]) -> PatchSums:
    """Sums over all rows of several blocks of items, put together."""
    return parts[0] if len(parts) == 1 else PatchSums(*(_cat(values, 0) for values in _fields(parts)))


def join_rows(parts: list[PatchSums]) -> PatchSums:
    """Sums over several blocks of rows of the same items, put together."""
    column, unit_column, *of_rows = _fields(parts)
    return PatchSums(sum(column[1:], column[0]), sum(unit_column[1:], unit_column[0]), *(_cat(values, 1) for values in of_rows))


def _fields(parts: list[PatchSums]) -> list[list[Any]]:
    return [[getattr(part, field.name) for part in parts] for field in fields(PatchSums)]


def _cat(values: list[Tensor] | list[None], axis: int) -> Any:
    return None if values[0] is None else torch.cat(values, axis)
