"""A bare state dict of every family is recognised, and the model found computes exactly what the saved one computed."""

import pytest
import timm
import torch

import overfocus.models
from overfocus import load_model

QUICK = ["test_vit", "levit_128s", "tap_rvt_tiny", "fan_tiny_12_p16_224", "tap_deit_tiny_patch16_224", "tap_fan_tiny_8_p4_hybrid"]
FAMILIES = [
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
    "vit_small_patch16_dinov3",
    "vit_relpos_small_patch16_224",
    "vit_base_patch16_siglip_224",
    "cait_xxs24_224",
    "convit_tiny",
    "xcit_nano_12_p16_224",
    "crossvit_tiny_240",
    "swin_tiny_patch4_window7_224",
    "swin_s3_tiny_224",
    "maxvit_tiny_tf_224",
    "coatnet_0_rw_224",
    "tiny_vit_5m_224",
    "davit_tiny",
    "gcvit_xxtiny",
    "hiera_tiny_224",
    "mvitv2_tiny",
    "pvt_v2_b0",
    "twins_svt_small",
    "efficientformer_l1",
    "efficientvit_m0",
    "visformer_tiny",
    "volo_d1_224",
    "tnt_s_legacy_patch16_224",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "fastvit_sa12",
    "edgenext_xx_small",
    "nextvit_small",
    "caformer_s18",
    "coat_tiny",
    "pit_ti_224",
    "fan_swin_tiny_patch4_window7_224",
    "tap_rvt_base_plus",
    "tap_fan_small_12_p16_224",
    "rvt_tiny_plus",
]


def assert_round_trip(name: str, write, **arguments: object) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **arguments).eval()
    loaded = load_model(write(model.state_dict(), f"{name}.pth"))
    assert loaded.name == name
    assert loaded.found_by == "shapes"
    assert (loaded.missing_keys, loaded.unexpected_keys, loaded.num_classes) == ([], [], 7)
    images = torch.rand(1, *loaded.input_size)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", QUICK)
def test_family(name: str, write) -> None:
    assert_round_trip(name, write)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_more_families(name: str, write) -> None:
    assert_round_trip(name, write)


@pytest.mark.parametrize("branches", [1, 3, 5])
def test_branches_follow_the_checkpoint(branches: int, write) -> None:
    assert_round_trip("tap_rvt_tiny", write, num_scales=branches)


def test_image_size_of_position_aware_scaling(write) -> None:
    model = timm.create_model("rvt_tiny_plus", img_size=160, num_classes=7)
    loaded = load_model(write(model.state_dict()))
    assert (loaded.name, loaded.input_size) == ("rvt_tiny_plus", (3, 160, 160))


@pytest.mark.parametrize(("layers", "pooling"), [(None, "average"), ([1, 4], "average"), ([-1], "learned")])
@pytest.mark.parametrize("name", ["test_vit", "swin_s3_tiny_224"])
def test_tap_added_to_an_architecture_of_timm(name: str, layers: list[int] | None, pooling: str, write) -> None:
    torch.manual_seed(0)
    model = overfocus.models.add_tap(timm.create_model(name), branches=3, layers=layers, pooling=pooling).eval()
    loaded = load_model(write(model.state_dict()))
    assert (loaded.name, loaded.missing_keys, loaded.unexpected_keys) == (name, [], [])
    assert any("TAP added" in note and "3 branches" in note for note in loaded.notes)
    images = torch.rand(1, *loaded.input_size)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=0)
