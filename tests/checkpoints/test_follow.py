"""Image size, classes, channels, preprocessing and names follow the checkpoint."""

import argparse

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from overfocus import CheckpointError, load_model


@pytest.mark.parametrize("size", [96, 160, 208])
def test_image_size_of_the_position_table(size: int, write) -> None:
    model = timm.create_model("test_vit", img_size=size).eval()
    loaded = load_model(write(model.state_dict()))
    assert loaded.input_size == (3, size, size)
    assert not any("resampled" in note for note in loaded.notes)
    images = torch.rand(1, 3, size, size)
    torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=0)


@pytest.mark.parametrize("size", [224, (96, 192)])
def test_position_table_is_resampled_as_timm_does(size, write, state) -> None:
    loaded = load_model(write(state), image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    assert loaded.input_size == (3, height, width)
    expected = resample_abs_pos_embed(state["pos_embed"], [height // 16, width // 16], num_prefix_tokens=1)
    torch.testing.assert_close(loaded.model.state_dict()["pos_embed"], expected, rtol=0, atol=0)
    assert any("position tables resampled: pos_embed (1, 101, 64)" in note for note in loaded.notes)
    assert loaded.model(torch.rand(1, 3, height, width)).shape == (1, 1000)


def test_relative_tables_of_beit(write) -> None:
    model = (
        timm.create_model("test_beit")
        if timm.is_model("test_beit")
        else timm.create_model("beit_base_patch16_224", img_size=96, depth=2)
    )
    path = write(
        {"arch": "beit_base_patch16_224", "args": argparse.Namespace(model_kwargs={"depth": 2}), "state_dict": model.state_dict()}
    )
    assert load_model(path).input_size == (3, 96, 96)


def test_windows_of_swin(write) -> None:
    model = (
        timm.create_model("test_swin")
        if timm.is_model("test_swin")
        else timm.create_model("swin_tiny_patch4_window7_224", window_size=8, img_size=256)
    )
    path = write(model.state_dict())
    loaded = load_model(path, model="swin_tiny_patch4_window7_224")
    assert loaded.input_size == (3, 256, 256)
    assert loaded.model.layers[0].blocks[0].window_size == (8, 8)
    assert not any("resampled" in note for note in loaded.notes)


@pytest.mark.parametrize("classes", [0, 1, 10])
def test_number_of_classes(classes: int, write) -> None:
    loaded = load_model(write(timm.create_model("test_vit", num_classes=classes).state_dict()))
    assert loaded.num_classes == classes
    assert loaded.missing_keys == []
    assert loaded.class_names is None


def test_new_classifier_on_request(write, state) -> None:
    loaded = load_model(write(state), num_classes=5)
    assert loaded.num_classes == 5
    assert loaded.missing_keys == ["head.weight", "head.bias"]
    assert 0 < loaded.model.head.weight.std() < 0.1  # what is not loaded is initialised
    assert (loaded.model.head.bias == 0).all()
    assert load_model(write(state), num_classes=0).model(torch.rand(1, 3, 160, 160)).shape == (1, 64)


def test_imagenet_names_for_a_thousand_classes(write, state) -> None:
    names = load_model(write(state)).class_names
    assert names is not None
    assert len(names) == 1000
    assert names[:2] == ["tench, Tinca tinca", "goldfish, Carassius auratus"]


@pytest.mark.parametrize(
    "extra",
    [
        {"class_names": ["cat", "dog"]},
        {"classes": ("cat", "dog")},
        {"class_to_idx": {"dog": 1, "cat": 0}},
        {"meta": {"CLASSES": ("cat", "dog")}},
        {"class_names": {1: "dog", 0: "cat"}},
        {"args": {"class_names": ["cat", "dog"]}},
    ],
)
def test_class_names_of_the_checkpoint(extra, write) -> None:
    state = timm.create_model("test_vit", num_classes=2).state_dict()
    assert load_model(write({"state_dict": state, **extra})).class_names == ["cat", "dog"]


def test_class_names_that_do_not_count_up_are_not_used(write) -> None:
    state = timm.create_model("test_vit", num_classes=3).state_dict()
    assert load_model(write({"state_dict": state, "class_names": ["cat", "dog"]})).class_names is None


@pytest.mark.parametrize(
    "index", [{"cat": 1, "dog": 2}, {"cat": 0, "dog": "1"}, {"cat": 0, "dog": None}, {"cat": 0, "dog": 10**600}], ids=range(4)
)
def test_an_index_that_does_not_count_the_outputs_is_not_used(index, write) -> None:
    state = timm.create_model("test_vit", num_classes=2).state_dict()
    assert load_model(write({"state_dict": state, "class_to_idx": index})).class_names is None


def test_grey_model(write) -> None:
    model = timm.create_model("test_vit", in_chans=1, num_classes=10).eval()
    loaded = load_model(write(model.state_dict()))
    assert loaded.input_size == (1, 160, 160)
    assert len(loaded.mean) == len(loaded.std) == 1


def test_other_channels_are_refused(write) -> None:
    with pytest.raises(CheckpointError, match="4 input channels"):
        load_model(write(timm.create_model("test_vit", in_chans=4).state_dict()))


def test_preprocessing_of_the_trainer(write, state) -> None:
    args = argparse.Namespace(model="test_vit", mean=[0.1, 0.2, 0.3], std=[0.5], crop_pct=0.5, interpolation="bilinear")
    loaded = load_model(write({"state_dict": state, "args": args}))
    assert (loaded.mean, loaded.std, loaded.crop_pct, loaded.interpolation) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), 0.5, "bilinear")
    assert not any("assumed" in note for note in loaded.notes)


@pytest.mark.parametrize("said", [{"mean": 0.0}, {"std": 0.02}, {"mean": 0.0, "std": 0.02}])
def test_constants_of_something_else_are_not_those_of_images(said, write, state) -> None:
    assert load_model(write({"state_dict": state, "arch": "test_vit", "args": said})).mean == (0.5, 0.5, 0.5)


def test_unknown_preprocessing_is_said(write, state) -> None:
    loaded = load_model(write(state))
    config = timm.get_pretrained_cfg("test_vit")
    assert (loaded.mean, loaded.std, loaded.crop_pct) == (config.mean, config.std, config.crop_pct)
    assert any("preprocessing assumed" in note for note in loaded.notes)


def test_arguments_of_the_trainer(write) -> None:
    model = timm.create_model("test_vit", depth=2, num_classes=4)
    args = argparse.Namespace(model="test_vit", model_kwargs={"depth": 2})
    loaded = load_model(write({"state_dict": model.state_dict(), "args": args}))
    assert len(loaded.model.blocks) == 2


def test_model_is_ready(write, state) -> None:
    loaded = load_model(write(state), device="cpu")
    assert not loaded.model.training
    assert loaded.parameters == sum(parameter.numel() for parameter in loaded.model.parameters())
    assert loaded.parameters > 300_000
