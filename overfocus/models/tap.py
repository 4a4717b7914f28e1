"""Token-aware Average Pooling (TAP): every token chooses how large a neighbourhood it speaks for before attention.

Source: Guo, Stutz, Schiele, "Robustifying Token Attention for Vision Transformers", ICCV 2023, section 3.1.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers import register_notrace_module
from torch import Tensor, nn

from overfocus.models.layers import Grid, Maps, Tokens, to_maps, to_tokens

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

    The mixture is linear in the tokens: inside one tile of the grid it is one (targets × sources) matrix per image, K fixed
    banded patterns weighted by the predicted weights, and one batched matrix product applies it. Grids of up to `WHOLE_AXIS`
    tokens along an axis are one tile along it; longer axes are cut into tiles of about `TILE` tokens whose sources reach
    `branches − 1` tokens beyond the border. Nothing the size of an unfolded image (9 copies per branch) is built.
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


IDENTITY_MARGIN = 14.0
"""By how much branch 0 leads after `favour_identity`: the other weights are 8e-7, which pretrained outputs do not show."""
POOLINGS = ("average", "max", "gaussian", "learned")
_LINEAR_TAPS = {"average": (1 / 3, 1 / 3), "gaussian": (1 / 2, 1 / 4)}


@register_notrace_module
class TokenPooling(nn.Module):
    """Mixes K poolings of the tokens, dilations 0 … K−1, by weights given per token.

    Branch 0 is the token itself; branch r pools its 3×3 neighbours (3 on a sequence) that lie r tokens apart:

    * "average": their mean, zeros beyond the border, always divided by 9 (3). No parameters.
    * "gaussian": their mean weighted 1:2:1 along every axis, zeros beyond the border. No parameters.
    * "max": their maximum per channel, over those inside the grid. No parameters.
    * "learned": a depthwise 3×3 kernel per branch, parameter `kernels` (K − 1, channels, 1, 3, 3), which starts as the average.

    So that a checkpoint tells its pooling, "gaussian" and "max" leave a buffer of that name (a single 1) in the state dict.

    Raises:
        ValueError: for an unknown pooling.
    """

    def __init__(self, channels: int, branches: int, pooling: str = "average", axes: int = 2) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"expected pooling to be one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.pooling = pooling
        self.branches = branches
        self.axes = axes
        self.linear = pooling in _LINEAR_TAPS
        self.taps = _LINEAR_TAPS.get(pooling, (0.0, 0.0))
        if pooling in ("gaussian", "max"):
            self.register_buffer(pooling, torch.ones(()))
        self.kernels: nn.Parameter | None = None
        if pooling == "learned":
            self.kernels = nn.Parameter(torch.full((branches - 1, channels, 1, *[3] * axes), 1 / 3**axes))

    def forward(self, tokens: Tokens, weights: Tokens, grid: Grid) -> Tokens:
        """The pooled tokens; `grid` is (rows, columns), or (length,) on a sequence, and holds every token given."""
        if self.branches == 1:
            return tokens
        if not torch.jit.is_scripting() and self.linear:  # type: ignore[attr-defined]
            return mix_dilated(tokens, weights, grid, self.branches, self.taps)
        image, shares = to_maps(tokens, grid), to_maps(weights, grid)
        mixed = shares[:, :1] * image
        for dilation in range(1, self.branches):
            mixed = mixed + shares[:, dilation : dilation + 1] * self.pool(image, dilation)
        return to_tokens(mixed)

    def pool(self, image: Maps, dilation: int) -> Maps:
        """The neighbours `dilation` tokens apart, pooled."""
        if self.pooling == "max":
            padded = F.pad(image, [dilation] * (2 * self.axes), value=-math.inf)
            if self.axes == 2:
                return F.max_pool2d(padded, 3, stride=1, dilation=dilation)
            return F.max_pool1d(padded, 3, stride=1, dilation=dilation)
        if self.kernels is not None:
            kernel = self.kernels[dilation - 1]
        else:
            line = torch.full([3], self.taps[1], dtype=image.dtype, device=image.device)
            line[1] = self.taps[0]
            kernel = line if self.axes == 1 else line[:, None] * line
            kernel = kernel.expand([image.shape[1], 1] + list(kernel.shape))  # noqa: RUF005  TorchScript unpacks no list
        if self.axes == 2:
            return F.conv2d(image, kernel, padding=dilation, dilation=dilation, groups=image.shape[1])
        return F.conv1d(image, kernel, padding=dilation, dilation=dilation, groups=image.shape[1])

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"branches={self.branches}, pooling={self.pooling!r}"


@register_notrace_module
class DilationPredictor(nn.Module):
    """Predicts for every token the weights of the K branches: 3×3 convolution → batch norm → 3×3 convolution → softmax.

    Parameters are named `proj.0.weight` (K, channels, 3, 3), `proj.1.*` (batch norm over K) and `proj.2.weight` (K, K, 3, 3);
    with `axes=1` the kernels are (…, 3). A block that holds its predictor as `self.dilation_predictor` and mixes with a
    `TokenPooling` has the state-dict keys of the published checkpoints, `blocks.i.dilation_predictor.proj.*`.

    With one branch there is nothing to choose: the parameters exist for their keys only and take no gradient.

    Raises:
        ValueError: for fewer than one branch, or axes other than 1 and 2.
    """

    def __init__(self, channels: int, branches: int = 4, axes: int = 2) -> None:
        super().__init__()
        if branches < 1:
            raise ValueError(f"expected at least 1 branch of pooling, got {branches}; the paper uses 4")
        if axes not in (1, 2):
            raise ValueError(f"expected 2 axes (an image) or 1 (a sequence), got {axes}")
        convolution, normalisation = (nn.Conv2d, nn.BatchNorm2d) if axes == 2 else (nn.Conv1d, nn.BatchNorm1d)
        self.branches = branches
        self.axes = axes
        self.proj = nn.Sequential(
            convolution(channels, branches, 3, padding=1, bias=False),
            normalisation(branches),
            convolution(branches, branches, 3, padding=1, bias=False),
        )
        if branches == 1:
            self.requires_grad_(False)

    def forward(self, tokens: Tokens, grid: Grid) -> Tokens:
        """Weights that sum to 1 over the branches, for the row-major tokens of `grid`.

        Raises:
            ValueError: if the grid does not hold exactly the tokens given.
        """
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            check_grid(tokens, grid, self.axes)
        if self.branches == 1:
            return torch.ones_like(tokens[:, :, :1])
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            logits: Tensor = self.proj(to_maps(tokens, grid))
        else:
            logits = self.logits(tokens, grid)
        return to_tokens(logits).softmax(dim=-1)

    def logits(self, tokens: Tokens, grid: Grid) -> Maps:
        """What the softmax over the branches is taken of."""
        first, norm, second = self.proj
        if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            maps = first(to_maps(tokens, grid))
        else:
            maps = convolve_to_few(tokens, first.get_parameter("weight"), grid)
        logits: Tensor = second(norm(maps))
        return logits

    @torch.no_grad()
    def favour_identity(self) -> None:
        """Start with nearly all weight on branch 0, whatever the tokens, so that pretrained weights behind TAP keep their output.

        The batch norm gives the same constant everywhere, and the middle tap of branch 0 turns it into a lead of
        `IDENTITY_MARGIN`. Gradients still reach every parameter but the first convolution, and that one a step later.
        """
        scale, shift = self.proj[1].parameters()
        kernels = next(self.proj[2].parameters())
        scale.zero_()
        shift.fill_(1 / self.branches)
        kernels.zero_()
        kernels[0].flatten(1)[:, 3**self.axes // 2] = IDENTITY_MARGIN


class TokenAwareAveragePooling(nn.Module):
    """One TAP step: predicts K weights per token and mixes its neighbourhoods of dilation 0 … K−1 by them.

    `branches` is K; `pooling` is "average" (the paper), "max", "gaussian" or "learned", see `TokenPooling`. `axes=1` is the
    form for sequences (text, audio): the same predictor and mixture along one axis. It looks both ways, so it is not for
    causal models.

    A transformer block that must carry the published parameter names composes the two parts itself:

        self.dilation_predictor = DilationPredictor(channels, branches)
        self.token_pools = TokenPooling(channels, branches)                       # no parameters
        pooled = self.token_pools(x, self.dilation_predictor(x, grid), grid)
        x = x + attention(norm1(pooled))                                          # the residual bypasses the pooling

    Raises:
        ValueError: for fewer than one branch, an unknown pooling, or axes other than 1 and 2.
    """

    def __init__(self, channels: int, branches: int = 4, pooling: str = "average", axes: int = 2) -> None:
        super().__init__()
        self.predictor = DilationPredictor(channels, branches, axes)
        self.pool = TokenPooling(channels, branches, pooling, axes)

    def forward(
        self,
        tokens: Tokens,
        grid: Grid | None = None,
        prefix_tokens: int = 0,
        padding: Bool[Tensor, "batch patches"] | None = None,
    ) -> Tokens:
        """The pooled tokens, in the shape given.

        `grid` is (rows, columns) of the patch tokens, row-major; a sequence needs none. The first `prefix_tokens` (class,
        distillation, register) stay exactly as they are and enter no neighbourhood. Tokens where `padding` is True count as
        zero, like everything beyond the border.

        Raises:
            ValueError: if no grid is given for an image, or it does not hold exactly the tokens behind the prefix.
        """
        if grid is None:
            patches = tokens.shape[1] - prefix_tokens
            if self.predictor.axes == 2:
                raise ValueError(f"expected grid=(rows, columns) of the {patches} patch tokens, got none")
            grid = (patches,)
        return pool_tokens(self.predictor, self.pool, tokens, grid, prefix_tokens, padding)


def convolve_to_few(
    tokens: Tokens, kernel: Float[Tensor, "branches channels *taps"], grid: Grid
) -> Float[Tensor, "batch branches *grid"]:
    """A convolution with 3 taps along every axis and zero padding 1, for far fewer output than input channels.

    One matrix product gives what each token adds to its neighbours, a fold adds it up: 2 to 4 times as fast as torch's
    convolution on processors, forwards and backwards.
    """
    spread = kernel.flip(tuple(range(2, kernel.ndim))).movedim(1, -1).flatten(0, -2)
    parts = F.linear(tokens, spread).transpose(1, 2)
    rows = 3 if len(grid) == 2 else 1
    maps = F.fold(parts, (*[1] * (2 - len(grid)), *grid), (rows, 3), padding=(rows // 2, 1))
    return maps.reshape(maps.shape[0], kernel.shape[0], *grid)


def pool_tokens(
    predictor: nn.Module,
    pools: nn.Module,
    tokens: Tokens,
    grid: Grid,
    prefix_tokens: int = 0,
    padding: Bool[Tensor, "batch patches"] | None = None,
) -> Tokens:
    """What `TokenAwareAveragePooling` does, with a `DilationPredictor` and a `TokenPooling` that live elsewhere."""
    patches = tokens[:, prefix_tokens:] if prefix_tokens else tokens
    if padding is not None:
        patches = patches.masked_fill(padding.unsqueeze(-1), 0.0)
    pooled: Tensor = pools(patches, predictor(patches, grid), grid)
    return torch.cat([tokens[:, :prefix_tokens], pooled], dim=1) if prefix_tokens else pooled


def check_grid(tokens: Tensor, grid: Grid, axes: int) -> None:
    """Raise ValueError unless `grid` has `axes` axes and holds exactly the tokens (batch, tokens, channels) given."""
    if len(grid) != axes:
        raise ValueError(f"expected a grid of {'(rows, columns)' if axes == 2 else '(length,)'}, got {tuple(grid)}")
    if math.prod(grid) != tokens.shape[1]:
        size = " × ".join(map(str, grid))
        raise ValueError(
            f"expected a grid that holds the {tokens.shape[1]} tokens given, got {size} = {math.prod(grid)}; "
            "class, distillation and register tokens are counted in prefix_tokens"
        )


class TapEncoderLayer(nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer` with token-aware average pooling along the sequence in front of its attention.

    Takes the arguments of torch's layer, and `branches` and `pooling` as keywords; `nn.TransformerEncoder` stacks it as usual.
    The pooled tokens feed the attention (and the norm before it where `norm_first` is true), the residual bypasses them. Padded
    tokens (`src_key_padding_mask`) count as zero in their neighbours' pools.

    Raises:
        ValueError: for fewer than one branch or an unknown pooling.
    """

    def __init__(self, d_model: int, nhead: int, *args: Any, branches: int = 4, pooling: str = "average", **kwargs: Any) -> None:
        super().__init__(d_model, nhead, *args, **kwargs)
        # Keeps torch's fused kernel for whole layers away, and the nested tensors it comes with: neither knows of pooling.
        self.activation_relu_or_gelu = 0
        like = self.linear1.weight
        self.dilation_predictor = DilationPredictor(d_model, branches, axes=1).to(like.device, like.dtype)
        self.token_pools = TokenPooling(d_model, branches, pooling, axes=1).to(like.device, like.dtype)

    def forward(
        self,
        src: Float[Tensor, "..."],
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "..."]:
        """The layer's output; `src` is (batch, tokens, channels), (tokens, batch, channels) or (tokens, channels), as for torch.

        Raises:
            ValueError: the layer is called as a causal one; pooling would show it the tokens to come.
        """
        if is_causal:
            raise ValueError(
                "expected attention in both directions, got is_causal=True; pooling would show tokens what comes after them"
            )
        pooled = self._pool(src, src_key_padding_mask)
        if self.norm_first:
            x = src + self._sa_block(self.norm1(pooled), src_mask, src_key_padding_mask)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._sa_block(pooled, src_mask, src_key_padding_mask))
        output: Tensor = self.norm2(x + self._ff_block(x))
        return output

    def _pool(self, source: Tensor, padding: Tensor | None) -> Tensor:
        """Pools along the tokens, whichever axis they are on; `padding` is True, or −∞, where a token is padding."""
        sequence_first = source.ndim == 3 and not self.self_attn.batch_first
        tokens = source.transpose(0, 1) if sequence_first else source.reshape(-1, *source.shape[-2:])
        if padding is not None:
            padding = (padding if padding.dtype == torch.bool else padding == -torch.inf).reshape(tokens.shape[:2])
        pooled = pool_tokens(self.dilation_predictor, self.token_pools, tokens, (tokens.shape[1],), padding=padding)
        return pooled.transpose(0, 1) if sequence_first else pooled.reshape(source.shape)
