"""FAN, fully attentional networks (Zhou et al. 2022, https://arxiv.org/abs/2204.12451), plain and hybrid, with and without TAP.

Image → tokens at stride 16 → token blocks → a class token that reads them in two class-attention blocks → classifier.
Parameter names and shapes are those of the reference of "Robustifying Token Attention for Vision Transformers" (ICCV 2023).
"""

import math
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from timm.layers import DropPath, global_pool_nlc, register_notrace_module
from timm.models._registry import register_model_deprecations
from timm.models.xcit import ClassAttentionBlock, ConvPatchEmbed
from torch import Tensor, nn

from overfocus.models.blocks import ChannelProcessing, HybridEmbedding
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


@register_notrace_module
class FourierEncoding(nn.Module):
    """Positional encoding of any grid, (1, rows · columns, channels), added to the tokens once before the blocks.

    Row i and column j become angles in (0, 2π]; each is divided by 32 frequencies, sines of the even ones and cosines of
    the odd ones are projected by a 1×1 convolution. `paired_frequencies` gives a sine and the cosine after it the same
    frequency, as in XCiT (El-Nouby et al. 2021); the reference's segmentation copy steps at every one of the 32 instead,
    and its weights need that.
    """

    hidden: Final = 32
    temperature: Final = 10000.0

    def __init__(self, channels: int, paired_frequencies: bool = True) -> None:
        super().__init__()
        self.paired_frequencies = paired_frequencies
        self.token_projection = nn.Conv2d(2 * self.hidden, channels, kernel_size=1)

    def forward(self, grid: Grid) -> Tokens:
        by_row = self._axis(grid[0])[:, None, :].expand(-1, grid[1], -1)
        by_column = self._axis(grid[1])[None, :, :].expand(grid[0], -1, -1)
        waves = torch.cat([by_row, by_column], dim=-1).to(self.token_projection.weight.dtype)  # (rows, columns, 64)
        projected: Tensor = self.token_projection(waves.permute(2, 0, 1)[None])
        return projected.flatten(2).transpose(1, 2)

    def _axis(self, length: int) -> Tensor:
        """(length, 32)"""
        device = self.token_projection.weight.device
        angles = torch.arange(1, length + 1, device=device, dtype=torch.float32) * (2 * math.pi / (length + 1e-6))
        steps = torch.arange(self.hidden, device=device, dtype=torch.float32)
        if self.paired_frequencies:
            steps = 2 * torch.div(steps, 2, rounding_mode="floor")
        phases = angles[:, None] / self.temperature ** (steps / self.hidden)
        return torch.stack([phases[:, 0::2].sin(), phases[:, 1::2].cos()], dim=-1).flatten(1)


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

    def forward(self, tokens: Tokens) -> Tokens:
        query = torch.unflatten(self.q(tokens), 2, (self.heads, -1)).transpose(1, 2)  # (batch, heads, tokens, head_dim)
        keys_values = torch.unflatten(self.kv(tokens), 2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
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

    def forward(self, tokens: Tokens, grid: Grid) -> tuple[Tensor, tuple[int, int]]:
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
        self.dilation_predictor: DilationPredictor | None = None
        if num_scales is not None:
            self.dilation_predictor = DilationPredictor(channels, num_scales)
            self.token_pools = TokenPooling(channels, num_scales)
        self.downsample: Downsample | None = None  # applied after the block by the model that sets it

    def forward(self, tokens: Tokens, grid: Grid) -> Tokens:
        pooled = tokens
        if self.dilation_predictor is not None:
            pooled = self.token_pools(tokens, self.dilation_predictor(tokens, grid), grid)
        tokens = torch.addcmul(tokens, self.gamma1, self.drop_path(self.attn(self.norm1(pooled))))
        return torch.addcmul(tokens, self.gamma2, self.drop_path(self.mlp(self.norm2(tokens), grid)))


class Fan(Classifier):
    """FAN classifier; (batch, in_chans, height, width) → (batch, num_classes). Any image of 16 pixels or more works.

    `embed_dims`, `depths` and `num_heads` have one entry per width (only the extra-large model has two). `stem_depths`
    makes it hybrid, `num_scales` puts TAP with that many branches in every token block. `paired_frequencies` is explained
    in `FourierEncoding`. `img_size` and `dynamic_img_size` are accepted as by timm's ViT; nothing here depends on the size.
    """

    POOLINGS = ("", "token", "avg", "avgmax", "max")

    def __init__(
        self,
        embed_dims: tuple[int, ...],
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        stem_depths: tuple[int, int] | None = None,
        num_scales: int | None = None,
        head_init_scale: float = 1.0,
        paired_frequencies: bool = True,
        img_size: int | tuple[int, int] = 224,
        dynamic_img_size: bool = True,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, embed_dims[-1], img_size, global_pool)
        del dynamic_img_size
        self.head_init_scale = head_init_scale
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.num_features))
        self.patch_embed: nn.Module
        if stem_depths is None:
            self.patch_embed = ConvPatchEmbed(patch_size=16, in_chans=in_chans, embed_dim=embed_dims[0])
        else:
            self.patch_embed = HybridEmbedding(in_chans, embed_dims[0], stem_depths)
        self.pos_embed = FourierEncoding(embed_dims[0], paired_frequencies)
        # The reference gives every block the same drop-path rate, no ramp.
        drops = {"proj_drop": proj_drop_rate, "attn_drop": attn_drop_rate, "drop_path": drop_path_rate}
        blocks: list[FanBlock] = []
        for stage, (width, depth, heads) in enumerate(zip(embed_dims, depths, num_heads, strict=True)):
            if stage > 0:
                blocks[-1].downsample = Downsample(embed_dims[stage - 1], width)
            for _ in range(depth):
                self.feature_info.append({"num_chs": width, "reduction": 16 * 2**stage, "module": f"blocks.{len(blocks)}"})
                blocks.append(FanBlock(width, heads, num_scales, **drops))
        self.blocks = nn.ModuleList(blocks)
        self.depth = len(blocks)
        # `tokens_norm` also moves, normalises and doubles the patch tokens in these blocks, as in XCiT; the dense-prediction
        # model reads them there.
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionBlock(
                self.num_features,
                num_heads[-1],
                qkv_bias=True,
                proj_drop=proj_drop_rate,
                attn_drop=attn_drop_rate,
                norm_layer=BlockNorm,
                tokens_norm=True,
            )
            for _ in range(2)
        )
        self.norm = BlockNorm(self.num_features)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Identity()
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _initialise(module)
        self.reset_classifier(num_classes)

    def make_head(self, num_classes: int) -> nn.Linear:
        """A new classifier, small at first where `head_init_scale` says so."""
        head = super().make_head(num_classes)
        _initialise(head, self.head_init_scale)
        return head

    def no_weight_decay(self) -> set[str]:
        """Parameters with more than one axis that take no weight decay."""
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for timm's layer-wise learning rates."""
        del coarse  # there is no stage above a block
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": r"^blocks\.(\d+)",
            "cls_attn_blocks": [(r"^cls_attn_blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def walk(self, images: Images, taken: list[int], last: int) -> tuple[Tensor, list[Tokens], list[tuple[int, int]]]:
        """Run the token blocks up to number `last`: its tokens, and tokens and grids of the blocks in `taken`."""
        # In this memory format no layer copies between maps and tokens.
        tokens, grid = self.patch_embed(images.contiguous(memory_format=torch.channels_last))
        return self.walk_blocks(tokens + self.pos_embed(grid), grid, taken, last)

    def walk_blocks(
        self, tokens: Tokens, grid: tuple[int, int], taken: list[int], last: int
    ) -> tuple[Tensor, list[Tokens], list[tuple[int, int]]]:
        """The same from embedded tokens."""
        levels: list[Tensor] = []
        grids: list[tuple[int, int]] = []
        for index, block in enumerate(self.blocks):
            if index <= last:
                if torch.jit.is_scripting():  # type: ignore[attr-defined]
                    tokens = block(tokens, grid)
                else:
                    tokens = run_block(block, tokens, grid, checkpointed=self.grad_checkpointing)
                if index in taken:
                    levels.append(tokens)
                    grids.append(grid)
                if block.downsample is not None and index < last:
                    tokens, grid = block.downsample(tokens, grid)  # type: ignore[operator]
        return tokens, levels, grids

    def finish(self, features: Tokens) -> Tokens:
        """A class token, put in front here, reads the patches; (batch, 1 + tokens, channels) after the last norm."""
        if len(self.cls_attn_blocks) > 0:
            features = torch.cat([self.cls_token.expand(features.shape[0], -1, -1), features], dim=1)
        for block in self.cls_attn_blocks:
            features = block(features)
        normed: Tensor = self.norm(features)
        return normed

    def keep_levels(self, count: int) -> None:
        """Remove every token block but the first `count`, and the class attention that needs them all."""
        self.blocks = self.blocks[:count]
        self.cls_attn_blocks = nn.ModuleList()

    def pool(self, features: Tokens) -> Tensor:
        """The class token, the patches pooled, or all features as they are, by `global_pool`."""
        pooled: Tensor = global_pool_nlc(features, self.global_pool, num_prefix_tokens=1)
        return pooled


def _initialise(linear: nn.Linear, scale: float = 1.0) -> None:
    nn.init.trunc_normal_(linear.weight, std=0.02 * scale)
    nn.init.zeros_(linear.bias)


# Two names tell a wrong depth: small_12 hybrid has 10 token blocks and large_16 hybrid has 22.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "fan_tiny_12_p16_224": {"embed_dims": (192,), "depths": (12,), "num_heads": (4,)},
    "fan_small_12_p16_224": {"embed_dims": (384,), "depths": (12,), "num_heads": (8,)},
    "fan_base_18_p16_224": {"embed_dims": (448,), "depths": (18,), "num_heads": (8,)},
    "fan_large_24_p16_224": {"embed_dims": (480,), "depths": (24,), "num_heads": (10,)},
    "fan_tiny_8_p4_hybrid": {"embed_dims": (192,), "depths": (8,), "num_heads": (8,), "stem_depths": (3, 3)},
    "fan_small_12_p4_hybrid": {"embed_dims": (384,), "depths": (10,), "num_heads": (8,), "stem_depths": (3, 3)},
    "fan_base_16_p4_hybrid": {"embed_dims": (448,), "depths": (16,), "num_heads": (8,), "stem_depths": (3, 3)},
    "fan_large_16_p4_hybrid": {
        "embed_dims": (480,),
        "depths": (22,),
        "num_heads": (10,),
        "stem_depths": (3, 5),
        "head_init_scale": 0.001,
    },
    "fan_xlarge_16_p4_hybrid": {
        "embed_dims": (528, 768),
        "depths": (20, 3),
        "num_heads": (11, 16),
        "stem_depths": (3, 7),
        "head_init_scale": 0.001,
    },
}
# The reference crops these two to 0.9 because the configuration they name was never registered.
_CROPPED = ("fan_tiny_8_p4_hybrid", "fan_xlarge_16_p4_hybrid")


def convert_state_dict(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the parameters of old third-party FAN checkpoints: `pos_embeder`, and class attention with fused q, k and v."""
    del model
    converted = {}
    for name, tensor in state_dict.items():
        name = name.replace("pos_embeder.", "pos_embed.")
        if name.startswith("cls_attn_blocks.") and ".attn.qkv." in name:
            for part, chunk in zip("qkv", torch.chunk(tensor, 3), strict=True):
                converted[name.replace(".qkv.", f".{part}.")] = chunk
        else:
            converted[name] = tensor
    return converted


def without_tap(num_scales: int | None = None, **arguments: Any) -> Fan:
    """A FAN without TAP; `num_scales` is accepted and has no effect, since the reference hands it to every model."""
    del num_scales
    return Fan(**arguments)


for _name, _architecture in ARCHITECTURES.items():
    _config = pretrained_config(
        crop_pct=0.9 if _name in _CROPPED else 1.0,
        first_conv="patch_embed.backbone.stem.0" if "stem_depths" in _architecture else "patch_embed.proj.0.0",
    )
    _plain = partial(without_tap, **_architecture)
    _with_tap = partial(Fan, num_scales=TAP_BRANCHES, **_architecture)
    register_architecture(__name__, _name, _plain, _config, convert_state_dict)
    register_architecture(__name__, f"tap_{_name}", _with_tap, _config, convert_state_dict)

# The reference spells these two with a capital.
register_model_deprecations(
    __name__, {f"{prefix}fan_Xlarge_16_p4_hybrid": f"{prefix}fan_xlarge_16_p4_hybrid" for prefix in ("", "tap_")}
)
