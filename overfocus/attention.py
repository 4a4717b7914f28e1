"""Captured attention maps, the norms of the tokens beside them, and what follows from maps: rollout and a token's row.

Sources: S. Abnar, W. Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020 (rollout; `head_fusion` and `discard_ratio`
as users know them from vit-explain); T. Darcet et al., "Vision Transformers Need Registers", ICLR 2024 (norms, whose outliers
often are the tokens that receive most attention).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overfocus.errors import CaptureError
from overfocus.settings import typed

if TYPE_CHECKING:
    from overfocus.capturing.sources import ArrangedWeights


Kind = Literal["global", "window", "pooled", "class", "channel", "unlabelled"]
TOKEN_KINDS: tuple[Kind, ...] = ("global", "window", "pooled", "class")
ROW_SUM_TOLERANCE = 1e-3


@dataclass(eq=False)
class AttentionMap:
    """Attention weights of one site, computed when they are first asked for.

    `weights` is (batch · windows, heads, queries, keys); every row sums to 1. The windows of an image are adjacent in
    the first axis: entry `image * windows + window`. Prefix tokens come first, patches row by row. What is not known
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
    """How the windows are laid out: "shifted" (windows moved by a part of their size) or "grid" (strided windows)."""
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

    @cached_property
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


@dataclass(frozen=True, eq=False)
class TokenNorms:
    """Euclidean norms of the tokens that leave the block around an attention site."""

    module: str
    """The attention site."""
    norms: Float[Tensor, "batch patches"]
    """Patch tokens, row by row over the image."""
    prefix_norms: Float[Tensor, "batch prefix"]
    """Class, distillation and register tokens."""
    grid: tuple[int, int] | None


@dataclass(frozen=True)
class BlockTokens:
    """The patch tokens that the block around an attention site is expected to put out."""

    module: str
    grid: tuple[int, int] | None
    prefix: int
    tokens: int

    @classmethod
    def around(cls, attention: AttentionMap) -> "BlockTokens | None":
        """The tokens of a site's queries; None for class, channel and unlabelled attention."""
        if attention.kind in ("class", "channel", "unlabelled"):
            return None
        windows = attention.kind == "window"
        grid = attention.image_grid if windows else attention.grid
        prefix = 0 if windows else attention.prefix_tokens
        tokens = attention.shape[2] if grid is None or attention.frames > 1 else prefix + grid[0] * grid[1]
        return cls(attention.module, grid, prefix, tokens)

    @torch.no_grad()
    def norms(self, output: object) -> TokenNorms | None:
        """Norms of (batch, tokens, channels), (batch, rows, columns, channels) or (batch, channels, rows, columns).

        None where the output does not hold these tokens, as after a pooling.
        """
        if not isinstance(output, Tensor) or output.is_nested:
            return None
        if output.ndim == 4 and self.grid is not None:
            for axis, grid in ((-1, output.shape[1:3]), (1, output.shape[2:4])):
                if tuple(grid) == self.grid:
                    return TokenNorms(self.module, _norm(output, axis).flatten(1), output.new_zeros(len(output), 0), self.grid)
        if output.ndim != 3 or output.shape[1] != self.tokens:
            return None
        norms = _norm(output, -1)
        return TokenNorms(self.module, norms[:, self.prefix :], norms[:, : self.prefix], self.grid)


def _norm(output: Tensor, axis: int) -> Tensor:
    half = output.dtype in (torch.float16, torch.bfloat16)
    norms: Tensor = torch.linalg.vector_norm(output.detach(), dim=axis, dtype=torch.float32 if half else None)
    return norms.float()


HeadFusion = Literal["mean", "max", "min"]
HEAD_FUSIONS: tuple[HeadFusion, ...] = ("mean", "max", "min")


def fuse_heads(
    weights: Float[Tensor, "batch heads queries keys"], fusion: HeadFusion = "mean"
) -> Float[Tensor, "batch queries keys"]:
    """One map of all heads: their mean, maximum or minimum per entry.

    Raises:
        ValueError: unknown fusion.
    """
    if fusion == "mean":
        return weights.mean(1)
    if fusion == "max":
        return weights.amax(1)
    if fusion == "min":
        return weights.amin(1)
    raise ValueError(f"expected head_fusion to be one of {', '.join(HEAD_FUSIONS)}, got {fusion!r}")


@typed(ValueError)
@torch.no_grad()
def attention_rollout(
    maps: Sequence[AttentionMap], *, head_fusion: HeadFusion = "mean", discard_ratio: float = 0.0
) -> Float[Tensor, "batch tokens tokens"]:
    """How much of each input token reaches each output token when attention and residual are followed through the layers.

    Per layer the heads are fused, the smallest `discard_ratio` (0 … 1) of the image's entries is set to 0 (never the class
    token's attention to itself), the identity is added for the residual, and rows are made to sum to 1; the layers are
    multiplied, first layer rightmost. Row i of the result, (batch, tokens, tokens), holds the shares of the input tokens in
    output token i and sums to 1. Maps that are not global (class attention behind the last layer, say) are left out.

    Raises:
        CaptureError: there is no global map, or layers differ in their tokens (windows, pooling).
        ValueError: `discard_ratio` outside 0 … 1, or unknown `head_fusion`.
    """
    if not 0 <= discard_ratio < 1:
        raise ValueError(f"expected discard_ratio from 0 to below 1, got {discard_ratio}")
    layers = [attention for attention in maps if attention.kind == "global"]
    others = sorted({attention.kind for attention in maps if attention.kind in ("window", "pooled")})
    tokens = {attention.shape[-1] for attention in layers}
    if others or len(tokens) != 1:
        found = f"{', '.join(others)} attention" if others else f"layers of {', '.join(map(str, sorted(tokens))) or 'no'} tokens"
        raise CaptureError(
            f"rollout needs global attention over the same tokens in every layer, got {found}; use received attention"
        )
    rolled: Tensor | None = None
    for attention in layers:
        fused = fuse_heads(attention.rows(0, attention.shape[2]), head_fusion)
        if discard_ratio:
            flat = fused.flatten(1)
            smallest = flat.topk(int(flat.shape[1] * discard_ratio), largest=False).indices
            kept = flat[:, 0].clone()
            flat.scatter_(1, smallest, 0.0)
            flat[:, 0] = kept
        mixed = fused + torch.eye(fused.shape[-1], device=fused.device)
        mixed /= mixed.sum(-1, keepdim=True)
        rolled = mixed if rolled is None else mixed @ rolled
    assert rolled is not None
    return rolled


def token_row(
    weights: Float[Tensor, "batch queries keys"], *, prefix_tokens: int, grid: tuple[int, int], query: int | None = None
) -> Float[Tensor, "batch rows columns"]:
    """What one token attends to (or is made of), laid over the patch grid.

    `query` is the token's number; by default the class token, and the mean over all patches for models without one. Values
    are shares of the whole row, so that a row's prefix tokens keep theirs.

    Raises:
        ValueError: the keys are not `prefix_tokens` plus the grid, or there is no such token.
    """
    rows, columns = grid
    if weights.shape[-1] != prefix_tokens + rows * columns:
        raise ValueError(f"expected {prefix_tokens} prefix tokens and {rows}×{columns} patches as keys, got {weights.shape[-1]}")
    if query is not None and not 0 <= query < weights.shape[1]:
        raise ValueError(f"expected a query from 0 to {weights.shape[1] - 1}, got {query}")
    row = weights.mean(1) if query is None and not prefix_tokens else weights[:, query or 0]
    return row[:, prefix_tokens:].reshape(-1, rows, columns)
