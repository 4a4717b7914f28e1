"""The sums over rows and columns of Ā_P that the metrics need: what has to pass over whole maps, and nothing else.

They are gathered block by block, joined, and stacked over layers of one size, so that the metrics themselves, which only see
sums, run once for all layers of a forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import threshold

from overfocus.metrics.catalogue import TOP_FRACTION, top_count

NEGLIGIBLE = 1e-12
"""A row with less attention on patch tokens than this has none: its direction and its renormalised form are undefined."""

TAU = 2.0
"""Threshold factor τ of the diversification: entries up to τ/N count as background."""

FLOOR = 1e-18
"""Added to each weight: too little to be seen in a sum, enough that no logarithm is infinite and no square is denormal."""


class Patches(NamedTuple):
    """Rows of Ā_P times the number of heads that were summed, and what these rows give to tokens that are no patches."""

    block: Float[Tensor, "items rows columns"]
    prefix: Float[Tensor, "items rows"]
    padding: Float[Tensor, "items rows"] | None
    """None where there is no padding."""


class Pairs(NamedTuple):
    """Items (images, windows and, where asked for, heads) that show one image clean and corrupted."""

    clean: Int[Tensor, "pairs"]
    corrupted: Int[Tensor, "pairs"]


@dataclass
class MapSums:
    """Sums of a_ij, the entries of Ā_P times the number of summed heads.

    Items are images, windows and, where asked for, heads; in front of them is an axis of layers where several are stacked.
    """

    column: Float[Tensor, "*items columns"]
    """Σ_i a_ij."""
    unit_column: Float[Tensor, "*items columns"]
    """Σ_i u_ij of the unit rows u_i = a_i / ‖a_i‖."""
    mass: Float[Tensor, "*items rows"]
    """Σ_j a_ij."""
    inverse_length: Float[Tensor, "*items rows"]
    """1 / ‖a_i‖; 0 where a row has no attention on patches."""
    log_sum: Float[Tensor, "*items rows"]
    """Σ_j a_ij ln a_ij; NaN where a weight is negative."""
    prefix: Float[Tensor, "*items rows"]
    """What the rows give to prefix tokens, times the number of summed heads."""
    padding: Float[Tensor, "*items rows"] | None
    """What the rows give to padding tokens, times the number of summed heads; None where there is no padding."""
    distance: Float[Tensor, "*items rows"] | None
    """Σ_j a_ij d(i,j); None where the distances are unknown."""
    above_dot: Float[Tensor, "*items rows"] | None = None
    """Product of each row with the sum of rows, both without their background; None until the second pass."""
    above_length: Float[Tensor, "*items rows"] | None = None
    """Length of each row without its background; None until the second pass."""
    summed_heads: int = 1
    top_fraction: float = TOP_FRACTION

    @property
    def rows(self) -> int:
        """Patch tokens among the queries."""
        return self.mass.shape[-1]

    @property
    def columns(self) -> int:
        """N, the patch tokens among the keys."""
        return self.column.shape[-1]

    @property
    def top(self) -> int:
        """k, the number of tokens that count as the most attended."""
        return top_count(self.columns, self.top_fraction)

    @cached_property
    def counted(self) -> Float[Tensor, "*items rows"]:
        """1 for rows that have attention on patches, else 0."""
        return (self.inverse_length > 0).to(self.mass.dtype)

    @cached_property
    def count(self) -> Float[Tensor, "*items"]:
        """Rows that have attention on patches."""
        return self.counted.sum(-1)

    @cached_property
    def entropy(self) -> Float[Tensor, "*items rows"]:
        """H(p_i) of the renormalised rows in nats: ln(mass) − Σ a ln a / mass; 0 where a row has no attention on patches."""
        return (self.mass.log() - self.log_sum / self.mass) * self.counted

    @cached_property
    def profile(self) -> Float[Tensor, "*items columns"]:
        """r, the received attention; NaN where no row has attention on patches."""
        return profile_of(self.column, defined=self.count > 0)

    @cached_property
    def top_marks(self) -> Float[Tensor, "*items columns"]:
        """1/√k for the k most attended tokens and 0 for the others: the product of two sums to their overlap."""
        top = torch.sort(tied(self.profile), dim=-1, descending=True, stable=True).indices[..., : self.top]
        marks = torch.zeros_like(self.profile).scatter_(-1, top, top.shape[-1] ** -0.5)
        return marks.masked_fill_(self.profile.isnan(), torch.nan)

    @cached_property
    def unit_ranks(self) -> Float[Tensor, "*items columns"]:
        """Ranks of the tokens, ties sharing the mean of theirs, centred and scaled: the product of two sums to Spearman's ρ.

        NaN where the profile is constant or undefined.
        """
        value = tied(self.profile)
        ordered = value.sort(-1).values
        below = torch.searchsorted(ordered, value, right=False)
        up_to = torch.searchsorted(ordered, value, right=True)
        # the mean rank of tied entries is (below + up_to + 1) / 2, that of all (keys + 1) / 2
        ranks = (below + up_to - self.columns).to(value.dtype).masked_fill_(self.profile.isnan(), torch.nan)
        scaled: Tensor = ranks / torch.linalg.vector_norm(ranks, dim=-1, keepdim=True)
        return scaled

    @cached_property
    def row_totals(self) -> Float[Tensor, "*items rows"]:
        """What each row gives to all tokens, averaged over heads: 1 where it is attention."""
        total = self.mass + self.prefix
        return (total if self.padding is None else total + self.padding) / self.summed_heads

    @classmethod
    def join(cls, parts: "Sequence[MapSums]", *, axis: int) -> "MapSums":
        """Sums of blocks put together: of items (axis 0), or of rows of the same items (axis 1)."""
        if len(parts) == 1:
            return parts[0]
        joined = {name: _combined(torch.cat, values, axis) for name, values in _by_field(parts, skip=_OVER_ROWS[axis]).items()}
        sums: dict[str, Any] = {name: sum(getattr(part, name) for part in parts) for name in _OVER_ROWS[axis]}
        return cls(**joined, **sums)

    def split(self, layers: int) -> "list[MapSums]":
        """The sums of each of so many layers, whose items follow each other."""
        parts: dict[str, Any] = {
            item.name: value.view(layers, -1, value.shape[-1]).unbind() if isinstance(value, Tensor) else [value] * layers
            for item in fields(MapSums)
            for value in (getattr(self, item.name),)
        }
        return [MapSums(**{name: values[layer] for name, values in parts.items()}) for layer in range(layers)]

    @classmethod
    def stack(cls, layers: "Sequence[MapSums]") -> "MapSums":
        """Sums of maps of one size with an axis of layers in front."""
        return cls(**{name: _combined(torch.stack, value, 0) for name, value in _by_field(layers).items()})


@dataclass
class PairSums:
    """What becomes of each row between the clean and the corrupted map of each pair."""

    maps: MapSums
    pairs: Pairs
    dot: Float[Tensor, "*pairs rows"]
    """a_i · a'_i."""
    both_log_sum: Float[Tensor, "*pairs rows"]
    """Σ_j b_ij ln b_ij of b_i = p_i + p'_i, the sum of the renormalised rows."""

    def clean(self, values: Float[Tensor, "*items width"]) -> Float[Tensor, "*pairs width"]:
        """Those of the clean item of each pair."""
        return values.index_select(-2, self.pairs.clean)

    def corrupted(self, values: Float[Tensor, "*items width"]) -> Float[Tensor, "*pairs width"]:
        """Those of the corrupted item of each pair."""
        return values.index_select(-2, self.pairs.corrupted)

    @cached_property
    def counted(self) -> Float[Tensor, "*pairs rows"]:
        """1 for rows that have attention on patches in both, else 0."""
        return self.clean(self.maps.counted) * self.corrupted(self.maps.counted)

    @classmethod
    def join(cls, parts: "Sequence[PairSums]", maps: MapSums) -> "PairSums":
        """Comparisons of several blocks of rows of the same pairs, put together; `maps` are the joined sums."""
        dots, log_sums = ([part.dot for part in parts], [part.both_log_sum for part in parts])
        return cls(maps, parts[0].pairs, torch.cat(dots, 1), torch.cat(log_sums, 1))

    @classmethod
    def stack(cls, layers: "Sequence[PairSums]", maps: MapSums) -> "PairSums":
        """Comparisons of maps of one size with an axis of layers in front; `maps` are the stacked sums."""
        dots, log_sums = ([layer.dot for layer in layers], [layer.both_log_sum for layer in layers])
        return cls(maps, layers[0].pairs, torch.stack(dots), torch.stack(log_sums))


_OVER_ROWS = ((), ("column", "unit_column"))
"""Fields that are sums over rows: blocks of rows are added there, and set side by side in the others."""


def _by_field(parts: Sequence[MapSums], skip: Sequence[str] = ()) -> dict[str, list[Any]]:
    return {item.name: [getattr(part, item.name) for part in parts] for item in fields(MapSums) if item.name not in skip}


def _combined(how: Any, values: list[Any], axis: int) -> Any:
    return how(values, axis) if isinstance(values[0], Tensor) else values[0]


def map_sums(
    patches: Patches,
    distances: Float[Tensor, "rows columns"] | None,
    *,
    precise: bool,
    summed_heads: int = 1,
    top_fraction: float = TOP_FRACTION,
) -> MapSums:
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
    return MapSums(
        column,
        unit_column,
        mass,
        inverse_length,
        log_sum,
        patches.prefix,
        patches.padding,
        distance,
        summed_heads=summed_heads,
        top_fraction=top_fraction,
    )


def sums_above_background(
    block: Float[Tensor, "items rows columns"], column: Float[Tensor, "items columns"], *, rows: int, summed_heads: int
) -> tuple[Float[Tensor, "items rows"], Float[Tensor, "items rows"]]:
    """`above_dot` and `above_length` of the rows of a block; `column` is the sum of all `rows` of the map."""
    above = threshold(block, background(block.shape[-1], summed_heads), 0.0)
    dot = (above @ without_background(column.to(block.dtype), rows, summed_heads).unsqueeze(-1)).squeeze(-1)
    return dot, torch.linalg.vector_norm(above, dim=-1)


def without_background(column: Float[Tensor, "*items columns"], rows: int, summed_heads: int) -> Float[Tensor, "*items columns"]:
    """The sum of rows without the columns whose mean is background."""
    return threshold(column, background(column.shape[-1], summed_heads) * rows, 0.0)


def background(columns: int, summed_heads: int = 1) -> float:
    """τ/N for each summed head, raised by a part in a million so that entries equal to it but for rounding do not exceed it."""
    return TAU / columns * (1 + 2**-20) * summed_heads


def pair_sums(block: Float[Tensor, "items rows columns"], maps: MapSums, pairs: Pairs, block_bytes: int) -> PairSums:
    """Compare the rows of the paired items of a block, whose sums `maps` are; so many bytes of rows at a time."""
    share = torch.where(maps.inverse_length > 0, maps.mass.reciprocal(), 0.0).unsqueeze(-1)
    step = max(1, block_bytes // (block[0].numel() * block.element_size()))
    dots, log_sums = [block.new_empty(0, block.shape[1])], [block.new_empty(0, block.shape[1])]
    whole = step >= len(pairs.clean)
    steps = [pairs] if whole else zip(torch.split(pairs.clean, step), torch.split(pairs.corrupted, step), strict=True)
    for clean, corrupted in steps:
        before, after = block.index_select(0, clean), block.index_select(0, corrupted)
        dots.append((before * after).sum(-1))
        both = before.mul_(share.index_select(0, clean)).addcmul_(after, share.index_select(0, corrupted))
        log_sums.append(torch.log(both, out=after).mul_(both).sum(-1))
    return PairSums(maps, pairs, *(values[-1] if len(values) <= 2 else torch.cat(values) for values in (dots, log_sums)))


def precise_dtype(device: torch.device) -> torch.dtype:
    """Double precision where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def profile_of(column_sums: Float[Tensor, "*items keys"], *, defined: Bool[Tensor, "*items"]) -> Float[Tensor, "*items keys"]:
    """Column sums scaled to sum to 1; NaN where not `defined`."""
    profile = column_sums / column_sums.sum(-1, keepdim=True)
    return profile.masked_fill_(~defined.unsqueeze(-1), torch.nan)


def tied(profile: Float[Tensor, "*items keys"]) -> Float[Tensor, "*items keys"]:
    """N·r without its last binary digits, for comparisons: equal columns that were summed in another order stay equal.

    Without it the rounding of sums would put the tokens of uniform attention into an order, which is noise. What an evenly
    attended token receives becomes exactly 1, in the middle of what is rounded to it; less than `NEGLIGIBLE` becomes 0.
    """
    value = threshold(profile * profile.shape[-1], NEGLIGIBLE, 0.0)
    dropped = 23 if profile.dtype == torch.float64 else 4  # 30 of 53 digits stay, or 20 of 24
    scaled = value * (2**dropped + 1)  # Dekker's split
    rounded: Tensor = scaled - (scaled - value)
    return rounded
