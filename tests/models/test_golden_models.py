"""Our models against the reference: the same state dict, logits and attention; checkpoints in the published layout load whole."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import overfocus
import overfocus.models
from overfocus.losses import AttentionDiversificationLoss

CLASSIFIERS = [
    "fan_tiny_12_p16_224-num_scales1",
    "rvt_tiny_plus-num_scales1",
    "tap_fan_tiny_12_p16_224-num_scales4",
    "tap_rvt_tiny_plus-num_scales4",
    pytest.param("fan_small_12_p4_hybrid-num_scales1", marks=pytest.mark.slow),
    pytest.param("tap_fan_small_12_p4_hybrid-num_scales4", marks=pytest.mark.slow),
    pytest.param("tap_rvt_small-num_scales3", marks=pytest.mark.slow),
]
SEGMENTATION = "tap_fan_small_12_p4_hybrid-segmentation"
GoldenFixture = Callable[[str], Any]


def shapes(model: torch.nn.Module) -> list[tuple[str, list[int]]]:
    return [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]


def test_every_golden_file_has_a_test(golden_names: list[str]) -> None:
    tested = {getattr(name, "values", (name,))[0] for name in CLASSIFIERS} | {SEGMENTATION}
    assert tested == set(golden_names)


@pytest.mark.parametrize("name", [getattr(name, "values", (name,))[0] for name in CLASSIFIERS])
def test_state_dict_of_classifiers(name: str, golden: GoldenFixture) -> None:
    manifest = golden(name).manifest
    with torch.device("meta"):
        model = timm.create_model(manifest["model"], **manifest["kwargs"])
    assert shapes(model) == list(manifest["state_dict"].items())
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["parameters"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_and_attention(name: str, golden: GoldenFixture, golden_images: Callable[..., torch.Tensor]) -> None:
    reference = golden(name)
    model = timm.create_model(reference.manifest["model"], **reference.manifest["kwargs"]).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    with torch.no_grad(), overfocus.capture(model) as captured:
        logits = model(golden_images(2, 3, 224, 224))
    torch.testing.assert_close(logits, reference.values["logits"], atol=2e-4, rtol=0)

    maps = [attention.weights for attention in captured.maps if attention.kind == "global"]
    assert len(maps) == (len(model.blocks) if "fan" in name else 12)
    received = [reference.values[key] for key in sorted(reference.values) if key.startswith("received_")]
    assert len(received) == (len(maps) if name.startswith("tap_") else 0)
    for ours, theirs in zip(maps, received, strict=False):
        torch.testing.assert_close(ours.mean(dim=(1, 2)), theirs, atol=1e-6, rtol=1e-3)
    if received:
        torch.testing.assert_close(maps[-1][0, 0], reference.values["last_attention_image0_head0"].float(), atol=3e-4, rtol=2e-3)
        torch.testing.assert_close(AttentionDiversificationLoss(2.0)(maps), reference.values["adl_tau2"], atol=1e-5, rtol=0)


def test_channel_gates_are_no_token_attention() -> None:
    model = timm.create_model("tap_fan_tiny_8_p4_hybrid").eval()
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(torch.randn(1, 3, 64, 64))
    assert [(attention.module, attention.kind) for attention in captured.maps] == [
        *((f"blocks.{block}.attn", "global") for block in range(8)),
        *((f"cls_attn_blocks.{block}.attn", "class") for block in range(2)),
    ]


def test_segmentation_backbone(golden: GoldenFixture, golden_images: Callable[..., torch.Tensor]) -> None:
    reference = golden(SEGMENTATION)
    backbone = timm.create_model("tap_fan_small_12_p4_hybrid_segformer", num_scales=4).backbone.eval()
    assert shapes(backbone) == list(reference.manifest["state_dict"].items())
    assert sum(parameter.numel() for parameter in backbone.parameters()) == reference.manifest["parameters"]
    backbone.load_state_dict(reference.state_dict(), strict=True)
    with torch.no_grad():
        levels = backbone(golden_images(1, 3, 256, 256))
    for index, level in enumerate(levels):
        assert list(level.shape) == reference.values[f"map_{index}_shape"].tolist()
        tolerance = 1e-3 * level.std().item()
        torch.testing.assert_close(
            level[0].mean(dim=0), reference.values[f"map_{index}_mean_over_channels"], atol=tolerance, rtol=0
        )
        if index >= 2:
            torch.testing.assert_close(level[0, :16], reference.values[f"map_{index}_first16"], atol=tolerance, rtol=0)


# Parameters and state-dict entries that the reference's own models have (1000 classes, K = 4).
SIZES = """
fan_tiny_12_p16_224 7319920 439            tap_fan_tiny_12_p16_224 7404688 523
fan_small_12_p16_224 28345336 439          tap_fan_small_12_p16_224 28513048 523
fan_base_18_p16_224 54350320 625           tap_fan_base_18_p16_224 54643360 751
fan_large_24_p16_224 80574100 811          tap_fan_large_24_p16_224 80992468 979
fan_tiny_8_p4_hybrid 7467240 355           tap_fan_tiny_8_p4_hybrid 7523752 411
fan_small_12_p4_hybrid 26117944 417        tap_fan_small_12_p4_hybrid 26257704 487
fan_base_16_p4_hybrid 50475048 603         tap_fan_base_16_p4_hybrid 50735528 715
fan_large_16_p4_hybrid 76855140 807        tap_fan_large_16_p4_hybrid 77238644 961
fan_swin_tiny_patch4_window7_224 29538940 340    tap_fan_swin_tiny_patch4_window7_224 29538940 340
fan_swin_small_patch4_window7_224 53064220 694   tap_fan_swin_small_patch4_window7_224 53064220 694
fan_swin_base_patch4_window7_224 93599448 694    tap_fan_swin_base_patch4_window7_224 93599448 694
fan_swin_large_patch4_window7_224 208941136 694  tap_fan_swin_large_patch4_window7_224 208941136 694
rvt_tiny 8646376 363                       tap_rvt_tiny 8744968 447
rvt_tiny_plus 10951336 373                 tap_rvt_tiny_plus 11049928 457
rvt_small 22148392 361                     tap_rvt_small 22316104 445
rvt_small_plus 23300872 366                tap_rvt_small_plus 23468584 450
rvt_base 86223784 157                      tap_rvt_base 87091912 445
rvt_base_plus 88528744 162                 tap_rvt_base_plus 89396872 450
""".split()


@pytest.mark.parametrize(("name", "parameters", "entries"), list(zip(SIZES[0::3], SIZES[1::3], SIZES[2::3], strict=True)))
def test_sizes_are_the_references(name: str, parameters: str, entries: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == int(parameters)
    assert len(model.state_dict()) == int(entries)


def test_the_extra_large_model_under_both_spellings() -> None:
    with torch.device("meta"):
        model = timm.create_model("fan_xlarge_16_p4_hybrid")
        with pytest.warns(UserWarning, match="fan_xlarge_16_p4_hybrid"):
            as_published = timm.create_model("fan_Xlarge_16_p4_hybrid")
    assert sum(parameter.numel() for parameter in model.parameters()) == 120_407_316
    assert shapes(model) == shapes(as_published)
    assert {"blocks.19.downsample.proj.weight", "blocks.19.downsample.norm.weight"} <= set(model.state_dict())


def test_segmentation_state_dict_has_the_layout_of_mmsegmentation() -> None:
    with torch.device("meta"):
        model = timm.create_model("tap_fan_base_16_p4_hybrid_segformer")
    entries = dict(shapes(model))
    assert sum(name.startswith("backbone.") for name in entries) == 711
    assert {name.removeprefix("decode_head."): shape for name, shape in entries.items() if not name.startswith("backbone.")} == {
        "conv_seg.weight": [19, 256, 1, 1],
        "conv_seg.bias": [19],
        "linear_c4.proj.weight": [768, 448],
        "linear_c4.proj.bias": [768],
        "linear_c3.proj.weight": [768, 448],
        "linear_c3.proj.bias": [768],
        "linear_c2.proj.weight": [768, 256],
        "linear_c2.proj.bias": [768],
        "linear_c1.proj.weight": [768, 128],
        "linear_c1.proj.bias": [768],
        "linear_fuse.conv.weight": [768, 3072, 1, 1],
        **{f"linear_fuse.bn.{name}": [768] for name in ("weight", "bias", "running_mean", "running_var")},
        "linear_fuse.bn.num_batches_tracked": [],
        "linear_pred.weight": [19, 768, 1, 1],
        "linear_pred.bias": [19],
    }


def saved(path: Path, name: str, layout: str) -> torch.nn.Module:
    """A model with random weights, saved as timm's trainer does (under DDP, with EMA) or as mmsegmentation does."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    checkpoint: dict[str, Any] = {
        "epoch": 309,
        "arch": name,
        "state_dict": state,
        "version": 2,
        "args": Namespace(model=name, num_scales=4),
    }
    if layout == "mmsegmentation":
        checkpoint = {"meta": {"CLASSES": [f"class {i}" for i in range(19)]}, "state_dict": model.state_dict()}
    torch.save(checkpoint, path)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "file", "size"),
    [
        ("tap_fan_base_16_p4_hybrid", "timm", "tapadl_fan_base.pth.tar", 224),
        ("tap_rvt_base_plus", "timm", "tapadl_rvt_base.pth.tar", 224),
        ("tap_fan_base_16_p4_hybrid_segformer", "mmsegmentation", "tapadl_fan_base_segmentation.pth", 128),
    ],
)
def test_published_checkpoints(name: str, layout: str, file: str, size: int, tmp_path: Path) -> None:
    model = saved(tmp_path / file, name, layout)
    loaded = overfocus.load_model(tmp_path / file)
    assert (loaded.name, loaded.missing_keys, loaded.unexpected_keys) == (name, [], [])
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), model(images))
