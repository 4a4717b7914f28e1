"""timm's plain Vision Transformers: one sequence of patches and prefix tokens from the first block to the last."""

import pytest
import timm
import torch
from timm.models.crossvit import CrossVit
from timm.models.volo import VOLO


def build(name, size, **settings):
    return timm.create_model(name, img_size=size, **settings)


@pytest.mark.parametrize(
    ("name", "size", "settings", "heads", "prefix"),
    [
        ("vit_tiny_patch16_224", 64, {}, 3, 1),
        ("deit_tiny_patch16_224", 64, {}, 3, 1),
        ("deit_tiny_distilled_patch16_224", 64, {}, 3, 2),  # class and distillation token
        ("deit3_small_patch16_224", 64, {"embed_dim": 96, "num_heads": 3}, 3, 1),
        ("beit_base_patch16_224", 64, {"embed_dim": 48, "num_heads": 3}, 3, 1),
        ("beitv2_base_patch16_224", 64, {"embed_dim": 48, "num_heads": 3}, 3, 1),
        ("beit3_base_patch16_224", 64, {"embed_dim": 48, "num_heads": 3}, 3, 1),
        ("eva_giant_patch14_224", 56, {"embed_dim": 64, "num_heads": 4}, 4, 1),
        ("eva02_tiny_patch14_224", 56, {}, 3, 1),  # RoPE, separate q, k and v
        ("eva02_base_patch16_clip_224", 64, {"embed_dim": 64, "num_heads": 4}, 4, 1),
        ("vit_small_patch14_dinov2", 56, {"embed_dim": 96, "num_heads": 3}, 3, 1),
        ("vit_small_patch14_reg4_dinov2", 56, {"embed_dim": 96, "num_heads": 3}, 3, 5),  # class token and four registers
        ("vit_small_patch16_dinov3", 64, {"embed_dim": 96, "num_heads": 3}, 3, 5),
        ("vit_base_patch16_siglip_gap_224", 64, {"embed_dim": 48, "num_heads": 3}, 3, 0),
        ("vit_relpos_small_patch16_224", 64, {"embed_dim": 96, "num_heads": 3}, 3, 0),
        ("vit_relpos_medium_patch16_cls_224", 64, {"embed_dim": 96, "num_heads": 3}, 3, 1),
        ("vit_srelpos_small_patch16_224", 64, {"embed_dim": 96, "num_heads": 3}, 3, 0),
        ("flexivit_small", 64, {"embed_dim": 96, "num_heads": 3}, 3, 1),
        ("vit_medium_patch16_rope_reg1_gap_256", 64, {"embed_dim": 64, "num_heads": 4}, 4, 1),
        ("vit_small_patch16_rope_mixed_224", 64, {"embed_dim": 64, "num_heads": 4}, 4, 1),
    ],
)
def test_one_sequence(family, name, size, settings, heads, prefix):
    model = family.sharpen(build(name, size, depth=2, **settings))
    family.check(
        model,
        family.images(size),
        family.sites("blocks.{}.attn", range(2), "global", heads, (4, 4), prefix=prefix, key_prefix=prefix),
    )


def test_siglip_has_a_pooling_query(family):
    model = family.sharpen(build("vit_base_patch16_siglip_224", 64, depth=2, embed_dim=48, num_heads=3))
    expected = family.sites("blocks.{}.attn", range(2), "global", 3, (4, 4))
    expected += family.class_sites("attn_pool", [0], 3, (4, 4), key_prefix=0)
    # timm's pooling head drops its output, not its weights, so an unfused model does not show them
    family.check(model, family.images(64), expected, unfused=None)


def test_parallel_blocks_have_a_map_each(family):
    model = family.sharpen(build("vit_small_patch16_18x2_224", 64, depth=2, embed_dim=96, num_heads=3))
    expected = [
        site
        for block in range(2)
        for site in family.sites(f"blocks.{block}.attns.{{}}.attn", range(2), "global", 3, (4, 4), prefix=1, key_prefix=1)
    ]
    family.check(model, family.images(64), expected)


def test_naflexvit_takes_images_of_any_shape(family):
    model = family.sharpen(timm.create_model("naflexvit_base_patch16_gap", depth=2, embed_dim=48, num_heads=3))
    # four registers and no class token
    family.check(
        model, family.images(64, 96), family.sites("blocks.{}.attn", range(2), "global", 3, (4, 6), prefix=4, key_prefix=4)
    )


def test_naflexvit_drops_the_padding_of_packed_patches(family):
    model = family.sharpen(timm.create_model("naflexvit_base_patch16_gap", depth=2, embed_dim=48, num_heads=3))
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    coordinates = torch.zeros(2, 15, 2, dtype=torch.long)
    coordinates[:, :12] = torch.stack([rows, columns], -1).reshape(12, 2)
    packed = {
        "patches": torch.randn(2, 15, 3 * 16 * 16, generator=torch.Generator().manual_seed(2)),
        "patch_coord": coordinates,
        "patch_valid": torch.arange(15).expand(2, 15) < 12,
    }
    expected = family.sites("blocks.{}.attn", range(2), "global", 3, (3, 4), prefix=4, key_prefix=4)
    family.check(model, (packed,), expected, order=lambda raw, _: raw[:, :, :16, :16])


def test_cait_mixes_heads_after_the_softmax(family):
    model = family.sharpen(build("cait_xxs24_224", 64, depth=2, embed_dim=96))
    expected = family.sites("blocks.{}.attn", range(2), "global", 4, (4, 4), normalised=False)
    expected += family.class_sites("blocks_token_only.{}.attn", range(2), 4, (4, 4))
    captured = family.check(model, family.images(64), expected)  # attn_drop gets the mixed map
    assert (captured.maps[0].weights.sum(-1) - 1).abs().max() > 0.1


def test_convit_gates_content_and_position(family):
    model = family.sharpen(build("convit_tiny", 64, depth=3, local_up_to_layer=2))
    expected = family.sites("blocks.{}.attn", range(2), "global", 4, (4, 4))
    expected += family.sites("blocks.{}.attn", [2], "global", 4, (4, 4), prefix=1, key_prefix=1)  # class token joins here
    family.check(model, family.images(64), expected)


def test_xcit_has_channel_maps_and_class_attention(family):
    model = family.sharpen(build("xcit_nano_12_p16_224", 64, depth=2), family.images(64))
    expected = family.channel_sites("blocks.{}.attn", range(2), 4)
    expected += family.class_sites("cls_attn_blocks.{}.attn", range(2), 4, (4, 4))
    captured = family.check(model, family.images(64), expected)
    assert [site.reason is not None for site in captured.coverage] == [True, True, False, False]


def test_crossvit_has_two_branches_and_the_crosses(family):
    model = CrossVit(
        img_size=48,
        img_scale=(1.0, 2 / 3),
        patch_size=(8, 16),
        embed_dim=(32, 64),
        num_heads=(2, 2),
        depth=((1, 2, 0),),
        mlp_ratio=(2, 2, 1),
    )
    expected = family.sites("blocks.0.blocks.0.{}.attn", [0], "global", 2, (6, 6), prefix=1, key_prefix=1)
    expected += family.sites("blocks.0.blocks.1.{}.attn", [0, 1], "global", 2, (2, 2), prefix=1, key_prefix=1)
    # the class token of each branch looks at the other branch's patches
    expected += family.class_sites("blocks.0.fusion.{}.attn", [0], 2, (2, 2))
    expected += family.class_sites("blocks.0.fusion.{}.attn", [1], 2, (6, 6))
    family.check(family.sharpen(model), family.images(48), expected)


@pytest.mark.parametrize(("name", "prefix"), [("pit_ti_224", 1), ("pit_ti_distilled_224", 2)])
def test_pit_pools_between_its_stages(family, name, prefix):
    model = family.sharpen(build(name, 64))
    prefixes = {"prefix": prefix, "key_prefix": prefix}
    expected = family.sites(
        "transformers.0.blocks.{}.attn", range(2), "global", 2, (7, 7), **prefixes
    )  # 16-pixel patches, stride 8
    expected += family.sites("transformers.1.blocks.{}.attn", range(6), "global", 4, (4, 4), **prefixes)
    expected += family.sites("transformers.2.blocks.{}.attn", range(4), "global", 8, (2, 2), **prefixes)
    family.check(model, family.images(64), expected)


def test_volo_has_outlook_attention_over_neighbourhoods(family):
    model = VOLO(layers=(1, 1, 1, 1), img_size=64, embed_dims=(24, 48, 48, 48), num_heads=(2, 3, 3, 3))
    # stem of stride 4, patches of 2: an 8×8 grid, whose every second token weighs its 3×3 neighbourhood
    expected = family.sites("network.0.{}.attn", [0], "window", 2, (3, 3), windows=16, image_grid=(8, 8))
    expected += [site for stage in (2, 3, 4) for site in family.sites(f"network.{stage}.{{}}.attn", [0], "global", 3, (4, 4))]
    expected += family.class_sites("post_network.{}.attn", range(2), 3, (4, 4))
    family.check(
        family.sharpen(model, family.images(64)),
        family.images(64),
        expected,
        # (batch, heads, windows, 9, 9) in outlook attention
        order=lambda raw, attention: raw.transpose(1, 2).flatten(0, 1) if attention.kind == "window" else raw,
    )


@pytest.mark.parametrize("name", ["tnt_s_legacy_patch16_224", "tnt_s_patch16_224"])
def test_tnt_has_pixels_inside_patches(family, name):
    model = family.sharpen(build(name, 64, depth=2))
    expected = []
    for block in range(2):
        # 4×4 pixel tokens of stride 4 inside each of the 16 patches
        expected += family.sites("blocks.{}.attn_in", [block], "window", 4, (4, 4), windows=16, image_grid=(16, 16))
        expected += family.sites("blocks.{}.attn_out", [block], "global", 6, (4, 4), prefix=1, key_prefix=1)
    family.check(model, family.images(64), expected)
