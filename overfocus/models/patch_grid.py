"""Tokens (batch, rows · columns, channels) seen as maps (batch, channels, rows, columns), and back, without moving memory."""

from jaxtyping import Float
from torch import Tensor


def to_maps(tokens: Float[Tensor, "batch tokens channels"], grid: tuple[int, ...]) -> Float[Tensor, "batch channels *grid"]:
    """View row-major tokens as maps; contiguous tokens give a map in channels-last memory format."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def to_tokens(maps: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "batch tokens channels"]:
    """View maps as row-major tokens; a map in channels-last memory format gives contiguous tokens."""
    return maps.flatten(2).transpose(1, 2)
