"""RVT, the robust vision transformer (Mao et al. 2022, https://arxiv.org/abs/2105.07926), with and without TAP.

Image → tokens at stride 16 → one or two stages of blocks with a pooling convolution between → mean token → classifier.
No class token and no positional encoding. Parameter names and shapes are those of the reference of "Robustifying Token
Attention for Vision Transformers" (ICCV 2023).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from overfocus.models.convnext_stem import HybridEmbedding
from overfocus.models.layers import run_block, to_maps, to_tokens
from overfocus.models.registration import TAP_BRANCHES, pretrained_config, register_architecture
from overfocus.models.tap import DilationPredictor, TokenPooling

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


class RvtEmbedding(nn.Module):
    """Image → tokens at stride 16: 7×7 convolution, batch norm, max pooling, 4×4 convolution, no activation."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        # Padding 2 of a 7×7 kernel is odd (224 → 111), and kept: the released weights saw that crop.
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, 32, kernel_size=7, stride=2, padding=2),
            nn.BatchNorm2d(32),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            nn.Conv2d(32, channels, kernel_size=4, stride=4),
        )

    @staticmethod
    def length(pixels: int) -> int:
        """Patches along an axis of so many pixels."""
        return (((pixels - 3) // 2 + 1 - 1) // 2 + 1) // 4

    def forward(self, images: Float[Tensor, "batch in_chans height width"]) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (batch, rows · columns, channels) and their grid (rows, columns)."""
        maps = self.proj(images)
        return to_tokens(maps), (maps.shape[2], maps.shape[3])


class RvtStage(nn.Module):
    """The blocks of one width."""

    def __init__(self, blocks: list[RvtBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)


class RvtPool(nn.Module):
    """Depthwise 3×3 convolution of stride 2 that widens the tokens between two stages."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size=3, stride=2, padding=1, groups=channels)

    def forward(self, tokens: Float[Tensor, "batch tokens channels"], grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (batch, a quarter of the tokens, out_channels) and their grid."""
        maps = self.conv(to_maps(tokens, grid))
        return to_tokens(maps), (maps.shape[2], maps.shape[3])


class Rvt(nn.Module):
    """RVT classifier; (batch, in_chans, height, width) → (batch, num_classes).

    `embed_dims`, `depths` and `num_heads` have one entry per stage. The first `masked_blocks` blocks have position-aware
    scaling, whose size is that of the grid of an image of `img_size`; such a model takes images of that size only, without
    it any size works. `stem_depths` puts the ConvNeXt stem in front, `num_scales` TAP with that many branches in every block.
    """

    def __init__(
        self,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        masked_blocks: int = 0,
        stem_depths: tuple[int, int] | None = None,
        num_scales: int | None = None,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dims[-1]
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.grad_checkpointing = False
        height, width = self.img_size

        self.patch_embed: nn.Module
        if stem_depths is None:
            self.patch_embed = RvtEmbedding(in_chans, embed_dims[0])
            self.grid_size = (RvtEmbedding.length(height), RvtEmbedding.length(width))
            stride = 16
        else:
            self.patch_embed = HybridEmbedding(in_chans, embed_dims[0], stem_depths, patch_size=1)
            self.grid_size = (height // 8, width // 8)
            stride = 8
        self.mask_grid = self.grid_size if masked_blocks else None
        mask_tokens = self.grid_size[0] * self.grid_size[1]
        total = sum(depths)
        drops = {"proj_drop": proj_drop_rate, "attn_drop": attn_drop_rate}
        self.transformers, self.pools = nn.ModuleList(), nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        for stage, (channels, depth, heads) in enumerate(zip(embed_dims, depths, num_heads, strict=True)):
            blocks = []
            for index in range(depth):
                number = len(self.feature_info)
                masked = mask_tokens if number < masked_blocks else None
                # The reference's ramp ends one step below the rate.
                drop_path = drop_path_rate * number / total
                blocks.append(RvtBlock(channels, heads, num_scales, masked, **drops, drop_path=drop_path))
                module = f"transformers.{stage}.blocks.{index}"
                self.feature_info.append({"num_chs": channels, "reduction": stride * 2**stage, "module": module})
            self.transformers.append(RvtStage(blocks))
            if stage > 0:
                self.pools.append(RvtPool(embed_dims[stage - 1], channels))
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in the place of the old one; none for 0 classes."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"expected global_pool 'avg', since RVT has no class token, got {global_pool!r}")
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last layer, from features to logits."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the blocks for the backward pass."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters with more than one axis that take no weight decay: none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for timm's layer-wise learning rates."""
        blocks = [
            (r"^transformers\.(\d+)" if coarse else r"^transformers\.(\d+)\.blocks\.(\d+)", None),
            (r"^pools\.(\d+)", (99998,)),
        ]
        return {"stem": r"^patch_embed", "blocks": [*blocks, (r"^norm", (99999,))]}

    def token_maps(self, images: Float[Tensor, "batch in_chans height width"]) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Tokens (batch, rows · columns, channels) and their grid after every block, in order."""
        # In this memory format no layer copies between maps and tokens.
        tokens, grid = self.patch_embed(images.contiguous(memory_format=torch.channels_last))
        if self.mask_grid is not None and grid != self.mask_grid:
            raise ValueError(
                f"expected an image of {self.img_size} pixels, whose {self.mask_grid} patches the position-aware scaling was "
                f"made for, got {grid} patches; build the model with img_size={tuple(images.shape[2:])}"
            )
        for stage, transformer in enumerate(self.transformers):
            if stage > 0:
                tokens, grid = self.pools[stage - 1](tokens, grid)
            blocks: Any = transformer.blocks
            for block in blocks:
                tokens = run_block(block, tokens, grid, checkpointed=self.grad_checkpointing)
                yield tokens, grid

    def forward_features(self, images: Float[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch tokens channels"]:
        """Patches after the last block; the norm comes after pooling, in `forward_head`."""
        *_, (tokens, _) = self.token_maps(images)
        return tokens

    def forward_intermediates(
        self,
        images: Float[Tensor, "batch in_chans height width"],
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features after chosen blocks (an int: the last so many), as maps or as tokens; see timm's other models."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"expected output_fmt 'NCHW' or 'NLC', got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        intermediates = []
        tokens = torch.empty(0)
        for index, (tokens, grid) in enumerate(self.token_maps(images)):
            if index in taken:
                feature = self.norm(tokens) if norm else tokens
                intermediates.append(to_maps(feature, grid) if output_fmt == "NCHW" else feature)
            if stop_early and intermediates_only and index == last:
                break
        return intermediates if intermediates_only else (tokens, intermediates)

    def forward_head(
        self, features: Float[Tensor, "batch tokens channels"], pre_logits: bool = False
    ) -> Float[Tensor, "batch outputs"]:
        """Logits of the mean token, or what goes into the classifier."""
        pooled: Tensor = self.head_drop(self.norm(features.mean(dim=1)))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Float[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch num_classes"]:
        return self.forward_head(self.forward_features(images))


_TINY: dict[str, Any] = {"embed_dims": (192, 384), "depths": (10, 2), "num_heads": (6, 12)}
_SMALL: dict[str, Any] = {"embed_dims": (384,), "depths": (12,), "num_heads": (6,)}
_BASE: dict[str, Any] = {"embed_dims": (768,), "depths": (12,), "num_heads": (12,)}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "rvt_tiny": _TINY,
    "rvt_tiny_plus": {**_TINY, "masked_blocks": 10},
    "rvt_small": _SMALL,
    "rvt_small_plus": {**_SMALL, "masked_blocks": 5},
    "rvt_base": _BASE,
    "rvt_base_plus": {**_BASE, "masked_blocks": 5},
    # The reference names this one but cannot build it. Its 1×1 projection leaves tokens at stride 8, so ours has
    # position-aware scaling over 28 × 28 tokens.
    "rvt_tiny_plus_hybrid": {**_TINY, "depths": (7, 2), "masked_blocks": 7, "stem_depths": (3, 3)},
}


def without_tap(num_scales: int | None = None, **arguments: Any) -> Rvt:
    """An RVT without TAP; `num_scales` is accepted and has no effect, since the reference hands it to every model."""
    del num_scales
    return Rvt(**arguments)


def fit_masks(state_dict: dict[str, Tensor], model: Rvt) -> dict[str, Tensor]:
    """Resample position-aware scaling (heads, tokens, tokens) from the square grid it was trained on to the model's."""
    if model.mask_grid is None:
        return state_dict
    tokens = model.mask_grid[0] * model.mask_grid[1]
    return {
        name: _resample(tensor, model.mask_grid) if name.endswith("att_mask") and tensor.shape[-1] != tokens else tensor
        for name, tensor in state_dict.items()
    }


def _resample(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    for _ in range(2):  # keys, then queries
        side = round(mask.shape[-1] ** 0.5)
        mask = F.interpolate(torch.unflatten(mask, -1, (side, side)), size=grid, mode="bicubic").flatten(2).transpose(1, 2)
    return mask


for _name, _architecture in ARCHITECTURES.items():
    _config = pretrained_config(crop_pct=0.875, fixed_input_size=_architecture.get("masked_blocks", 0) > 0)
    _plain = partial(without_tap, **_architecture)
    _with_tap = partial(Rvt, num_scales=TAP_BRANCHES, **_architecture)
    register_architecture(__name__, _name, _plain, _config, fit_masks)
    register_architecture(__name__, f"tap_{_name}", _with_tap, _config, fit_masks)
