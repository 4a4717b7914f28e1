"""Architectures found by shapes: the right one, the canonical one of equals, none where attention would differ."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import overfocus.models  # noqa: F401  registers our models
from overfocus import CheckpointError, load_model
from overfocus.checkpoints.build import skeleton
from overfocus.checkpoints.index import look_up
from overfocus.checkpoints.metadata import Metadata
from overfocus.checkpoints.recognise import Request, recognise

State = dict[str, Tensor]


def outline(name: str, **arguments: object) -> State:
    """A state dict of the architecture without memory."""
    return skeleton(name, arguments).state_dict()


def found(state: State, path: str = "weights.pth"):
    return recognise(state, Metadata(), Request(), Path(path))


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
        "beit_base_patch16_384",
        "eva02_tiny_patch14_336",
        "cait_xxs24_224",
        "swin_tiny_patch4_window7_224",
        "swin_s3_tiny_224",
        "swin_base_patch4_window12_384",
        "xcit_nano_12_p8_224",
        "convit_tiny",
        "crossvit_9_240",
        "pvt_v2_b0",
        "twins_svt_small",
        "levit_128",
        "mobilevit_s",
        "maxvit_tiny_tf_384",
        "hiera_tiny_224",
        "mvitv2_tiny",
        "volo_d1_384",
        "davit_tiny",
        "vit_base_patch16_siglip_224",
        "vit_tiny_patch16_384",
        "iformer_t",
    ],
)
def test_own_shapes(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    assert found(outline(name)).name == name


OURS = [name for name in timm.list_models() if "overfocus" in timm.model_entrypoint(name).__module__]
EQUAL = {"tap_fan_swin": "fan_swin", "tap_vit": "tap_deit"}
"""The same layers and attention: the reference's TAP-FAN-Swin has no TAP, DeiT other preprocessing."""


@pytest.mark.parametrize("name", OURS)
def test_our_models_from_a_bare_state_dict(name: str) -> None:
    equal = next((name.replace(one, other) for one, other in EQUAL.items() if name.startswith(one)), name)
    assert found(outline(name)).name == equal


@pytest.mark.parametrize("classes", [0, 7, 21843])
def test_other_classifier(classes: int) -> None:
    assert found(outline("vit_small_patch14_dinov2", num_classes=classes)).name == "vit_small_patch14_dinov2"


@pytest.mark.parametrize("size", [98, 224, 1022])
def test_other_image_size(size: int) -> None:
    assert found(outline("vit_small_patch14_dinov2", img_size=size)).name == "vit_small_patch14_dinov2"


def test_grey_images() -> None:
    assert found(outline("xcit_nano_12_p16_224", in_chans=1)).name == "xcit_nano_12_p16_224"


def test_equal_in_all_but_preprocessing_takes_the_canonical_and_says_so() -> None:
    result = found(outline("vit_tiny_patch16_224"))
    assert result.name == "deit_tiny_patch16_224"  # ImageNet's mean and std, as in DeiT, DINO and MAE checkpoints
    assert result.found_by == "shapes"
    assert any("vit_tiny_patch16_224" in note and "preprocessing" in note for note in result.notes)


def test_the_file_name_decides_between_equals() -> None:
    assert found(outline("deit_tiny_patch16_224"), "vit_tiny_patch16_224-best.pth").name == "vit_tiny_patch16_224"


def test_position_table_tells_prefix_tokens() -> None:
    flexible = outline("flexivit_small", img_size=320)  # 400 rows: no row for the class token
    assert found(flexible).name == "flexivit_small"
    assert found(outline("vit_small_patch16_224", img_size=320)).name == "deit_small_patch16_224"


def test_heads_differ_so_none_is_picked() -> None:
    with pytest.raises(CheckpointError) as caught:
        found(outline("vit_base_patch16_gap_224"), "my_vit_base_patch16_gap_224.pth")
    text = str(caught.value)
    assert "vit_base_patch16_gap_224 (blocks.*.attn.num_heads 16)" in text
    assert "num_heads 12" in text
    assert "--model" in text
    assert "the file's name suggests vit_base_patch16_gap_224" in text


@pytest.mark.parametrize(
    ("name", "difference"),
    [("swinv2_tiny_window8_256", "window_size"), ("vit_base_patch16_clip_224", "QuickGELU"), ("nest_tiny", "padding")],
)
def test_windows_activations_and_padding_differ_so_none_is_picked(name: str, difference: str) -> None:
    with pytest.raises(CheckpointError, match=difference):
        found(outline(name))


def test_nearest_is_taken_only_on_request_and_it_is_said(write) -> None:
    state = timm.create_model("test_vit").state_dict()
    del state["norm.weight"]
    path = write(state | {"extra.bias": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"extra\.bias"):
        load_model(path, model="test_vit")
    loaded = load_model(path, model="test_vit", lenient=True)
    assert (loaded.name, loaded.lenient) == ("test_vit", True)
    assert "extra.bias" in loaded.notes[0]


def test_names_of_the_original_dinov2_with_registers() -> None:
    state = outline("vit_small_patch14_reg4_dinov2")
    state["register_tokens"] = state.pop("reg_token")
    assert found(state).name == "vit_small_patch14_reg4_dinov2"


def test_explicit_name_goes_before_metadata_and_shapes(write) -> None:
    state = timm.create_model("test_vit").state_dict()
    path = write({"arch": "resnet18", "state_dict": state})
    loaded = load_model(path, model="test_vit")
    assert (loaded.name, loaded.found_by) == ("test_vit", "asked for")


def test_architecture_that_timm_does_not_know_falls_back_to_shapes(write) -> None:
    path = write({"arch": "visiontransformer", "state_dict": timm.create_model("test_vit").state_dict()})
    loaded = load_model(path)
    assert (loaded.name, loaded.found_by) == ("test_vit", "shapes")
    assert any("visiontransformer" in note for note in loaded.notes)


def test_look_up_builds_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in outline("vit_small_patch14_dinov2").items()}
    nearly = {name: shape for name, shape in shapes.items() if not name.startswith("norm.")}
    look_up(nearly)  # the index is read once
    monkeypatch.setattr(timm, "create_model", None)
    for wanted in (shapes, nearly):
        assert look_up(wanted).candidates[0].name == "vit_small_patch14_dinov2"


def test_architecture_missing_from_the_installed_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    state = outline("vit_small_patch14_dinov2")
    monkeypatch.setattr(timm, "is_model", lambda _: False)
    with pytest.raises(CheckpointError, match="install timm"):
        found(state)
