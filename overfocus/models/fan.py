"""FAN, fully attentional networks (Zhou et al. 2022, https://arxiv.org/abs/2204.12451), plain and hybrid, with and without TAP.

Image → tokens at stride 16 → token blocks → a class token that reads them in two class-attention blocks → classifier.
Parameter names and shapes are those of the reference of "Robustifying Token Attention for Vision Transformers" (ICCV 2023).
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from timm.models._features import feature_take_indices
from timm.models.xcit import ClassAttentionBlock, ConvPatchEmbed
from torch import Tensor, nn

from overfocus.models.checkpointing import run_block
from overfocus.models.convnext_stem import HybridEmbedding
from overfocus.models.fan_block import BlockNorm, Downsample, FanBlock
from overfocus.models.fourier_encoding import FourierEncoding
from overfocus.models.patch_grid import to_maps


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
