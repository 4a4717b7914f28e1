"""The mixture of dilated 3-tap filters in TAP, computed as a few dense matrix products.

The mixture is linear in the tokens. Inside one tile of the grid it is one (targets × sources) matrix per image, which is K
fixed banded patterns weighted by the predicted weights, and one batched matrix product applies it. Grids of up to
`WHOLE_AXIS` tokens along an axis are one tile along it; longer axes are cut into tiles of about `TILE` tokens whose
sources reach `branches − 1` tokens beyond the border. Nothing the size of an unfolded image (9 copies per branch) is built.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TILE = 8
WHOLE_AXIS = 16


class AxisTiling(NamedTuple):
    """How one axis of the grid is cut: `tiles` tiles of `targets` tokens, each reading `halo` tokens more on both sides."""

    tiles: int
    targets: int
    halo: int

    @property
    def sources(self) -> int:
        """Tokens that one tile reads along this axis."""
        return self.targets + 2 * self.halo


def tile_axis(length: int, reach: int) -> AxisTiling:
    """Cuts an axis of `length` tokens for filters that reach `reach` tokens to either side."""
    if length <= max(WHOLE_AXIS, TILE + 2 * reach):
        return AxisTiling(tiles=1, targets=length, halo=0)
    tiles = -(-length // TILE)
    return AxisTiling(tiles=tiles, targets=-(-length // tiles), halo=reach)


def axis_bands(
    tiling: AxisTiling, branches: int, taps: tuple[float, float], like: Tensor
) -> Float[Tensor, "branches targets sources"]:
    """The matrix of each branch's filter along one axis: branch 0 the identity, branch r the taps (side, centre, side) r apart.

    `taps` is (centre, side). Sources outside the tile have no column: they count as zero.
    """
    targets = torch.arange(tiling.halo, tiling.halo + tiling.targets, device=like.device)
    sources = torch.arange(tiling.sources, device=like.device)
    distance = (targets[:, None] - sources).abs()
    dilations = torch.arange(branches, device=like.device)[:, None, None]
    centre, side = taps
    middle = (distance == 0) * torch.where(dilations == 0, 1.0 - side, centre)
    return (middle + (distance == dilations) * side).to(like.dtype)


def mix_dilated(
    tokens: Float[Tensor, "batch tokens channels"],
    weights: Float[Tensor, "batch tokens branches"],
    grid: tuple[int, ...],
    taps: tuple[float, float] = (1 / 3, 1 / 3),
) -> Float[Tensor, "batch tokens channels"]:
    """Sum over branches of weight × the tokens filtered with that branch's dilation, zero-padded at the border of the grid.

    `grid` has one axis (a sequence) or two (rows, columns), row-major in `tokens`. The filter is the same 3 taps
    (centre, side) along every axis, so (1/3, 1/3) is the 3×3 mean with divisor 9 on a plane and the 3-tap mean on a sequence.
    """
    batch, _, channels = tokens.shape
    branches = weights.shape[-1]
    tilings = [tile_axis(length, branches - 1) for length in grid]
    patterns = axis_bands(tilings[0], branches, taps, weights)
    for tiling in tilings[1:]:
        bands = axis_bands(tiling, branches, taps, weights)
        patterns = (patterns[:, :, None, :, None] * bands[:, None, :, None, :]).flatten(3, 4).flatten(1, 2)
    if all(tiling.tiles == 1 for tiling in tilings):
        return torch.einsum("bnk,knm->bnm", weights, patterns) @ tokens
    sources = cut_into_tiles(tokens, grid, tilings, halo=True)
    matrices = torch.einsum("bnk,knm->bnm", cut_into_tiles(weights, grid, tilings, halo=False), patterns)
    return join_tiles(matrices @ sources, grid, tilings).reshape(batch, -1, channels)


def cut_into_tiles(
    tokens: Float[Tensor, "batch tokens channels"], grid: tuple[int, ...], tilings: list[AxisTiling], *, halo: bool
) -> Float[Tensor, "tiles sources channels"]:
    """The tokens of every tile, (batch · tiles, tokens of a tile, channels), zero outside the grid; with its halo on request."""
    axes = len(grid)
    padding = [0, 0]
    for length, tiling in zip(reversed(grid), reversed(tilings), strict=True):
        before = tiling.halo if halo else 0
        padding += [before, before + tiling.tiles * tiling.targets - length]
    tiles = F.pad(tokens.reshape(tokens.shape[0], *grid, tokens.shape[2]), padding)
    for axis, tiling in enumerate(tilings, start=1):
        tiles = tiles.unfold(axis, tiling.sources if halo else tiling.targets, tiling.targets)
    # (batch, *tiles per axis, channels, *tokens of a tile per axis)
    tiles = tiles.movedim(1 + axes, -1)
    return tiles.flatten(0, axes).flatten(1, -2)


def join_tiles(
    tiles: Float[Tensor, "tiles targets channels"], grid: tuple[int, ...], tilings: list[AxisTiling]
) -> Float[Tensor, "batch ... channels"]:
    """Puts tiles without halo back in place, (batch, *grid, channels); the inverse of `cut_into_tiles`."""
    axes = len(grid)
    shaped = tiles.reshape(-1, *(t.tiles for t in tilings), *(t.targets for t in tilings), tiles.shape[-1])
    order = [0, *(axis + 1 + part * axes for axis in range(axes) for part in range(2)), 1 + 2 * axes]
    joined = shaped.permute(order).reshape(shaped.shape[0], *(t.tiles * t.targets for t in tilings), tiles.shape[-1])
    for axis, length in enumerate(grid, start=1):
        joined = joined.narrow(axis, 0, length)
    return joined
