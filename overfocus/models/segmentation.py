"""Semantic segmentation models: a backbone of feature levels and the SegFormer head, entered into timm's registry."""

from functools import partial
from typing import Any

import timm
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.models.fan_variants import ARCHITECTURES
from overfocus.models.segformer_head import SegFormerHead
from overfocus.models.segmentation_backbones import FanLevels, TimmLevels
from overfocus.models.timm_registration import TAP_BRANCHES, pretrained_config, register_architecture

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
    _config = pretrained_config(crop_pct=1.0, num_classes=19, input_size=(3, 1024, 1024), classifier="decode_head.linear_pred")
    _plain = partial(fan_segmentation_without_tap, out_block=_out_block, **_architecture)
    register_architecture(__name__, f"{_name}_segformer", _plain, _config)
    _with_tap = partial(fan_segmentation, out_block=_out_block, num_scales=TAP_BRANCHES, **_architecture)
    register_architecture(__name__, f"tap_{_name}_segformer", _with_tap, _config)
