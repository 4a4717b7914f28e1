"""The token block of FAN: self-attention over tokens, then channel processing; with TAP in front of attention on request."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import DropPath
from torch import Tensor, nn

from overfocus.models.channel_processing import ChannelProcessing
from overfocus.models.patch_grid import to_maps, to_tokens
from overfocus.models.tap import DilationPredictor
from overfocus.models.tap_pooling import TokenPooling


class BlockNorm(nn.LayerNorm):
    """Layer norm with the ε that FAN has everywhere but in channel processing."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels, eps=1e-6, **options)


class TokenMixing(nn.Module):
    """Multi-head self-attention with queries from one projection and keys and values from another."""

    def __init__(self, channels: int, heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.attn_drop = attn_drop
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch tokens channels"]:
        query = self.q(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (batch, heads, tokens, head_dim)
        keys_values = self.kv(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        key, value = keys_values.unbind(0)
        drop = self.attn_drop if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=drop)
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return out


class Downsample(nn.Module):
    """Overlapping 3×3 convolution of stride 2 and a norm, between the two widths of the extra-large model."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out_channels, kernel_size=3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_channels)  # ε 1e-5 in the reference, here alone among FAN's block norms

    def forward(self, tokens: Float[Tensor, "batch tokens channels"], grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (batch, a quarter of the tokens, out_channels) and their grid."""
        maps = self.proj(to_maps(tokens, grid))
        return self.norm(to_tokens(maps)), (maps.shape[2], maps.shape[3])


class FanBlock(nn.Module):
    """x + γ₁ · attention(norm(TAP(x))), then x + γ₂ · channel processing(norm(x)).

    TAP pools the stream before its norm, and only what attention reads: the residual keeps the unpooled tokens. Without
    `num_scales` the block has no TAP.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        num_scales: int | None = None,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.gamma1 = nn.Parameter(torch.ones(channels))
        self.gamma2 = nn.Parameter(torch.ones(channels))
        self.norm1 = BlockNorm(channels)
        self.attn = TokenMixing(channels, heads, attn_drop, proj_drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = BlockNorm(channels)
        self.mlp = ChannelProcessing(channels, heads, drop=proj_drop, attn_drop=attn_drop)
        self.dilation_predictor = None
        if num_scales is not None:
            self.dilation_predictor = DilationPredictor(channels, num_scales)
            self.token_pools = TokenPooling(channels, num_scales)
        self.downsample: Downsample | None = None  # applied after the block by the model that sets it

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch tokens channels"]:
        pooled = tokens
        if self.dilation_predictor is not None:
            pooled = self.token_pools(tokens, self.dilation_predictor(tokens, grid), grid)
        tokens = torch.addcmul(tokens, self.gamma1, self.drop_path(self.attn(self.norm1(pooled))))
        return torch.addcmul(tokens, self.gamma2, self.drop_path(self.mlp(self.norm2(tokens), grid)))
