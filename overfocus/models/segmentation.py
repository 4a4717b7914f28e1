"""Semantic segmentation models: a backbone of feature levels and the SegFormer head, entered into timm's registry."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.models.fan import ARCHITECTURES, Fan
from overfocus.models.layers import TAP_BRANCHES, pretrained_config, register_architecture, to_maps, to_tokens

UNUSED_CHANNELS = 256


class LevelProjection(nn.Module):
    """Linear layer from the width of one feature level to the head's, per pixel."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, channels)


class Fusion(nn.Module):
    """1×1 convolution over the concatenated levels, without bias, and its batch norm."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)


class SegFormerHead(nn.Module):
    """Feature levels, finest first, each (batch, channels_i, rows_i, columns_i) → logits (batch, num_classes, rows_0, columns_0).

    Every level is projected to `channels`, upsampled bilinearly to the first one's size and fused by a 1×1 convolution over all
    of them. Projection and fusion are linear per pixel and commute with the upsampling, whose weights sum to 1; so each level
    is multiplied with the product of both matrices at its own size. At 1024×1024 that takes a tenth of the operations.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 768, drop: float = 0.1) -> None:
        super().__init__()
        # mmsegmentation's heads all carry this layer and this one never calls it; it is in the published checkpoints.
        self.conv_seg = nn.Conv2d(UNUSED_CHANNELS, num_classes, kernel_size=1).requires_grad_(False)
        for level in range(len(in_channels), 0, -1):
            self.add_module(f"linear_c{level}", LevelProjection(in_channels[level - 1], channels))
        self.levels = len(in_channels)
        self.linear_fuse = Fusion(self.levels * channels, channels)
        self.dropout = nn.Dropout2d(drop)
        self.linear_pred = nn.Conv2d(channels, num_classes, kernel_size=1)

    def reset_classifier(self, num_classes: int) -> None:
        """Put new last layers in the place of the old ones."""
        device = self.linear_pred.weight.device
        self.conv_seg = nn.Conv2d(UNUSED_CHANNELS, num_classes, kernel_size=1, device=device).requires_grad_(False)
        self.linear_pred = nn.Conv2d(self.linear_pred.in_channels, num_classes, kernel_size=1, device=device)

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "batch num_classes rows columns"]:
        size = levels[0].shape[2:]
        # The concatenation, and with it the columns of the fusion, runs from the coarsest level to the finest.
        fusions = self.linear_fuse.conv.weight.flatten(1).chunk(self.levels, dim=1)
        fused: Tensor | None = None
        for level, fusion in zip(range(self.levels, 0, -1), fusions, strict=True):
            projection: nn.Linear = self.get_submodule(f"linear_c{level}").proj  # type: ignore[assignment]
            maps = F.conv2d(levels[level - 1], (fusion @ projection.weight)[:, :, None, None], fusion @ projection.bias)
            if maps.shape[2:] != size:
                maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
            fused = maps if fused is None else fused + maps
        logits: Tensor = self.linear_pred(self.dropout(F.relu(self.linear_fuse.bn(fused))))
        return logits


class FanLevels(Fan):
    """FAN-Hybrid without norm and classifier; image → four maps of stride 4, 8, 16 and 16.

    The first two come from the convolutional stem, the third from token block `out_block`, and the fourth holds the patch
    tokens behind the class-attention blocks, which move patches without regard to the class token. What only the class token
    would use stays in the checkpoint and takes no gradient.
    """

    def __init__(self, out_block: int, **arguments: Any) -> None:
        super().__init__(num_classes=0, paired_frequencies=False, **arguments)
        self.norm = nn.Identity()
        self.out_block = out_block
        self.cls_token.requires_grad_(False)
        for block in self.cls_attn_blocks:
            block.requires_grad_(False)
            for part in (block.gamma1, block.norm1, block.norm2):
                part.requires_grad_(True)
        width = self.num_features
        self.channels = (*self.patch_embed.backbone.channels, width, width)  # type: ignore[union-attr, misc]

    def forward(self, images: Float[Tensor, "batch in_chans height width"]) -> list[Tensor]:  # type: ignore[override]
        *levels, maps = self.patch_embed.levels(images.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
        grid = (maps.shape[2], maps.shape[3])
        tokens, taken, _ = self.walk_blocks(to_tokens(maps) + self.pos_embed(grid), grid, [self.out_block], self.depth - 1)
        levels.append(to_maps(taken[0], grid))
        blocks: Any = self.cls_attn_blocks
        for block in blocks:
            tokens = 2 * block.norm2(torch.addcmul(tokens, block.gamma1, block.norm1(tokens)))
        return [*levels, to_maps(tokens, grid)]


class TimmLevels(nn.Module):
    """Feature levels of any timm model with intermediate features, finest first.

    Pyramids (Swin, PVT and the like) give their last four sizes. Models of fewer sizes (ViT has one) give four layers evenly
    spaced up to the last one.

    Raises:
        ValueError: if the model gives no intermediate features.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        info: Any = getattr(model, "feature_info", None)
        if not hasattr(model, "forward_intermediates") or info is None:
            raise ValueError(f"expected a timm model with forward_intermediates (ViT, Swin, PVT …), got {type(model).__name__}")
        self.model = model
        described = list(info)
        last_of_size = {level["reduction"]: index for index, level in enumerate(described)}
        if len(last_of_size) >= 4:
            self.indices = list(last_of_size.values())[-4:]
        else:
            self.indices = [(len(described) * part + 3) // 4 - 1 for part in (1, 2, 3, 4)]
        self.channels = tuple(described[index]["num_chs"] for index in self.indices)

    def no_weight_decay(self) -> set[str]:
        """Parameters with more than one axis that take no weight decay."""
        listed = getattr(self.model, "no_weight_decay", set)
        return {f"model.{name}" for name in listed()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the blocks for the backward pass."""
        model: Any = self.model
        model.set_grad_checkpointing(enable)

    def forward(self, images: Float[Tensor, "batch in_chans height width"]) -> list[Tensor]:
        model: Any = self.model
        each = sorted(set(self.indices))  # of fewer than four layers some are levels twice
        levels: list[Tensor] = model.forward_intermediates(images, indices=each, output_fmt="NCHW", intermediates_only=True)
        return [levels[each.index(index)] for index in self.indices]


# The token block that gives the third map: the last one, and for the large model one the reference chose before it.
OUT_BLOCKS = {"fan_tiny_8_p4_hybrid": 7, "fan_small_12_p4_hybrid": 9, "fan_base_16_p4_hybrid": 15, "fan_large_16_p4_hybrid": 18}


class SegmentationModel(nn.Module):
    """Image (batch, in_chans, height, width) → logits (batch, num_classes, rows, columns) at the size of the finest level.

    That is a quarter of the image for FAN-Hybrid, Swin and PVT and a patch per pixel for ViT; upsample the logits
    bilinearly (`align_corners=False`) to the image before the loss or the arg-max. Parameter names are `backbone.*` and
    `decode_head.*`, as in mmsegmentation's checkpoints.
    """

    def __init__(self, backbone: FanLevels | TimmLevels, num_classes: int = 19, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.backbone = backbone
        self.decode_head = SegFormerHead(backbone.channels, num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Put new last layers in the place of the old ones."""
        self.num_classes = num_classes
        self.decode_head.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """The last layer, from features to logits."""
        return self.decode_head.linear_pred

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the backbone's blocks for the backward pass."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Parameters with more than one axis that take no weight decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def forward(self, images: Float[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch num_classes rows columns"]:
        logits: Tensor = self.decode_head(self.backbone(images))
        return logits


def fan_segmentation(
    num_classes: int = 19, in_chans: int = 3, num_scales: int | None = None, **arguments: Any
) -> SegmentationModel:
    """A FAN-Hybrid backbone with the SegFormer head; the other arguments are those of `Fan`."""
    return SegmentationModel(FanLevels(in_chans=in_chans, num_scales=num_scales, **arguments), num_classes, in_chans)


def fan_segmentation_without_tap(num_scales: int | None = None, **arguments: Any) -> SegmentationModel:
    """The same without TAP; `num_scales` is accepted and has no effect, as for the classifiers."""
    del num_scales
    return fan_segmentation(**arguments)


def segmentation_model(
    backbone: str | nn.Module, num_classes: int = 19, in_chans: int = 3, pretrained: bool = False, **arguments: Any
) -> SegmentationModel:
    """Any timm backbone, by name or built (with `add_tap`, say), under the SegFormer head.

    `arguments` go to `timm.create_model`; give a ViT `img_size` or `dynamic_img_size=True` for inputs of another size than it
    was made for.

    Raises:
        ValueError: if the model gives no intermediate features.
    """
    if isinstance(backbone, str):
        backbone = timm.create_model(backbone, pretrained=pretrained, in_chans=in_chans, num_classes=0, **arguments)
    model: Any = SegmentationModel(TimmLevels(backbone), num_classes, in_chans)
    known = getattr(backbone, "pretrained_cfg", None) or {}
    model.pretrained_cfg = {key: known[key] for key in ("input_size", "mean", "std", "interpolation") if known.get(key)}
    model.pretrained_cfg |= {"crop_pct": 1.0, "classifier": "decode_head.linear_pred"}
    made: SegmentationModel = model
    return made


for _name, _out_block in OUT_BLOCKS.items():
    _architecture = {key: value for key, value in ARCHITECTURES[_name].items() if key != "head_init_scale"}
    _config = pretrained_config(
        crop_pct=1.0,
        first_conv="backbone.patch_embed.backbone.stem.0",
        num_classes=19,
        input_size=(3, 1024, 1024),
        classifier="decode_head.linear_pred",
    )
    _plain = partial(fan_segmentation_without_tap, out_block=_out_block, **_architecture)
    register_architecture(__name__, f"{_name}_segformer", _plain, _config)
    _with_tap = partial(fan_segmentation, out_block=_out_block, num_scales=TAP_BRANCHES, **_architecture)
    register_architecture(__name__, f"tap_{_name}_segformer", _with_tap, _config)
