"""timm's pyramids and hybrids with convolutions, and what in them is called attention but is none between tokens."""

import pytest
import timm
import torch
from timm.models.metaformer import Attention, LayerNorm2dNoBias, LayerNormNoBias, MetaFormer, SepConv
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

import overfocus


@pytest.mark.parametrize("prefix", [0, 1])
def test_mvitv2_pools_queries_and_keys(family, prefix):
    model = MultiScaleVit(MultiScaleVitCfg(depths=(1, 2, 2), embed_dim=24, use_cls_token=bool(prefix)), img_size=(64, 64))
    prefixes = {"prefix": prefix, "key_prefix": prefix}
    # keys are pooled to an eighth of the patches along each side or less; the first block of a stage halves its queries
    expected = family.sites("stages.0.blocks.{}.attn", [0], "pooled", 1, (16, 16), key_grid=(4, 4), **prefixes)
    expected += family.sites("stages.1.blocks.{}.attn", [0], "global", 2, (8, 8), **prefixes)
    expected += family.sites("stages.1.blocks.{}.attn", [1], "pooled", 2, (8, 8), key_grid=(4, 4), **prefixes)
    expected += family.sites("stages.2.blocks.{}.attn", [0], "pooled", 4, (4, 4), key_grid=(8, 8), **prefixes)
    expected += family.sites("stages.2.blocks.{}.attn", [1], "global", 4, (4, 4), **prefixes)
    family.check(family.sharpen(model), family.images(64), expected, unfused="softmax")


@pytest.mark.parametrize(
    ("name", "template", "keys"),
    [
        ("pvt_v2_b0", "stages.{}.blocks.0.attn", [(2, 2)] * 4),
        ("pvt_v2_b2_li", "stages.{}.blocks.0.attn", [(7, 7)] * 4),  # keys pooled to 7×7 whatever the input
        ("twins_pcpvt_small", "blocks.{}.0.attn", [(2, 2)] * 4),
    ],
)
def test_pvt_pools_its_keys(family, name, template, keys):
    heads, size = (1, 2, 2, 4), {"img_size": 64} if "twins" in name else {}
    model = timm.create_model(name, depths=(1, 1, 1, 1), embed_dims=(16, 32, 32, 64), num_heads=heads, **size)
    expected = [
        site
        for stage, (grid, key_grid) in enumerate(zip([16, 8, 4, 2], keys, strict=True))
        for site in family.sites(
            template, [stage], "global" if key_grid == (grid, grid) else "pooled", heads[stage], (grid, grid), key_grid=key_grid
        )
    ]
    family.check(family.sharpen(model), family.images(64), expected)


@pytest.mark.parametrize("name", ["levit_128s", "levit_conv_128s"])
def test_levit_shrinks_by_attention(family, name):
    model = timm.create_model(name, embed_dim=(32, 48, 64), depth=(2, 1, 1), num_heads=(2, 3, 4))
    expected = family.sites("stages.0.blocks.{}.attn", range(2), "global", 2, (14, 14))
    # every second patch asks; heads of 16 channels
    expected += family.sites("stages.1.downsample.attn_downsample", [0], "pooled", 2, (7, 7), key_grid=(14, 14))
    expected += family.sites("stages.1.blocks.{}.attn", [0], "global", 3, (7, 7))
    expected += family.sites("stages.2.downsample.attn_downsample", [0], "pooled", 3, (4, 4), key_grid=(7, 7))
    expected += family.sites("stages.2.blocks.{}.attn", [0], "global", 4, (4, 4))
    images = family.images(224)
    family.check(family.sharpen(model, images), images, expected, unfused="softmax")


def test_efficientformer_attends_at_its_end(family):
    model = timm.create_model("efficientformer_l1", depths=(1, 1, 1, 3), embed_dims=(16, 32, 32, 64), num_vit=2)
    # one block of pooling, the flattening, two blocks of attention
    expected = family.sites("stages.3.blocks.{}.token_mixer", [2, 3], "global", 8, (7, 7))
    images = family.images(224)
    family.check(family.sharpen(model, images), images, expected, unfused="softmax")


def test_efficientformer_v2_mixes_heads(family):
    model = timm.create_model("efficientformerv2_s0", depths=(1, 1, 2, 2), embed_dims=(16, 32, 48, 64), num_vit=1)
    # in the third stage on every second patch, and upsampled after; heads are mixed before and after the softmax
    expected = family.sites("stages.2.blocks.{}.token_mixer", [1], "global", 8, (7, 7), normalised=False)
    expected += family.sites("stages.3.downsample.attn", [0], "pooled", 8, (7, 7), key_grid=(14, 14))
    expected += family.sites("stages.3.blocks.{}.token_mixer", [1], "global", 8, (7, 7), normalised=False)
    images = family.images(224)
    family.check(family.sharpen(model, images), images, expected, unfused=None)


def test_visformer(family):
    model = timm.create_model("visformer_tiny", img_size=64, depth=(1, 1, 1), embed_dim=48)
    expected = family.sites("stage2.{}.attn", [0], "global", 3, (4, 4)) + family.sites("stage3.{}.attn", [0], "global", 3, (2, 2))
    images = family.images(64)
    family.check(family.sharpen(model, images), images, expected)


def test_coatnet_attends_in_its_last_stages(family):
    model = timm.create_model("coatnet_pico_rw_224", img_size=64, embed_dim=(32, 32, 64, 64), depths=(1, 1, 2, 1))
    # heads of 32 channels of the block's input
    expected = family.sites("stages.2.blocks.{}.attn", [0], "global", 1, (4, 4))
    expected += family.sites("stages.2.blocks.{}.attn", [1], "global", 2, (4, 4))
    expected += family.sites("stages.3.blocks.{}.attn", [0], "global", 2, (2, 2))
    images = family.images(64)
    family.check(family.sharpen(model, images), images, expected)


def test_caformer_attends_in_its_last_stages(family):
    model = MetaFormer(
        depths=(1, 1, 2, 1),
        dims=(16, 32, 64, 96),
        token_mixers=(SepConv, SepConv, Attention, Attention),
        norm_layers=(LayerNorm2dNoBias,) * 2 + (LayerNormNoBias,) * 2,
    )
    expected = family.sites("stages.2.blocks.{}.token_mixer", range(2), "global", 2, (4, 4))
    expected += family.sites("stages.3.blocks.{}.token_mixer", range(1), "global", 3, (2, 2))
    images = family.images(64)
    family.check(family.sharpen(model, images), images, expected)


def test_fastvit_attends_in_its_last_stage(family):
    model = timm.create_model("fastvit_sa12", layers=(1, 1, 1, 2), embed_dims=(16, 32, 32, 64))
    images = family.images(128)
    expected = family.sites("stages.3.blocks.{}.token_mixer", range(2), "global", 2, (4, 4))
    family.check(family.sharpen(model, images), images, expected)


def test_mobilevit_unfolds_pixels_of_a_kind(family):
    model = timm.create_model("mobilevit_xxs")
    expected = []
    for stage, blocks, grid in ((2, 2, 16), (3, 4, 8), (4, 3, 4)):
        # pixels at the same place of each 2×2 patch see each other: four strided windows
        expected += family.sites(
            f"stages.{stage}.1.transformer.{{}}.attn", range(blocks), "window", 4, (grid // 2, grid // 2),
            windows=4, image_grid=(grid, grid), branch="grid",
        )  # fmt: skip
    images = family.images(128)
    captured = family.check(family.sharpen(model, images), images, expected)
    for attention in captured.maps:
        places = torch.arange(attention.image_grid[0] ** 2).reshape(attention.image_grid)
        windows = [places[row::2, column::2].flatten() for row in range(2) for column in range(2)]
        assert torch.equal(attention.partition, torch.stack(windows))


@pytest.mark.parametrize("size", [64, 224])
def test_nextvit_pools_keys_along_the_sequence(family, size):
    model = timm.create_model("nextvit_small", depths=(1, 2, 5, 2), stem_chs=(16, 16, 16))
    expected = []
    # runs of 16 and 4 patches, which make whole rows of the small image and no grid of the large one
    for stage, block, heads, stride in ((1, 1, 6, 8), (2, 4, 12, 16), (3, 1, 24, 32)):
        grid = (size // stride, size // stride)
        keys = {8: (4, 1), 16: (4, 1), 32: (2, 2)}[stride] if size == 64 else (grid if stage == 3 else None)
        expected += family.sites(
            f"stages.{stage}.blocks.{{}}.e_mhsa", [block], "global" if stage == 3 else "pooled", heads, grid, key_grid=keys
        )
    convolution = {f"stages.{stage}.blocks.{block}.mhca": "no softmax attention" for stage, blocks in enumerate((1, 2, 5, 2))
                   for block in range(blocks)}  # fmt: skip
    images = family.images(size)
    family.check(family.sharpen(model, images), images, expected, silent=convolution)


def test_edgenext_attends_channels(family):
    model = timm.create_model("edgenext_xx_small", depths=(2, 2, 2, 2))
    expected = family.channel_sites("stages.{}.blocks.1.xca", (1, 2, 3), 4)
    captured = family.check(family.sharpen(model), family.images(64), expected)
    assert all("no token attention" in site.reason for site in captured.coverage)


@pytest.mark.parametrize(
    ("name", "modules", "reason"),
    [
        (
            "mobilevitv2_050",
            [f"stages.{s}.1.transformer.{b}.attn" for s, n in ((2, 2), (3, 4), (4, 3)) for b in range(n)],
            "softmax",
        ),
        ("coat_lite_tiny", [f"serial_blocks{s}.{b}.factoratt_crpe" for s in range(1, 5) for b in range(2)], "softmax"),
        ("resnest14d", [f"layer{stage}.0.conv2" for stage in range(1, 5)], "softmax"),
        ("skresnet18", [f"layer{stage}.{block}.conv1.attn" for stage in range(1, 5) for block in range(2)], "softmax"),
        ("gcresnet33ts", None, "softmax"),
        ("lambda_resnet26t", ["stages.2.1.self_attn", "stages.3.0.self_attn", "stages.3.1.self_attn"], "softmax"),
        ("swiftformer_xs", [f"stages.{s}.blocks.{b}.attn" for s, b in ((0, 2), (1, 2), (2, 5), (3, 3))], "no softmax attention"),
        ("eca_resnet33ts", None, "no softmax attention"),
    ],
)
@pytest.mark.slow
def test_what_is_no_token_attention_is_named(family, name, modules, reason):
    model = timm.create_model(name).eval()
    images = family.images(224 if "coat" in name else 64)
    with torch.inference_mode():
        plain = model(images)
        with overfocus.capture(model) as captured:
            assert torch.equal(model(images), plain)
    assert captured.maps == ()
    assert captured.coverage
    assert modules is None or {site.module for site in captured.coverage} == set(modules)
    for site in captured.coverage:
        assert not site.captured
        assert reason in site.reason
    with pytest.raises(overfocus.CaptureError, match="no attention was captured"):
        overfocus.verify(model, images)


@pytest.mark.slow
def test_coat_names_its_factorised_attention(family):
    model = timm.create_model("coat_tiny", img_size=64).eval()
    with torch.inference_mode(), overfocus.capture(model) as captured:
        model(family.images(64))
    assert captured.maps == ()
    serial = {f"serial_blocks{stage}.{block}.factoratt_crpe" for stage in range(1, 5) for block in range(2)}
    parallel = {f"parallel_blocks.{block}.factoratt_crpe{stage}" for block in range(6) for stage in (2, 3, 4)}
    assert {site.module for site in captured.coverage} == serial | parallel
    assert {site.kind for site in captured.coverage} == {"gating"}


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "poolformer_s12", "mixer_s32_224"])
@pytest.mark.slow
def test_models_without_attention_have_an_empty_table(family, name):
    model = timm.create_model(name).eval()
    images = family.images(224 if "mixer" in name else 64)
    with torch.inference_mode(), overfocus.capture(model) as captured:
        model(images)
    assert captured.maps == ()
    assert captured.coverage == ()
