"""The mixture of dilated 3-tap filters in TAP, computed as a few dense matrix products.

The mixture is linear in the tokens. Inside one tile of the grid it is one (targets × sources) matrix per image, which is K
fixed banded patterns weighted by the predicted weights, and one batched matrix product applies it. Grids of up to
`WHOLE_AXIS` tokens along an axis are one tile along it; longer axes are cut into tiles of about `TILE` tokens whose
sources reach `branches − 1` tokens beyond the border. Nothing the size of an unfolded image (9 copies per branch) is built.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
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
    precise = torch.promote_types(like.dtype, torch.float32)
    middle, sides = (distance == 0).to(precise), (distance == dilations).to(precise)
    return torch.where(dilations == 0, middle, middle * taps[0] + sides * taps[1]).to(like.dtype)


def mix_dilated(
    tokens: Float[Tensor, "batch tokens channels"],
    weights: Float[Tensor, "batch tokens branches"],
    grid: tuple[int, ...],
    branches: int,
    taps: tuple[float, float] = (1 / 3, 1 / 3),
) -> Float[Tensor, "batch tokens channels"]:
    """Sum over branches of weight × the tokens filtered with that branch's dilation, zero-padded at the border of the grid.

    `grid` has one axis (a sequence) or two (rows, columns), row-major in `tokens`. The filter is the same 3 taps
    (centre, side) along every axis, so (1/3, 1/3) is the 3×3 mean with divisor 9 on a plane and the 3-tap mean on a sequence.
    """
    tilings = [tile_axis(length, branches - 1) for length in grid]
    first = patterns = axis_bands(tilings[0], branches, taps, weights)
    for tiling in tilings[1:]:
        bands = first if tiling == tilings[0] else axis_bands(tiling, branches, taps, weights)
        patterns = (patterns[:, :, None, :, None] * bands[:, None, :, None, :]).flatten(3, 4).flatten(1, 2)
    if all(tiling.tiles == 1 for tiling in tilings):
        return torch.einsum("bnk,knm->bnm", weights, patterns) @ tokens
    batch, _, channels = tokens.shape
    halos = [tiling.halo for tiling in tilings]
    padded = [tiling.tiles * tiling.targets + 2 * tiling.halo for tiling in tilings]
    padding = [0, 0]
    for length, halo, width in zip(reversed(grid), reversed(halos), reversed(padded), strict=True):
        padding += [halo, width - halo - length]
    surrounded = F.pad(tokens.reshape(batch, *grid, channels), padding).flatten(1, -2)
    sources = surrounded.index_select(1, tile_positions(tilings, padded, tokens.device, halo=True).flatten())
    targets = tile_positions(tilings, list(grid), tokens.device, halo=False)
    matrices = torch.einsum(
        "bnk,knm->bnm", weights.index_select(1, targets.flatten()).reshape(-1, targets.shape[1], branches), patterns
    )
    mixed = matrices @ sources.reshape(-1, patterns.shape[2], channels)
    return mixed.reshape(batch, -1, channels).index_select(1, places_in_tiles(tilings, grid, tokens.device))


def tile_positions(
    tilings: list[AxisTiling], lengths: list[int], device: torch.device, *, halo: bool
) -> Int[Tensor, "tiles tokens"]:
    """Row-major positions of every tile's tokens in a grid of the lengths given.

    With `halo` the grid is the one padded by the halo; without, what lies beyond the end repeats the last token.
    """
    positions = torch.zeros(1, 1, dtype=torch.long, device=device)
    for tiling, length in zip(tilings, lengths, strict=True):
        starts = torch.arange(tiling.tiles, device=device) * tiling.targets
        along = starts[:, None] + torch.arange(tiling.sources if halo else tiling.targets, device=device)
        crossed = positions[:, None, :, None] * length + along.clamp(max=length - 1)[None, :, None, :]
        positions = crossed.flatten(2, 3).flatten(0, 1)
    return positions


def places_in_tiles(tilings: list[AxisTiling], grid: tuple[int, ...], device: torch.device) -> Int[Tensor, " tokens"]:
    """Where each token of the grid, row-major, is found in the tiles laid out one after the other."""
    tile = inside = torch.zeros(1, dtype=torch.long, device=device)
    for tiling, length in zip(tilings, grid, strict=True):
        along = torch.arange(length, device=device)
        tile = (tile[:, None] * tiling.tiles + along // tiling.targets).flatten()
        inside = (inside[:, None] * tiling.targets + along % tiling.targets).flatten()
    return tile * math.prod([tiling.targets for tiling in tilings]) + inside
