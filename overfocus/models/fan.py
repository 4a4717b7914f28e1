"""FAN, fully attentional networks (Zhou et al. 2022, https://arxiv.org/abs/2204.12451), plain and hybrid, with and without TAP.

Image → tokens at stride 16 → token blocks → a class token that reads them in two class-attention blocks → classifier.
Parameter names and shapes are those of the reference of "Robustifying Token Attention for Vision Transformers" (ICCV 2023).
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import DropPath
from timm.models._features import feature_take_indices
from timm.models._registry import register_model_deprecations
from timm.models.xcit import ClassAttentionBlock, ConvPatchEmbed
from torch import Tensor, nn

from overfocus.models.channel_processing import ChannelProcessing
from overfocus.models.convnext_stem import HybridEmbedding
from overfocus.models.layers import run_block, to_maps, to_tokens
from overfocus.models.registration import TAP_BRANCHES, pretrained_config, register_architecture
from overfocus.models.tap import DilationPredictor, TokenPooling

HIDDEN = 32
TEMPERATURE = 10000.0


class FourierEncoding(nn.Module):
    """Positional encoding of any grid, (1, rows · columns, channels), added to the tokens once before the blocks.

    Row i and column j become angles in (0, 2π]; each is divided by 32 frequencies, sines of the even ones and cosines of
    the odd ones are projected by a 1×1 convolution. `paired_frequencies` gives a sine and the cosine after it the same
    frequency, as in XCiT (El-Nouby et al. 2021); the reference's segmentation copy steps at every one of the 32 instead,
    and its weights need that.
    """

    def __init__(self, channels: int, paired_frequencies: bool = True) -> None:
        super().__init__()
        self.paired_frequencies = paired_frequencies
        self.token_projection = nn.Conv2d(2 * HIDDEN, channels, kernel_size=1)

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "1 tokens channels"]:
        rows, columns = (self._axis(length) for length in grid)
        by_row = rows[:, None, :].expand(-1, grid[1], -1)
        by_column = columns[None, :, :].expand(grid[0], -1, -1)
        waves = torch.cat([by_row, by_column], dim=-1).to(self.token_projection.weight.dtype)  # (rows, columns, 64)
        projected: Tensor = self.token_projection(waves.permute(2, 0, 1)[None])
        return projected.flatten(2).transpose(1, 2)

    def _axis(self, length: int) -> Float[Tensor, "length hidden"]:
        device = self.token_projection.weight.device
        angles = torch.arange(1, length + 1, device=device, dtype=torch.float32) * (2 * math.pi / (length + 1e-6))
        steps = torch.arange(HIDDEN, device=device, dtype=torch.float32)
        if self.paired_frequencies:
            steps = 2 * torch.div(steps, 2, rounding_mode="floor")
        phases = angles[:, None] / TEMPERATURE ** (steps / HIDDEN)
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


class Fan(nn.Module):
    """FAN classifier; (batch, in_chans, height, width) → (batch, num_classes). Any image of 16 pixels or more works.

    `embed_dims`, `depths` and `num_heads` have one entry per width (only the extra-large model has two). `stem_depths`
    makes it hybrid, `num_scales` puts TAP with that many branches in every token block. `paired_frequencies` is explained
    in `FourierEncoding`.
    """

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
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        del img_size  # nothing depends on it
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dims[-1]
        self.head_init_scale = head_init_scale
        self.grad_checkpointing = False

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
        self.feature_info: list[dict[str, Any]] = []
        for stage, (width, depth, heads) in enumerate(zip(embed_dims, depths, num_heads, strict=True)):
            if stage > 0:
                blocks[-1].downsample = Downsample(embed_dims[stage - 1], width)
            for _ in range(depth):
                self.feature_info.append({"num_chs": width, "reduction": 16 * 2**stage, "module": f"blocks.{len(blocks)}"})
                blocks.append(FanBlock(width, heads, num_scales, **drops))
        self.blocks = nn.ModuleList(blocks)
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
        self.head: nn.Module = nn.Identity()
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _initialise(module)
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in the place of the old one; none for 0 classes."""
        self.num_classes = num_classes
        self.global_pool = global_pool or self.global_pool
        if self.global_pool not in ("token", "avg"):
            raise ValueError(f"expected global_pool 'token' or 'avg', got {self.global_pool!r}")
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.num_features, num_classes)
            _initialise(self.head, self.head_init_scale)

    def get_classifier(self) -> nn.Module:
        """The last layer, from features to logits."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the token blocks for the backward pass."""
        self.grad_checkpointing = enable

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

    def token_maps(
        self, tokens: Float[Tensor, "batch tokens width"], grid: tuple[int, int]
    ) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Tokens and their grid after every token block, in order."""
        for block in self.blocks:
            tokens = run_block(block, tokens, grid, checkpointed=self.grad_checkpointing)
            yield tokens, grid
            downsample: Any = block.downsample
            if downsample is not None:
                tokens, grid = downsample(tokens, grid)

    def embed(self, images: Float[Tensor, "batch in_chans height width"]) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (batch, rows · columns, channels) with their positional encoding, and their grid."""
        # In this memory format no layer copies between maps and tokens.
        tokens, grid = self.patch_embed(images.contiguous(memory_format=torch.channels_last))
        return tokens + self.pos_embed(grid), grid

    def class_attention(self, tokens: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch tokens_and_class channels"]:
        """Let a class token, put in front here, read the patches."""
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for block in self.cls_attn_blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed

    def forward_features(
        self, images: Float[Tensor, "batch in_chans height width"]
    ) -> Float[Tensor, "batch tokens_and_class channels"]:
        """Class token and patches after the last norm."""
        *_, (tokens, _) = self.token_maps(*self.embed(images))
        return self.class_attention(tokens)

    def forward_intermediates(
        self,
        images: Float[Tensor, "batch in_chans height width"],
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features after chosen token blocks (an int: the last so many), as maps or as tokens; see timm's other models."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"expected output_fmt 'NCHW' or 'NLC', got {output_fmt!r}")
        taken, last = feature_take_indices(len(self.blocks), indices)
        intermediates = []
        tokens = torch.empty(0)
        for index, (tokens, grid) in enumerate(self.token_maps(*self.embed(images))):
            if index in taken:
                feature = self.norm(tokens) if norm else tokens
                intermediates.append(to_maps(feature, grid) if output_fmt == "NCHW" else feature)
            if stop_early and intermediates_only and index == last:
                break
        if intermediates_only:
            return intermediates
        return self.class_attention(tokens), intermediates

    def forward_head(
        self, features: Float[Tensor, "batch tokens_and_class channels"], pre_logits: bool = False
    ) -> Float[Tensor, "batch outputs"]:
        """Logits of the class token (or of the mean patch), or what goes into the classifier."""
        pooled = features[:, 0] if self.global_pool == "token" else features[:, 1:].mean(dim=1)
        pooled = self.head_drop(pooled)
        logits: Tensor = pooled if pre_logits else self.head(pooled)
        return logits

    def forward(self, images: Float[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch num_classes"]:
        return self.forward_head(self.forward_features(images))


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
    _config = pretrained_config(crop_pct=0.9 if _name in _CROPPED else 1.0)
    _plain = partial(without_tap, **_architecture)
    _with_tap = partial(Fan, num_scales=TAP_BRANCHES, **_architecture)
    register_architecture(__name__, _name, _plain, _config, convert_state_dict)
    register_architecture(__name__, f"tap_{_name}", _with_tap, _config, convert_state_dict)

# The reference spells these two with a capital.
register_model_deprecations(
    __name__, {f"{prefix}fan_Xlarge_16_p4_hybrid": f"{prefix}fan_xlarge_16_p4_hybrid" for prefix in ("", "tap_")}
)
