"""One captured attention map: the weights that one site of a model used in one call, labelled with what they are."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overfocus.errors import CaptureError

if TYPE_CHECKING:
    from overfocus.capturing.sources import ArrangedWeights

Kind = Literal["global", "window", "pooled", "class", "channel", "unlabelled"]
TOKEN_KINDS: tuple[Kind, ...] = ("global", "window", "pooled", "class")
ROW_SUM_TOLERANCE = 1e-3


@dataclass(eq=False)
class AttentionMap:
    """Attention weights of one site, computed when they are first asked for.

    `weights` is (batch · windows, heads, queries, keys); every row sums to 1. The windows of an image lie next to each
    other in the first axis: entry `image * windows + window`. Prefix tokens come first, patches row by row. What is not known
    is None, never guessed; a map of which not even the axes are known is "unlabelled": (items, 1, queries, keys).
    """

    module: str
    """Name of the module in the model, e.g. "blocks.0.attn"."""
    kind: Kind
    source: "ArrangedWeights" = field(repr=False)
    """What the weights are computed from."""
    windows: int = 1
    prefix_tokens: int = 0
    """Prefix tokens (class, distillation, register) at the front of the queries; all queries where kind is "class"."""
    key_prefix_tokens: int = 0
    """Prefix tokens at the front of the keys."""
    grid: tuple[int, int] | None = None
    """(rows, columns) of the query patches; of one window where kind is "window", of the keys where kind is "class"."""
    key_grid: tuple[int, int] | None = None
    """(rows, columns) of the key patches; equal to `grid` except where kind is "pooled"."""
    partition: Int[Tensor, "windows tokens"] | None = field(default=None, repr=False)
    """Place of each window's patches in the row-major patch grid of the image, −1 for padding; None for one window."""
    image_grid: tuple[int, int] | None = None
    """(rows, columns) of the patch grid over the whole image, which `partition` points into."""
    branch: str | None = None
    """What tells the windows apart: "shifted" (windows moved by a part of their size) or "grid" (strided windows)."""
    frames: int = 1
    """Frames of a video: the query patches are `frames` grids, one after the other; 1 for images."""
    normalised: bool = True
    """False where the model changes the map after its softmax (mixed heads, differences of maps), so that rows need not sum
    to 1 and entries may be negative; metrics then take each entry's share of its row's magnitude."""
    precision: torch.dtype = torch.float32
    """Type that the weights were made in: where the model keeps its own map in a half, rows miss 1 by the rounding."""
    computed_in: torch.dtype = torch.float32
    """Type of the queries and keys, or of the map that the model made: what its own rounding follows."""
    hidden_rows: bool = False
    """Whether a mask may hide all keys of a query (padding), whose row is then zero."""
    deviation: tuple[float, float] | None = None
    """(largest absolute difference between weights × values and what the model produced, largest absolute value of that);
    measured by `overfocus.verify` only."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch · windows, heads, queries, keys), known without computing the weights."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """Where the weights are computed."""
        return self.source.device

    @property
    def batch(self) -> int:
        """Images in the batch: the first axis without the windows."""
        return self.shape[0] // self.windows

    @property
    def images_first(self) -> bool:
        """Whether rows of some images cost no more than their share of the whole map."""
        return self.source.images_first

    def rows(self, start: int, stop: int, images: slice | None = None) -> Float[Tensor, "batch heads rows keys"]:
        """The weights of queries `start` to `stop` (of a slice of the images), computed now and not kept; float32.

        Raises:
            CaptureError: the model has overwritten its queries or keys in place since this attention ran.
        """
        self.source.check_unchanged(self.module)
        return self.source.rows(start, stop, images)

    def chunks(self, size: int) -> Iterator[Float[Tensor, "batch heads chunk keys"]]:
        """The weights in blocks of at most `size` queries, in order, for long sequences; nothing is kept."""
        for start in range(0, self.shape[2], size):
            yield self.rows(start, min(start + size, self.shape[2]))

    @cached_property
    def weights(self) -> Float[Tensor, "batch heads queries keys"]:
        """The whole map; computed when first asked for, then kept.

        Raises:
            CaptureError: it holds NaN, or a row does not sum to 1 within 1e-3 (or two rounding units of a half).
        """
        weights = self.rows(0, self.shape[2])
        tolerance = row_tolerance(self.precision) if self.normalised else None
        check_rows(weights, self.module, tolerance=tolerance, hidden_rows=self.hidden_rows)
        return weights


def row_tolerance(precision: torch.dtype) -> float:
    """How far the sum of a row of weights of this type may be from 1."""
    return max(ROW_SUM_TOLERANCE, 2 * torch.finfo(precision).eps)


def check_rows(
    weights: Float[Tensor, "*batch keys"], module: str, *, tolerance: float | None = ROW_SUM_TOLERANCE, hidden_rows: bool = False
) -> None:
    """Raise `CaptureError` where weights hold NaN, or rows do not sum to 1 within `tolerance` (None: they need not)."""
    sums = weights.detach().sum(-1)
    if not bool(torch.isfinite(sums).all()):
        raise CaptureError(f"{module}: the attention weights hold NaN or infinity; check the checkpoint's weights and the input")
    if tolerance is None:
        return
    wrong = (sums - 1).abs() > tolerance
    if hidden_rows:
        wrong &= sums != 0
    if bool(wrong.any()):
        raise CaptureError(f"{module}: expected attention rows that sum to 1, got a row that sums to {float(sums[wrong][0]):.4g}")
