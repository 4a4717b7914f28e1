"""RVT, the robust vision transformer (Mao et al. 2022, https://arxiv.org/abs/2105.07926), with and without TAP.

Image → tokens at stride 16 → one or two stages of blocks with a pooling convolution between → mean token → classifier.
No class token and no positional encoding. Parameter names and shapes are those of the reference of "Robustifying Token
Attention for Vision Transformers" (ICCV 2023).
"""

from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, global_pool_nlc, register_notrace_function
from torch import Tensor, nn

from overfocus.models.blocks import HybridEmbedding
from overfocus.models.layers import (
    TAP_BRANCHES,
    Classifier,
    Grid,
    Images,
    Tokens,
    pretrained_config,
    register_architecture,
    run_block,
    to_maps,
    to_tokens,
)
from overfocus.models.tap import DilationPredictor, TokenPooling

LINEAR_WIDTH = 768


class ScaledAttention(nn.Module):
    """Multi-head self-attention; `mask_grid` adds position-aware scaling for patches of that grid.

    Position-aware scaling (Mao et al. 2022, section 3.3) multiplies the attention logits by the sigmoid of a learned
    (heads, tokens, tokens) parameter before the softmax. A product with the logits is no mask that fused attention could
    add, so these layers build their map. `dynamic` resamples the parameter for other grids; without it they are refused.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        mask_grid: tuple[int, int] | None = None,
        dynamic: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.mask_grid = mask_grid or (0, 0)
        self.dynamic = dynamic
        self.att_mask: nn.Parameter | None = None
        if mask_grid is not None:
            tokens = mask_grid[0] * mask_grid[1]
            self.att_mask = nn.Parameter(nn.init.trunc_normal_(torch.empty(heads, tokens, tokens), std=0.02, a=-0.02, b=0.02))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tokens, grid: Grid) -> Tokens:
        query, key, value = torch.unflatten(self.qkv(tokens), 2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.att_mask is None:
            drop = self.attn_drop.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=drop)
        else:
            gain = fit_mask(self.att_mask, self.mask_grid, grid, self.dynamic).sigmoid() * self.scale
            weights = (query @ key.transpose(-2, -1) * gain).softmax(dim=-1)
            mixed = self.attn_drop(weights) @ value
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
        return out


@register_notrace_function  # type: ignore[untyped-decorator]
def fit_mask(mask: Tensor, built: Grid, grid: Grid, dynamic: bool) -> Tensor:
    """Position-aware scaling (heads, tokens, tokens) for the patches of `grid`.

    Raises:
        ValueError: it was made for another grid, and is not to be resampled.
    """
    if built[0] == grid[0] and built[1] == grid[1]:
        return mask
    if not dynamic:
        raise ValueError(
            f"expected an image of {built[0]} × {built[1]} patches, which the position-aware scaling was made for, "
            f"got {grid[0]} × {grid[1]}; build the model with img_size=(height, width) or dynamic_img_size=True"
        )
    return resample_mask(mask, built, grid)


def resample_mask(mask: Tensor, built: Grid, grid: Grid) -> Tensor:
    """The mask (heads, tokens, tokens) of one grid, bicubically resampled to another, first along keys, then along queries."""
    for _ in range(2):
        maps = torch.unflatten(mask, -1, built)
        mask = F.interpolate(maps, size=[grid[0], grid[1]], mode="bicubic").flatten(2).transpose(1, 2)
    return mask


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

    def forward(self, tokens: Tokens, grid: Grid) -> Tokens:
        hidden = self.drop(F.gelu(self.bn1(self.fc1(to_maps(tokens, grid)))))
        hidden = F.gelu(self.bn2(self.dwconv(hidden)))
        return to_tokens(self.drop(self.bn3(self.fc2(hidden))))


class RvtBlock(nn.Module):
    """x + attention(norm(TAP(x))), then x + feed-forward(norm(x)); without `num_scales` the block has no TAP.

    TAP pools the stream before its norm, and only what attention reads: the residual keeps the unpooled tokens.
    """

    linear_mlp: Final[bool]

    def __init__(
        self,
        channels: int,
        heads: int,
        num_scales: int | None = None,
        mask_grid: tuple[int, int] | None = None,
        dynamic: bool = False,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = ScaledAttention(channels, heads, mask_grid, dynamic, attn_drop, proj_drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        # Without TAP the reference gives blocks of width 768, all of rvt_base, an ordinary MLP, and its weights are shaped so.
        self.linear_mlp = channels == LINEAR_WIDTH and num_scales is None
        self.mlp: nn.Module
        self.mlp = Mlp(channels, 4 * channels, drop=proj_drop) if self.linear_mlp else ConvolutionalMlp(channels, proj_drop)
        self.dilation_predictor: DilationPredictor | None = None
        if num_scales is not None:
            self.dilation_predictor = DilationPredictor(channels, num_scales)
            self.token_pools = TokenPooling(channels, num_scales)

    def forward(self, tokens: Tokens, grid: Grid) -> Tokens:
        pooled = tokens
        if self.dilation_predictor is not None:
            pooled = self.token_pools(tokens, self.dilation_predictor(tokens, grid), grid)
        tokens = tokens + self.drop_path(self.attn(self.norm1(pooled), grid))
        normed = self.norm2(tokens)
        if self.linear_mlp:
            mixed: Tensor = self.mlp(normed)
        else:
            mixed = self.mlp(normed, grid)
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

    def forward(self, images: Images) -> tuple[Tensor, tuple[int, int]]:
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

    def forward(self, tokens: Tokens, grid: Grid) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (batch, a quarter of the tokens, out_channels) and their grid."""
        maps = self.conv(to_maps(tokens, grid))
        return to_tokens(maps), (maps.shape[2], maps.shape[3])


class Rvt(Classifier):
    """RVT classifier; (batch, in_chans, height, width) → (batch, num_classes).

    `embed_dims`, `depths` and `num_heads` have one entry per stage. The first `masked_blocks` blocks have position-aware
    scaling, whose size is that of the grid of an image of `img_size`; such a model takes images of that size only, unless
    `dynamic_img_size` has the scaling resampled for others. Without it any size works. `stem_depths` puts the ConvNeXt stem in
    front, `num_scales` TAP with that many branches in every block.
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
        dynamic_img_size: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, embed_dims[-1], img_size, global_pool)
        self.patch_embed: nn.Module
        if stem_depths is None:
            self.patch_embed = RvtEmbedding(in_chans, embed_dims[0])
        else:
            self.patch_embed = HybridEmbedding(in_chans, embed_dims[0], stem_depths, patch_size=1)
        stride = 16 if stem_depths is None else 8
        self.mask_grid = self.grid_of(self.img_size) if masked_blocks else None
        options: dict[str, Any] = {
            "dynamic": dynamic_img_size,
            "proj_drop": proj_drop_rate,
            "attn_drop": attn_drop_rate,
        }
        self.transformers, self.pools = nn.ModuleList(), nn.ModuleList()
        for stage, (channels, depth, heads) in enumerate(zip(embed_dims, depths, num_heads, strict=True)):
            blocks = []
            for index in range(depth):
                number = len(self.feature_info)
                masked = self.mask_grid if number < masked_blocks else None
                # The reference's ramp ends one step below the rate.
                drop_path = drop_path_rate * number / sum(depths)
                blocks.append(RvtBlock(channels, heads, num_scales, masked, **options, drop_path=drop_path))
                module = f"transformers.{stage}.blocks.{index}"
                self.feature_info.append({"num_chs": channels, "reduction": stride * 2**stage, "module": module})
            self.transformers.append(RvtStage(blocks))
            if stage > 0:
                self.pools.append(RvtPool(embed_dims[stage - 1], channels))
        self.depth = sum(depths)
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Identity()
        self.reset_classifier(num_classes)

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """The grid (rows, columns) of the patches of an image of (height, width) pixels, in the first stage."""
        if isinstance(self.patch_embed, RvtEmbedding):
            return RvtEmbedding.length(size[0]), RvtEmbedding.length(size[1])
        return size[0] // 8, size[1] // 8

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make the model one for images of another size; position-aware scaling is resampled.

        Raises:
            ValueError: a patch size is given, which the convolutions of the stem fix.
        """
        super().set_input_size(img_size, patch_size)
        if self.mask_grid is None:
            return
        grid = self.grid_of(self.img_size)
        for module in self.modules():
            if isinstance(module, ScaledAttention) and module.att_mask is not None and grid != module.mask_grid:
                resampled = resample_mask(module.att_mask.detach(), module.mask_grid, grid)
                module.att_mask = nn.Parameter(resampled.contiguous(), requires_grad=module.att_mask.requires_grad)
                module.mask_grid = grid
        self.mask_grid = grid

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

    def walk(self, images: Images, taken: list[int], last: int) -> tuple[Tensor, list[Tokens], list[tuple[int, int]]]:
        """Run the blocks up to number `last`: its tokens, and tokens and grids of the blocks in `taken`."""
        # In this memory format no layer copies between maps and tokens.
        tokens, grid = self.patch_embed(images.contiguous(memory_format=torch.channels_last))
        levels: list[Tensor] = []
        grids: list[tuple[int, int]] = []
        number = 0
        for stage, transformer in enumerate(self.transformers):
            for index, block in enumerate(transformer.blocks):  # type: ignore[arg-type]
                if number <= last:
                    if stage > 0 and index == 0:
                        tokens, grid = self.widen(tokens, grid, stage - 1)
                    if torch.jit.is_scripting():  # type: ignore[attr-defined]
                        tokens = block(tokens, grid)
                    else:
                        tokens = run_block(block, tokens, grid, checkpointed=self.grad_checkpointing)
                    if number in taken:
                        levels.append(tokens)
                        grids.append(grid)
                number += 1
        return tokens, levels, grids

    def widen(self, tokens: Tokens, grid: tuple[int, int], number: int) -> tuple[Tensor, tuple[int, int]]:
        """Pass the tokens through the pooling convolution with that number."""
        for index, pool in enumerate(self.pools):
            if index == number:
                tokens, grid = pool(tokens, grid)
        return tokens, grid

    def finish(self, features: Tokens) -> Tokens:
        """The patches as they are: the norm comes after pooling."""
        return features

    def keep_levels(self, count: int) -> None:
        """Remove every block but the first `count`."""
        for stage, transformer in enumerate(self.transformers):
            left = max(0, count)
            count -= len(transformer.blocks)  # type: ignore[arg-type]
            transformer.blocks = transformer.blocks[:left]  # type: ignore[index]
            if not left:
                self.transformers, self.pools = self.transformers[:stage], self.pools[: stage - 1]
                return

    def pool(self, features: Tokens) -> Tensor:
        """The patches pooled by `global_pool`, or as they are where it is empty, and normalised."""
        pooled: Tensor = self.norm(global_pool_nlc(features, self.global_pool, num_prefix_tokens=0))
        return pooled


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
    fitted = dict(state_dict)
    for name, mask in state_dict.items():
        if name.endswith("att_mask") and mask.shape[-1] != model.mask_grid[0] * model.mask_grid[1]:
            side = round(mask.shape[-1] ** 0.5)
            fitted[name] = resample_mask(mask, (side, side), model.mask_grid)
    return fitted


for _name, _architecture in ARCHITECTURES.items():
    _config = pretrained_config(
        crop_pct=0.875,
        first_conv="patch_embed.backbone.stem.0" if "stem_depths" in _architecture else "patch_embed.proj.0",
        fixed_input_size=_architecture.get("masked_blocks", 0) > 0,
    )
    _plain = partial(without_tap, **_architecture)
    _with_tap = partial(Rvt, num_scales=TAP_BRANCHES, **_architecture)
    register_architecture(__name__, _name, _plain, _config, fit_masks)
    register_architecture(__name__, f"tap_{_name}", _with_tap, _config, fit_masks)
