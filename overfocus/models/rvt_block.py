"""The block of RVT: self-attention, optionally with position-aware scaling, then a convolutional feed-forward layer."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from overfocus.models.patch_grid import to_maps, to_tokens
from overfocus.models.tap import DilationPredictor
from overfocus.models.tap_pooling import TokenPooling

LINEAR_WIDTH = 768


class ScaledAttention(nn.Module):
    """Multi-head self-attention; `mask_tokens` adds position-aware scaling for exactly that many tokens.

    Position-aware scaling (Mao et al. 2022, section 3.3) multiplies the attention logits by the sigmoid of a learned
    (heads, tokens, tokens) parameter before the softmax. A product with the logits is no mask that fused attention could
    add, so these layers build their map.
    """

    def __init__(
        self, channels: int, heads: int, mask_tokens: int | None = None, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.att_mask: nn.Parameter | None = None
        if mask_tokens is not None:
            self.att_mask = nn.Parameter(
                nn.init.trunc_normal_(torch.empty(heads, mask_tokens, mask_tokens), std=0.02, a=-0.02, b=0.02)
            )
        self.qkv = nn.Linear(channels, 3 * channels)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch tokens channels"]:
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.att_mask is None:
            drop = self.attn_drop.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=drop)
        else:
            gain = self.att_mask.sigmoid() * self.scale
            weights = (query @ key.transpose(-2, -1) * gain).softmax(dim=-1)
            mixed = self.attn_drop(weights) @ value
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return out


class ConvolutionalMlp(nn.Module):
    """1×1 convolution to 4 times the width, depthwise 3×3 convolution, 1×1 convolution back, each with batch norm."""

    def __init__(self, channels: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, 4 * channels, kernel_size=1)
        self.bn1 = nn.BatchNorm2d(4 * channels)
        self.dwconv = nn.Conv2d(4 * channels, 4 * channels, kernel_size=3, padding=1, groups=4 * channels)
        self.bn2 = nn.BatchNorm2d(4 * channels)
        self.fc2 = nn.Conv2d(4 * channels, channels, kernel_size=1)
        self.bn3 = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(drop)

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch tokens channels"]:
        hidden = self.drop(F.gelu(self.bn1(self.fc1(to_maps(tokens, grid)))))
        hidden = F.gelu(self.bn2(self.dwconv(hidden)))
        return to_tokens(self.drop(self.bn3(self.fc2(hidden))))


class RvtBlock(nn.Module):
    """x + attention(norm(TAP(x))), then x + feed-forward(norm(x)); without `num_scales` the block has no TAP.

    TAP pools the stream before its norm, and only what attention reads: the residual keeps the unpooled tokens.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        num_scales: int | None = None,
        mask_tokens: int | None = None,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = ScaledAttention(channels, heads, mask_tokens, attn_drop, proj_drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        # Without TAP the reference gives blocks of width 768, all of rvt_base, an ordinary MLP, and its weights are shaped so.
        self.linear_mlp = channels == LINEAR_WIDTH and num_scales is None
        self.mlp: nn.Module
        self.mlp = Mlp(channels, 4 * channels, drop=proj_drop) if self.linear_mlp else ConvolutionalMlp(channels, proj_drop)
        self.dilation_predictor = None
        if num_scales is not None:
            self.dilation_predictor = DilationPredictor(channels, num_scales)
            self.token_pools = TokenPooling(channels, num_scales)

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch tokens channels"]:
        pooled = tokens
        if self.dilation_predictor is not None:
            pooled = self.token_pools(tokens, self.dilation_predictor(tokens, grid), grid)
        tokens = tokens + self.drop_path(self.attn(self.norm1(pooled)))
        normed = self.norm2(tokens)
        mixed: Tensor = self.mlp(normed) if self.linear_mlp else self.mlp(normed, grid)
        return torch.add(tokens, self.drop_path(mixed))
