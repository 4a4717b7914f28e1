"""FAN-Swin: a Swin transformer (Liu et al. 2021) whose first three stages have channel processing in the place of the MLP.

Windows, shifts and relative positions are timm's; parameter names and shapes are those of the reference of "Robustifying
Token Attention for Vision Transformers" (ICCV 2023), whose `tap_fan_swin_*` are the same networks without TAP. Here
`num_scales` above 1 puts real TAP on the whole grid, in front of the windows.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.patch_embed import PatchEmbed
from timm.models._features import feature_take_indices
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn

from overfocus.models.channel_processing import ChannelProcessing
from overfocus.models.layers import run_block
from overfocus.models.registration import pretrained_config, register_architecture
from overfocus.models.tap import DilationPredictor, TokenPooling


class FanSwinBlock(SwinTransformerBlock):
    """timm's Swin block on (batch, rows, columns, channels), with channel processing and TAP where asked for."""

    def __init__(
        self,
        dim: int,
        input_resolution: tuple[int, int],
        num_heads: int,
        channel_processing: bool,
        num_scales: int = 1,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(dim, input_resolution, num_heads, proj_drop=proj_drop, attn_drop=attn_drop, dynamic_mask=True, **options)
        attention: Any = self.attn
        # Two buffers that timm leaves out of checkpoints and the reference keeps in them.
        attention.register_buffer("relative_position_index", attention.relative_position_index)
        self.register_buffer("attn_mask", super().get_attn_mask(device=torch.empty(0).device, dtype=torch.get_default_dtype()))
        self.padded_resolution = tuple(
            math.ceil(length / window) * window for length, window in zip(input_resolution, self.window_size, strict=True)
        )
        self.channel_processing = channel_processing
        if channel_processing:
            mlp = ChannelProcessing(dim, num_heads, residual=False, drop=proj_drop, attn_drop=attn_drop)
            self.mlp = mlp  # type: ignore[assignment]
        self.dilation_predictor = None
        if num_scales > 1:
            self.dilation_predictor = DilationPredictor(dim, num_scales)
            self.token_pools = TokenPooling(dim, num_scales)

    def get_attn_mask(
        self, x: Tensor | None = None, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Tensor | None:
        """Mask of shifted windows, (windows, tokens, tokens): the stored one for the size the model was built for."""
        stored: Any = self.attn_mask
        if x is not None and stored is not None and tuple(x.shape[1:3]) == self.padded_resolution:
            mask: Tensor | None = stored.to(x.dtype)
            return mask
        return super().get_attn_mask(x, device, dtype)

    def forward(self, x: Float[Tensor, "batch rows columns channels"]) -> Float[Tensor, "batch rows columns channels"]:
        grid = (x.shape[1], x.shape[2])
        pooled = x
        if self.dilation_predictor is not None:
            tokens = x.flatten(1, 2)
            weights = self.dilation_predictor(tokens, grid)
            pooled = torch.unflatten(self.token_pools(tokens, weights, grid), 1, grid)
        attended: Tensor = self.drop_path1(self._attn(self.norm1(pooled)))  # type: ignore[no-untyped-call]
        tokens = (x + attended).flatten(1, 2)
        normed = self.norm2(tokens)
        tokens = tokens + self.drop_path2(self.mlp(normed, grid) if self.channel_processing else self.mlp(normed))
        return torch.unflatten(tokens, 1, grid)


class FanSwinStage(nn.Module):
    """The blocks of one width, every second one shifted, and the merging of patches 2×2 after them."""

    def __init__(self, blocks: list[FanSwinBlock], merge_from: int | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = nn.Identity() if merge_from is None else PatchMerging(merge_from)
        self.grad_checkpointing = False

    def forward(self, maps: Float[Tensor, "batch rows columns channels"]) -> Float[Tensor, "batch rows columns channels"]:
        for block in self.blocks:
            maps = run_block(block, maps, checkpointed=self.grad_checkpointing)
        return maps


class FanSwin(nn.Module):
    """FAN-Swin classifier; (batch, in_chans, height, width) → (batch, num_classes).

    The checkpoint holds window masks for images of `img_size`; for other sizes they are made on the way, and windows that
    reach over the border are padded with zeros.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window_size: int = 7,
        num_scales: int = 1,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.num_features = self.head_hidden_size = embed_dim * 2 ** (len(depths) - 1)
        self.patch_embed = PatchEmbed(
            img_size,
            patch_size=4,
            in_chans=in_chans,
            embed_dim=embed_dim,
            norm_layer=nn.LayerNorm,
            output_fmt="NHWC",
            strict_img_size=False,
            dynamic_img_pad=True,
        )
        rates = (drop_path_rate * number / (sum(depths) - 1) for number in range(sum(depths)))
        self.layers = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            channels = embed_dim * 2**stage
            last = stage == len(depths) - 1
            resolution = tuple(math.ceil(length / 2**stage) for length in self.patch_embed.grid_size)
            block = partial(
                FanSwinBlock,
                channels,
                resolution,
                heads,
                channel_processing=not last,
                num_scales=num_scales,
                window_size=window_size,
                proj_drop=proj_drop_rate,
                attn_drop=attn_drop_rate,
            )
            blocks = [block(shift_size=window_size // 2 if index % 2 else 0, drop_path=next(rates)) for index in range(depth)]
            self.layers.append(FanSwinStage(blocks, None if last else channels))
            self.feature_info.append({"num_chs": channels, "reduction": 4 * 2**stage, "module": f"layers.{stage}"})
        self.norm = nn.LayerNorm(self.num_features)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _initialise(module)
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in the place of the old one; none for 0 classes."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"expected global_pool 'avg', since FAN-Swin has no class token, got {global_pool!r}")
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.num_features, num_classes)
            _initialise(self.head)

    def get_classifier(self) -> nn.Module:
        """The last layer, from features to logits."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the blocks for the backward pass."""
        for stage in self.layers:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        """Parameters with more than one axis that take no weight decay."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for timm's layer-wise learning rates."""
        blocks = [(r"^layers\.(\d+).downsample", (99998,)), (r"^layers\.(\d+)\.\w+\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else blocks}

    def stage_maps(self, images: Float[Tensor, "batch in_chans height width"]) -> Iterator[Tensor]:
        """Maps (batch, rows, columns, channels) after every stage, before its patches are merged."""
        maps: Tensor = self.patch_embed(images)
        for stage in self.layers:
            maps = stage(maps)
            yield maps
            downsample: Any = stage.downsample
            maps = downsample(maps)

    def forward_intermediates(
        self,
        images: Float[Tensor, "batch in_chans height width"],
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features after chosen stages (an int: the last so many), before their merging; see timm's other models."""
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"expected output_fmt 'NCHW' or 'NHWC', got {output_fmt!r}")
        maps = torch.empty(0)
        taken, last = feature_take_indices(len(self.layers), indices)
        intermediates = []
        for index, maps in enumerate(self.stage_maps(images)):
            if index in taken:
                feature = self.norm(maps) if norm and index == len(self.layers) - 1 else maps
                intermediates.append(feature.permute(0, 3, 1, 2) if output_fmt == "NCHW" else feature)
            if stop_early and intermediates_only and index == last:
                break
        return intermediates if intermediates_only else (self.norm(maps), intermediates)

    def forward_features(
        self, images: Float[Tensor, "batch in_chans height width"]
    ) -> Float[Tensor, "batch rows columns channels"]:
        """Patches after the last norm, (batch, rows, columns, channels)."""
        *_, maps = self.stage_maps(images)
        normed: Tensor = self.norm(maps)
        return normed

    def forward_head(
        self, features: Float[Tensor, "batch rows columns channels"], pre_logits: bool = False
    ) -> Float[Tensor, "batch outputs"]:
        """Logits of the mean patch, or what goes into the classifier."""
        pooled: Tensor = self.head_drop(features.mean(dim=(1, 2)))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Float[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch num_classes"]:
        return self.forward_head(self.forward_features(images))


def _initialise(linear: nn.Linear) -> None:
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "fan_swin_tiny_patch4_window7_224": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "fan_swin_small_patch4_window7_224": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "fan_swin_base_patch4_window7_224": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "fan_swin_large_patch4_window7_224": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}


def without_tap(num_scales: int | None = None, **arguments: Any) -> FanSwin:
    """A FAN-Swin without TAP; `num_scales` is accepted and has no effect, as in the reference."""
    del num_scales
    return FanSwin(**arguments)


for _name, _architecture in ARCHITECTURES.items():
    _config = pretrained_config(crop_pct=0.9)
    register_architecture(__name__, _name, partial(without_tap, **_architecture), _config)
    register_architecture(__name__, f"tap_{_name}", partial(FanSwin, **_architecture), _config)
