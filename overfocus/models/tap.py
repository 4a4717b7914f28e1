"""Token-aware Average Pooling (TAP): every token chooses how large a neighbourhood it speaks for before attention.

Source: Guo, Stutz, Schiele, "Robustifying Token Attention for Vision Transformers", ICCV 2023, section 3.1.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from overfocus.models.patch_grid import to_maps, to_tokens
from overfocus.models.tap_pooling import TokenPooling

IDENTITY_MARGIN = 14.0
"""By how much branch 0 leads after `favour_identity`: the other weights are 8e-7, which pretrained outputs do not show."""


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

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"], grid: tuple[int, ...]
    ) -> Float[Tensor, "batch tokens branches"]:
        """Weights that sum to 1 over the branches, for the row-major tokens of `grid`.

        Raises:
            ValueError: if the grid does not hold exactly the tokens given.
        """
        check_grid(tokens, grid, self.axes)
        if self.branches == 1:
            return tokens.new_ones(*tokens.shape[:2], 1)
        first, norm, second = self.proj
        if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
            maps = first(to_maps(tokens, grid))
        else:
            maps = convolve_to_few(tokens, first.get_parameter("weight"), grid)
        logits: Tensor = second(norm(maps))
        return to_tokens(logits).softmax(dim=-1)

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
        tokens: Float[Tensor, "batch tokens channels"],
        grid: tuple[int, ...] | None = None,
        prefix_tokens: int = 0,
        padding: Bool[Tensor, "batch patches"] | None = None,
    ) -> Float[Tensor, "batch tokens channels"]:
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
    tokens: Float[Tensor, "batch tokens channels"], kernel: Float[Tensor, "branches channels *taps"], grid: tuple[int, ...]
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
    tokens: Float[Tensor, "batch tokens channels"],
    grid: tuple[int, ...],
    prefix_tokens: int = 0,
    padding: Bool[Tensor, "batch patches"] | None = None,
) -> Float[Tensor, "batch tokens channels"]:
    """What `TokenAwareAveragePooling` does, with a `DilationPredictor` and a `TokenPooling` that live elsewhere."""
    patches = tokens[:, prefix_tokens:] if prefix_tokens else tokens
    if padding is not None:
        patches = patches.masked_fill(padding.unsqueeze(-1), 0.0)
    pooled: Tensor = pools(patches, predictor(patches, grid), grid)
    return torch.cat([tokens[:, :prefix_tokens], pooled], dim=1) if prefix_tokens else pooled


def check_grid(tokens: Tensor, grid: tuple[int, ...], axes: int) -> None:
    """Raise ValueError unless `grid` has `axes` axes and holds exactly the tokens (batch, tokens, channels) given."""
    if len(grid) != axes:
        raise ValueError(f"expected a grid of {'(rows, columns)' if axes == 2 else '(length,)'}, got {tuple(grid)}")
    if math.prod(grid) != tokens.shape[1]:
        size = " × ".join(map(str, grid))
        raise ValueError(
            f"expected a grid that holds the {tokens.shape[1]} tokens given, got {size} = {math.prod(grid)}; "
            "class, distillation and register tokens are counted in prefix_tokens"
        )
