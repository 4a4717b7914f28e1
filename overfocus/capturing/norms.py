"""Norms of a block's output tokens, whose outliers often are the tokens that receive most attention.

Source: T. Darcet et al., "Vision Transformers Need Registers", ICLR 2024.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.attention import AttentionMap


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
