"""Attention in the rest of timm, beyond the families that are promised: verified as it is, or the reason why there is none."""

from collections import Counter

import pytest
import timm
import torch

import overfocus

pytestmark = pytest.mark.slow

SMALL = {"img_size": 64, "depth": 2}


@pytest.mark.parametrize(
    ("name", "size", "settings", "kinds"),
    [
        # its spatial attention multiplies (images, tokens) by (tokens, images): there images attend images
        ("csatv2", 128, {}, {"global": 4, "unlabelled": 14}),
        ("shvit_s1", 128, {}, {"global": 9}),
        ("iformer_t", 128, {}, {"global": 5}),
        ("mobilenetv4_hybrid_medium", 128, {}, {"pooled": 4, "global": 4}),
        ("botnet26t_256", 256, {}, {"global": 3}),
        ("lowformer_b0", 128, {}, None),
        ("mobilenetv5_base", 64, {}, {"global": 13}),
        ("resnet50_clip", 224, {}, {"global": 1}),
        ("vit_tiny_r_s16_p8_224", 64, SMALL, {"global": 2}),
        ("vit_base_patch16_xp_224", 64, SMALL, {"global": 2}),
        ("vit_base_mci_224", 64, SMALL, {"global": 2}),
        ("vit_pe_core_tiny_patch16_384", 64, SMALL, {"global": 2, "class": 1}),
        ("vit_dpwee_patch16_reg1_gap_256", 64, {"img_size": 64}, None),
        ("vit_base_patch16_rope_mixed_ape_224", 64, SMALL, {"global": 2}),
        ("vitamin_small_224", 64, {"img_size": 64}, {"global": 14}),
        ("qwen3_vit_88m", 64, {}, {"global": 12}),
        ("swin_s3_tiny_224", 224, {}, None),
        ("hiera_small_abswin_256", 128, {"img_size": 128}, {"window": 4, "global": 11, "pooled": 1}),
        ("hieradet_small", 256, {}, None),
        ("sam2_hiera_tiny", 128, {}, None),
        ("maxxvit_rmlp_nano_rw_256", 128, {"img_size": 128, "depths": (1, 1, 1, 1)}, {"window": 6, "global": 2}),
        ("halonet26t", 256, {}, {"window": 3}),
        ("beit3_base_patch16_224", 64, SMALL, {"global": 2}),
        ("naflexvit_base_patch16_map", 64, {"depth": 2}, {"global": 2, "class": 1}),
    ],
)
def test_verified(family, name, size, settings, kinds):
    model = timm.create_model(name, **settings)
    images = family.images(size)
    family.sharpen(model, images)
    verification = overfocus.verify(model, images)
    assert [site for site in verification.sites if not site.passed] == []
    assert verification.identical
    if kinds is not None:
        assert Counter(site.kind for site in verification.sites) == kinds
    with torch.inference_mode(), overfocus.capture(model) as captured:
        model(images)
    for attention in captured.maps:
        assert attention.weights.shape == attention.shape  # and every row sums to 1


def test_halo_windows_see_a_rim_around_their_block(family):
    model = timm.create_model("halonet26t").eval()
    with torch.inference_mode(), overfocus.capture(model) as captured:
        model(family.images(256))
    first = captured.maps[0]
    assert (first.kind, first.windows, first.grid, first.key_grid) == ("window", 4, (8, 8), (12, 12))
    # keys: the 8×8 block and two more on every side, zeros outside of the 16×16 map
    padded = torch.nn.functional.pad(torch.arange(256).reshape(16, 16), (2, 2, 2, 2), value=-1)
    expected = [padded[row : row + 12, column : column + 12].flatten() for row in (0, 8) for column in (0, 8)]
    assert torch.equal(first.partition, torch.stack(expected))


@pytest.mark.parametrize("name", ["efficientvit_b0", "efficientvim_m1", "swiftformer_xs"])
def test_no_softmax_between_tokens(family, name):
    model = timm.create_model(name).eval()
    with torch.inference_mode(), overfocus.capture(model) as captured:
        model(family.images(64))
    assert captured.maps == ()
    assert captured.coverage
    assert all(site.reason for site in captured.coverage)
