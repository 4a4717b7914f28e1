"""The models of this project, with and without TAP: its dilation predictor has a softmax, and is no attention between tokens.

FAN and RVT have no unfused form to compare with; their numbers are held to the reference's elsewhere.
"""

import pytest
import timm

from overfocus.models import Fan, FanSwin, Rvt, add_tap, segmentation_model

TAP = pytest.mark.parametrize("branches", [None, 4])


def gatings(template, blocks, branches):
    """Coverage of TAP's predictors in these blocks."""
    return {f"{template.format(block)}.dilation_predictor": "softmax" for block in blocks} if branches else {}


@TAP
def test_fan(family, branches):
    model = Fan((32,), (2,), (4,), num_scales=branches)
    expected = family.sites("blocks.{}.attn", range(2), "global", 4, (4, 4))
    expected += family.class_sites("cls_attn_blocks.{}.attn", range(2), 4, (4, 4))
    channel_processing = {f"blocks.{block}.mlp": "softmax" for block in range(2)}
    images = family.images(64)
    silent = channel_processing | gatings("blocks.{}", range(2), branches)
    family.check(family.sharpen(model, images), images, expected, silent=silent, unfused=None)


@TAP
def test_fan_hybrid_with_two_widths(family, branches):
    model = Fan((32, 64), (1, 1), (4, 4), stem_depths=(1, 1), num_scales=branches)
    expected = family.sites("blocks.{}.attn", [0], "global", 4, (4, 4)) + family.sites("blocks.{}.attn", [1], "global", 4, (2, 2))
    expected += family.class_sites("cls_attn_blocks.{}.attn", range(2), 4, (2, 2))
    channel_processing = {f"blocks.{block}.mlp": "softmax" for block in range(2)}
    images = family.images(64)
    silent = channel_processing | gatings("blocks.{}", range(2), branches)
    family.check(family.sharpen(model, images), images, expected, silent=silent, unfused=None)


@TAP
@pytest.mark.parametrize("masked", [0, 1])
def test_rvt(family, branches, masked):
    model = Rvt((32,), (2,), (4,), masked_blocks=masked, num_scales=branches, img_size=64)
    expected = family.sites("transformers.0.blocks.{}.attn", range(2), "global", 4, (4, 4))
    images = family.images(64)
    # position-aware scaling changes the scores, so that the map behind the softmax has it
    silent = gatings("transformers.0.blocks.{}", range(2), branches)
    family.check(family.sharpen(model, images), images, expected, silent=silent, unfused=None)


@TAP
def test_rvt_with_two_widths(family, branches):
    model = Rvt((32, 64), (1, 1), (4, 4), num_scales=branches, img_size=64)
    expected = family.sites("transformers.0.blocks.{}.attn", [0], "global", 4, (4, 4))
    expected += family.sites("transformers.1.blocks.{}.attn", [0], "global", 4, (2, 2))
    images = family.images(64)
    silent = gatings("transformers.0.blocks.{}", [0], branches) | gatings("transformers.1.blocks.{}", [0], branches)
    family.check(family.sharpen(model, images), images, expected, silent=silent, unfused=None)


@pytest.mark.parametrize("branches", [1, 4])
def test_fan_swin(family, branches):
    model = FanSwin(embed_dim=16, depths=(2, 2), num_heads=(1, 2), img_size=112, num_scales=branches)
    expected, silent = [], {f"layers.0.blocks.{block}.mlp": "softmax" for block in range(2)}
    for layer, (heads, windows, grid) in enumerate([(1, 16, 28), (2, 4, 14)]):
        template = f"layers.{layer}.blocks.{{}}"
        for block, branch in ((0, None), (1, "shifted")):
            expected += family.sites(
                f"{template}.attn", [block], "window", heads, (7, 7), windows=windows, image_grid=(grid, grid), branch=branch
            )
        silent |= gatings(template, range(2), branches > 1)
    images = family.images(112)
    family.check(family.sharpen(model, images), images, expected, silent=silent)


def test_add_tap_to_a_vision_transformer(family):
    model = add_tap(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2))
    expected = family.sites("blocks.{}.attn", range(2), "global", 3, (4, 4), prefix=1, key_prefix=1)
    family.check(family.sharpen(model), family.images(64), expected, silent=gatings("blocks.{}", range(2), 4))


def test_add_tap_to_swin(family):
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, embed_dim=16, depths=(2,), num_heads=(1,))
    shift = {"windows": 16, "image_grid": (28, 28)}
    expected = family.sites("layers.0.blocks.{}.attn", [0], "window", 1, (7, 7), **shift)
    expected += family.sites("layers.0.blocks.{}.attn", [1], "window", 1, (7, 7), branch="shifted", **shift)
    silent = gatings("layers.0.blocks.{}", range(2), 4)
    family.check(family.sharpen(add_tap(model)), family.images(112), expected, silent=silent)


def test_segmentation_of_a_vision_transformer(family):
    model = segmentation_model("vit_tiny_patch16_224", num_classes=3, img_size=64, depth=4)
    expected = family.sites("backbone.model.blocks.{}.attn", range(4), "global", 3, (4, 4), prefix=1, key_prefix=1)
    images = family.images(64)
    family.check(family.sharpen(model, images), images, expected)
