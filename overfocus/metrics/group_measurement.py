"""The metrics of one group of windows, from blocks of queries of the map that it belongs to."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overfocus.metrics.concentration import (
    effective_share,
    gini_coefficient,
    in_units_of_uniform,
    largest_ratio,
    share_of_top,
)
from overfocus.metrics.patch_sums import FLOOR, Pairs, PatchSums
from overfocus.metrics.received import profile_of
from overfocus.metrics.similarity import mean_pair_cosine
from overfocus.metrics.stability import overlap_of_top, spearman, total_variation
from overfocus.metrics.token_groups import TokenGroup, TokenLayout


class GroupMeasurement:
    """Gathers the sums of a group, then turns them into metrics of shape (batch, windows, heads)."""

    def __init__(
        self,
        layout: TokenLayout,
        group: TokenGroup,
        size: tuple[int, int, int],
        reference: Int[Tensor, "batch"] | None,
    ) -> None:
        """`size` is (batch, windows, heads) of the map; heads is 1 where their mean is measured."""
        self.layout = layout
        self.group = group
        self.map_size = size
        self.size = size if group.windows is None else (size[0], len(group.windows), size[2])
        self.pairs = _item_pairs(reference, self.size) if reference is not None else None
        self.sums = PatchSums(group.distances, self.pairs)
        self.prefix_mass: Tensor | float = 0.0

    def patch_rows(
        self, attention: Float[Tensor, "all_items block keys"], start: int, scale: float
    ) -> Float[Tensor, "items rows columns"]:
        """The group's part of Ā_P, each entry raised by `FLOOR`, from the map's queries `start` and following times `scale`."""
        patches = self._rows(attention, start)[:, :, self.layout.key_prefix :]
        if self.group.kept_keys is not None:
            patches = patches[:, :, self.group.kept_keys]
        return torch.add(torch.tensor(FLOOR), patches, alpha=scale)

    def add(
        self,
        patches: Float[Tensor, "items rows columns"],
        attention: Float[Tensor, "all_items block keys"],
        start: int,
        scale: float,
    ) -> None:
        """Take the next `patch_rows` of `attention`, and what these rows give to prefix tokens."""
        self.sums.add(patches)
        if self.layout.key_prefix:
            prefix = self._rows(attention, start)[:, :, : self.layout.key_prefix]
            self.prefix_mass = self.prefix_mass + prefix.sum((1, 2)) * scale

    @property
    def negative(self) -> bool:
        """Whether a weight was negative: nothing else makes the logarithm of a finite row undefined."""
        return bool(self.sums.totals["entropy"].isnan().any())

    def values(self, names: list[str], top_fraction: float) -> dict[str, Float[Tensor, "batch windows heads"]]:
        """The named metrics."""
        totals, rows, columns = self.sums.totals, self.group.rows, self.group.columns
        profile = profile_of(totals["column"], defined=totals["counted"] > 0)
        formulas = {
            "top_share": lambda: share_of_top(profile, top_fraction),
            "max_ratio": lambda: largest_ratio(profile),
            "gini": lambda: gini_coefficient(profile),
            "effective_tokens": lambda: effective_share(profile),
            "row_entropy": lambda: in_units_of_uniform(totals["entropy"] / totals["counted"], keys=columns),
            "prefix_share": lambda: torch.zeros_like(totals["entropy"]) + self.prefix_mass / rows,
            "token_cosine": lambda: mean_pair_cosine(totals["unit"], totals["counted"], rows=rows),
            "diversification": lambda: totals["similar"] / rows,
            "attention_distance": lambda: totals["distance"] / totals["counted"],
        }
        if "distance" not in totals:
            del formulas["attention_distance"]
        values = {name: formulas[name]().view(self.size) for name in names if name in formulas}
        if self.pairs:
            values |= self._pair_values(self.pairs, profile, top_fraction)
        return values

    def received(self) -> Float[Tensor, "batch windows columns"]:
        """Received attention r of the mean over heads."""
        heads = self.sums.totals["column"].view(*self.size, -1)
        counted = self.sums.totals["counted"].view(self.size)
        return profile_of(heads.sum(2), defined=(counted > 0).any(2))

    def _pair_values(self, pairs: Pairs, profile: Tensor, top_fraction: float) -> dict[str, Tensor]:
        totals, rows = self.sums.totals, self.group.rows
        before, after = profile[pairs.clean], profile[pairs.corrupted]
        of_pairs = {
            "top_overlap": overlap_of_top(before, after, top_fraction),
            "rank_correlation": spearman(before, after),
            "attention_cosine": totals["cosine"] / rows,
            "js_divergence": totals["divergence"] / (totals["in_both"] * math.log(2)),
            "received_shift": total_variation(before, after),
        }
        return {
            name: profile.new_full((len(profile),), math.nan).index_copy_(0, pairs.corrupted, value).view(self.size)
            for name, value in of_pairs.items()
        }

    def _rows(self, attention: Float[Tensor, "all_items block keys"], start: int) -> Float[Tensor, "items rows keys"]:
        """The rows of patch queries in the group's windows."""
        prefix = max(self.layout.query_prefix - start, 0)
        rows = attention[:, prefix:]
        if self.group.windows is not None:
            rows = rows.view(*self.map_size, *rows.shape[1:])[:, self.group.windows].flatten(0, 2)
        if self.group.kept_queries is not None:
            first = start + prefix - self.layout.query_prefix
            places = self.group.kept_queries - first
            rows = rows[:, places[(places >= 0) & (places < rows.shape[1])]]
        return rows


def _item_pairs(reference: Int[Tensor, "batch"], size: tuple[int, int, int]) -> Pairs:
    """Pairs of images as pairs of items, which are numbered (image, window, head)."""
    batch, windows, heads = size
    items = torch.arange(batch * windows * heads, device=reference.device).view(batch, windows * heads)
    corrupted = (reference != torch.arange(batch, device=reference.device)).nonzero().flatten()
    return Pairs(clean=items[reference[corrupted]].flatten(), corrupted=items[corrupted].flatten())
