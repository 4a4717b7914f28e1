"""Segmentation models: the head against its textbook form, and backbones of every kind."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import overfocus
from overfocus.models import Fan, SegmentationModel, add_tap, segmentation_model
from overfocus.models.segmentation import OUT_BLOCKS, FanLevels, SegFormerHead, TimmLevels


def small_fan_levels(**arguments: Any) -> FanLevels:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"embed_dims": (32,), "depths": (3,), "num_heads": (4,), "stem_depths": (1, 1), "num_scales": 3}
    return FanLevels(**{"out_block": 2, **defaults, **arguments}).eval()


def textbook_head(head: SegFormerHead, levels: list[torch.Tensor]) -> torch.Tensor:
    """Project each level, upsample all to the first one's size, concatenate coarsest first, fuse."""
    projected = []
    for level in range(len(levels), 0, -1):
        maps = getattr(head, f"linear_c{level}").proj(levels[level - 1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        projected.append(F.interpolate(maps, size=levels[0].shape[2:], mode="bilinear", align_corners=False))
    fused = F.relu(head.linear_fuse.bn(head.linear_fuse.conv(torch.cat(projected, dim=1))))
    return head.linear_pred(head.dropout(fused))


@pytest.mark.parametrize("sizes", [[(16, 24), (8, 12), (4, 6), (4, 6)], [(15, 9), (8, 5), (4, 3), (2, 2)], [(7, 7)] * 4])
def test_head_equals_its_textbook_form_in_value_and_gradient(sizes: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    head = SegFormerHead((5, 6, 7, 8), num_classes=3, channels=16, drop=0.0).double().train()
    levels = [torch.randn(2, width, *size, dtype=torch.float64) for width, size in zip((5, 6, 7, 8), sizes, strict=True)]
    gradients = []
    for logits in (head(levels), textbook_head(head, levels)):
        head.zero_grad()
        logits.square().sum().backward()
        gradients.append(
            [logits.detach(), *(parameter.grad.clone() for parameter in head.parameters() if parameter.requires_grad)]
        )
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_every_name_is_registered() -> None:
    for name in OUT_BLOCKS:
        for prefix in ("", "tap_"):
            config = timm.models.get_pretrained_cfg(f"{prefix}{name}_segformer")
            assert (config.input_size, config.num_classes, config.classifier) == ((3, 1024, 1024), 19, "decode_head.linear_pred")


def test_names_build_with_and_without_tap() -> None:
    with torch.device("meta"):
        plain = timm.create_model("fan_tiny_8_p4_hybrid_segformer", num_classes=4, num_scales=4)
        with_tap = timm.create_model("tap_fan_tiny_8_p4_hybrid_segformer", num_scales=2)
        large = timm.create_model("tap_fan_large_16_p4_hybrid_segformer")
    assert plain.decode_head.linear_pred.out_channels == 4
    assert not any("dilation_predictor" in name for name in plain.state_dict())
    assert with_tap.backbone.blocks[0].token_pools.branches == 2
    assert (large.backbone.out_block, len(large.backbone.blocks)) == (18, 22)


def test_third_map_comes_from_the_block_that_was_named() -> None:
    backbone, images = small_fan_levels(out_block=1), torch.randn(1, 3, 64, 96)
    seen: list[torch.Tensor] = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    levels = backbone(images)
    assert torch.equal(levels[2].flatten(2).transpose(1, 2), seen[1])
    assert [tuple(level.shape[1:]) for level in levels] == [(128, 16, 24), (256, 8, 12), (32, 4, 6), (32, 4, 6)]


def test_last_map_is_what_class_attention_makes_of_the_patches() -> None:
    backbone, images = small_fan_levels(), torch.randn(2, 3, 64, 96)
    for block in backbone.cls_attn_blocks:
        nn.init.normal_(block.gamma1)
    patches = backbone.forward_features(images)[:, 1:]
    torch.testing.assert_close(backbone(images)[3].flatten(2).transpose(1, 2), patches, atol=1e-4, rtol=1e-4)


def test_a_classifiers_weights_initialise_the_backbone() -> None:
    arguments: dict[str, Any] = {"embed_dims": (32,), "depths": (3,), "num_heads": (4,), "stem_depths": (1, 1), "num_scales": 3}
    report = small_fan_levels().load_state_dict(Fan(**arguments).state_dict(), strict=False)
    assert report.missing_keys == []
    assert report.unexpected_keys == ["norm.weight", "norm.bias", "head.weight", "head.bias"]


def test_every_trained_parameter_gets_a_gradient() -> None:
    model = SegmentationModel(small_fan_levels(), num_classes=5).train()
    logits = model(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 5, 16, 24)
    logits.square().sum().backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(gradient is not None for gradient in trained.values())
    assert "backbone.cls_attn_blocks.0.gamma1" in trained
    assert "backbone.cls_attn_blocks.0.attn.q.weight" not in trained


def test_checkpointing_leaves_the_gradients() -> None:
    gradients = []
    for checkpointed in (False, True):
        model = SegmentationModel(small_fan_levels(), num_classes=5)
        model.set_grad_checkpointing(checkpointed)
        model.backbone.train()
        torch.manual_seed(1)
        sum(level.square().mean() for level in model.backbone(torch.randn(2, 3, 64, 64))).backward()
        gradients.append(model.backbone.pos_embed.token_projection.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(
    ("name", "size", "strides"),
    [
        ("vit_tiny_patch16_224", (64, 96), (16, 16, 16, 16)),
        ("swin_tiny_patch4_window7_224", (64, 96), (4, 8, 16, 32)),
        ("pvt_v2_b0", (64, 96), (4, 8, 16, 32)),
        ("rvt_tiny", (64, 96), (16, 16, 16, 32)),
        ("fan_swin_tiny_patch4_window7_224", (64, 96), (4, 8, 16, 32)),
    ],
)
def test_any_timm_backbone(name: str, size: tuple[int, int], strides: tuple[int, ...]) -> None:
    arguments = {"img_size": size} if name.startswith(("vit", "swin")) else {}
    model = segmentation_model(name, num_classes=4, in_chans=1, **arguments).eval()
    images = torch.randn(1, 1, *size)
    with torch.no_grad():
        levels = model.backbone(images)
        assert [tuple(level.shape[2:]) for level in levels] == [(size[0] // stride, size[1] // stride) for stride in strides]
        assert model(images).shape == (1, 4, size[0] // strides[0], size[1] // strides[0])


def test_layers_of_a_vit_are_evenly_spaced() -> None:
    with torch.device("meta"):
        assert TimmLevels(timm.create_model("vit_tiny_patch16_224")).indices == [2, 5, 8, 11]
        assert TimmLevels(timm.create_model("vit_tiny_patch16_224", depth=4)).indices == [0, 1, 2, 3]


def test_a_built_backbone_with_tap_and_its_attention() -> None:
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), depth=4, num_classes=0)
    model = segmentation_model(add_tap(backbone, branches=3), num_classes=2).eval()
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(torch.randn(1, 3, 64, 96))
    assert [attention.grid for attention in captured.maps] == [(4, 6)] * 4


def test_a_model_without_intermediate_features_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a timm model with forward_intermediates .*, got Linear"):
        segmentation_model(nn.Linear(2, 2))


def test_number_of_classes_can_be_changed() -> None:
    model = SegmentationModel(small_fan_levels(), num_classes=5)
    model.reset_classifier(2)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 2, 8, 8)
    assert model.get_classifier().out_channels == 2
    assert model.decode_head.conv_seg.weight.shape == (2, 256, 1, 1)


def test_fewer_than_four_layers_are_levels_more_than_once() -> None:
    backbone = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=0)
    levels = TimmLevels(backbone).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        first, second = backbone.eval().forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
        found = levels(images)
    assert levels.indices == [0, 0, 1, 1]
    for level, expected in zip(found, (first, first, second, second), strict=True):
        torch.testing.assert_close(level, expected)
