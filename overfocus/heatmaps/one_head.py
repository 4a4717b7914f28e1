"""A captured map with one of its heads alone, so that everything that works on a map works on a head."""

from dataclasses import dataclass, replace

from torch import Tensor

from overfocus.attention import AttentionMap
from overfocus.capturing.sources import ArrangedWeights
from overfocus.errors import CaptureError


@dataclass(eq=False)
class HeadWeights(ArrangedWeights):
    """Weights of one head, (images · windows, 1, queries, keys)."""

    head: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images · windows, 1, queries, keys)."""
        maps, _, queries, keys = super().shape
        return maps, 1, queries, keys

    def rows(self, start: int, stop: int, images: slice | None = None) -> Tensor:
        """Weights of those queries (and images) in that head."""
        return super().rows(start, stop, images)[:, self.head : self.head + 1]


def one_head(attention: AttentionMap, head: int) -> AttentionMap:
    """The map of head `head`, counted from 0; negative numbers count from the last.

    Raises:
        CaptureError: the layer has no such head.
    """
    heads = attention.shape[1]
    if not -heads <= head < heads:
        raise CaptureError(f"{attention.module}: head must be between {-heads} and {heads - 1}, got {head}")
    source = attention.source
    return replace(attention, source=HeadWeights(source.source, source.arrangement, head % heads))
