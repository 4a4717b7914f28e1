"""One captured attention map: the weights that one site of a model used in one call, labelled with what they are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

Kind = Literal["global", "window", "pooled", "class", "channel"]
TOKEN_KINDS: tuple[Kind, ...] = ("global", "window", "pooled", "class")


@dataclass(eq=False)
class AttentionMap:
    """Attention weights of one site, computed when they are first asked for.

    `weights` is (batch · windows, heads, queries, keys); every row sums to 1. The windows of an image lie next to each
    other in the first axis: entry `image * windows + window`.
    """

    module: str
    """Name of the module in the model, e.g. "blocks.0.attn"."""
    kind: Kind
    shape: tuple[int, int, int, int]
    """(batch · windows, heads, queries, keys), known without computing the weights."""
    rows: Callable[[int, int], Tensor] = field(repr=False)
    """`rows(start, stop)` computes the weights of those queries, (batch · windows, heads, stop − start, keys)."""
    windows: int = 1
    prefix_tokens: int = 0
    """Prefix tokens (class, distillation, register) at the front of the queries; 0 where the queries hold patches alone."""
    key_prefix_tokens: int = 0
    """Prefix tokens at the front of the keys."""
    grid: tuple[int, int] | None = None
    """(rows, columns) of the query patches on the image; of one window where kind is "window"."""
    key_grid: tuple[int, int] | None = None
    """(rows, columns) of the key patches; equal to `grid` except where kind is "pooled"."""
    partition: Int[Tensor, "windows tokens"] | None = field(default=None, repr=False)
    """Position of each window's tokens in the row-major patch grid of the image, −1 for padding; None where there is one window."""
    image_grid: tuple[int, int] | None = None
    """(rows, columns) of the patch grid over the whole image, which `partition` points into; equal to `key_grid` for one window."""
    branch: str | None = None
    """What tells sites of one module apart: "shifted", "grid", "large", "small→large" and so on."""
    values: Tensor | None = field(default=None, repr=False)
    """The values that the weights were multiplied with, kept only for verification."""
    output: Tensor | None = field(default=None, repr=False)
    """The product of weights and values that the model produced, kept only for verification."""

    @cached_property
    def weights(self) -> Float[Tensor, "batch heads queries keys"]:
        """The whole map; computed when first asked for, then kept."""
        return self.rows(0, self.shape[2])

    @property
    def batch(self) -> int:
        """Images in the batch: the first axis without the windows."""
        return self.shape[0] // self.windows

    def chunks(self, size: int) -> Iterator[Float[Tensor, "batch heads chunk keys"]]:
        """The weights in blocks of at most `size` queries, in order, for long sequences; nothing is kept."""
        for start in range(0, self.shape[2], size):
            yield self.rows(start, min(start + size, self.shape[2]))
