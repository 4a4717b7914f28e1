"""Whole trainings of tiny segmentation models: what they learn and write, how they start and go on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import overfocus
from overfocus.training.train import Training
from tests.training.conftest import SEGMENTER, write_squares
from tests.training.stopping import StoppedError, same_weights, stop_at

Train = Callable[..., Training]
NAMES = ["background", "green", "blue"]


def test_training_learns_and_its_result_is_loaded_and_evaluated(train_masks: Train, squares: Path, tmp_path: Path) -> None:
    changes = {"epochs": 5, "adl": 1.0, "adl_threshold": 0.5, "resize_scale": [0.9, 1.1], "ema_decay": 0.5}
    training = train_masks(tap=3, changes=changes)
    log = training.log
    assert log["step"].tolist() == list(range(1, 16))
    assert log["loss"].iloc[-3:].mean() < 0.5 * log["loss"].iloc[0]
    assert (log["adl"] > 0).all()
    # all background would be 0.25, and chance less
    assert log["validation_miou"].iloc[-1] > 0.5
    assert log["validation_miou"].notna().tolist() == [step % 3 == 0 for step in range(1, 16)]
    assert (training.path / "curves.png").read_bytes().startswith(b"\x89PNG")

    loaded = overfocus.load_model(training.checkpoint)
    assert (loaded.name, loaded.found_by, loaded.input_size) == ("VisionTransformer_segformer", "metadata", (3, 32, 32))
    assert (loaded.class_names, loaded.class_colours) == (NAMES, [[64, 64, 64], [230, 159, 0], [86, 180, 233]])
    assert (loaded.missing_keys, loaded.unexpected_keys, loaded.notes) == ([], [], ())
    assert loaded.model.backbone.model.blocks[0].dilation_predictor.branches == 3
    with safe_open(training.checkpoint, "pt") as file:
        assert float(file.metadata()["validation_miou"]) == pytest.approx(log["validation_miou"].iloc[-1], abs=1e-5)

    (evaluation,) = overfocus.evaluate(training.checkpoint, squares, tmp_path / "run", workers=0, device="cpu", progress=False)
    clean = evaluation.table.query("corruption == 'clean'").iloc[0]
    assert clean["miou"] == pytest.approx(log["validation_miou"].iloc[-1], abs=1e-6)
    assert clean["pixel_accuracy"] == pytest.approx(log["validation_accuracy"].iloc[-1], abs=1e-6)


@pytest.mark.parametrize("save_every", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_continued_training_equals_the_uninterrupted_one(
    train_masks: Train, monkeypatch: pytest.MonkeyPatch, save_every: int
) -> None:
    changes = {"adl": "auto", "adl_threshold": 0.5, "accumulation": 2, "batch_size": 3, "ema_decay": 0.9, "iterations": 8}
    options: dict[str, Any] = {"tap": 2, "changes": changes | {"epochs": None}}
    whole = train_masks("whole", **options)
    assert whole.log["step"].iloc[-1] == 8  # in the middle of the third epoch
    assert whole.log["validation_miou"].notna().iloc[-1]
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(StoppedError):
            train_masks("parts", save_every=save_every, **options)
    parts = train_masks("parts", save_every=save_every, **options)
    assert same_weights(whole, parts)
    timing = ["images_per_second", "waiting"]
    assert parts.log.drop(columns=timing).equals(whole.log.drop(columns=timing))


@pytest.mark.slow
def test_workers_change_nothing(train_masks: Train) -> None:
    assert same_weights(train_masks("none"), train_masks("two", workers=2))


def test_images_of_several_sizes_are_validated_together(train_masks: Train, squares: Path, tmp_path: Path) -> None:
    data = shutil.copytree(squares, tmp_path / "data")
    larger = write_squares(tmp_path / "larger", {"val": 2}, (70, 90))
    for kind in ("images", "masks"):
        for number in range(2):
            shutil.copy(larger / kind / "val" / f"{number}.png", data / kind / "val" / f"2{number}.png")
    assert train_masks(data=data).log["validation_miou"].notna().iloc[-1]


STILL = {"learning_rate": 1e-12, "warmup_rate": 0, "minimum_rate": 0, "head_rate": 1e9}


def test_a_classifier_starts_the_backbone(train_masks: Train, shapes_folder: Path) -> None:
    first = train_masks("first", {"batch_size": 8}, task="classification", data=shapes_folder, recipe="small", tap=2)
    second = train_masks("second", STILL, model=None, model_args={}, init=first.checkpoint)
    (note,) = second.info.notes
    assert note.endswith("(VisionTransformer); new: decode_head")
    before, after = load_file(first.checkpoint), load_file(second.checkpoint)
    kept = [name for name in before if not name.startswith("head.") and "running" not in name and "num_batches" not in name]
    assert any("dilation_predictor" in name for name in kept)
    for name in kept:
        torch.testing.assert_close(after[f"backbone.model.{name}"], before[name], atol=1e-6, rtol=0)
    loaded = overfocus.load_model(second.checkpoint)
    assert (loaded.name, loaded.input_size) == ("VisionTransformer_segformer", (3, 32, 32))


@pytest.mark.slow
def test_a_segmentation_model_starts_another(train_masks: Train, squares: Path, tmp_path: Path) -> None:
    first = train_masks("first")
    same = train_masks("same", STILL | {"head_rate": 1}, model=None, model_args={}, init=first.checkpoint)
    assert same.info.notes[0].endswith("(VisionTransformer_segformer)")
    before, after = load_file(first.checkpoint), load_file(same.checkpoint)
    weights = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in weights)
    data = shutil.copytree(squares, tmp_path / "data")
    (data / "classes.txt").write_text("sky\ngrass\nwater\nsand\n")
    other = train_masks("other", STILL | {"head_rate": 1}, data=data, model=None, model_args={}, init=first.checkpoint, tap=2)
    assert other.info.notes[0].endswith("; new: TAP, decode_head")
    loaded = overfocus.load_model(other.checkpoint)
    assert (loaded.num_classes, loaded.class_names) == (4, ["sky", "grass", "water", "sand"])
    after = load_file(other.checkpoint)
    assert torch.allclose(before["decode_head.linear_fuse.conv.weight"], after["decode_head.linear_fuse.conv.weight"], atol=1e-6)


def test_grey_images_and_classes_without_names(train_masks: Train, squares: Path, tmp_path: Path) -> None:
    data = shutil.copytree(squares, tmp_path / "data")
    (data / "classes.txt").unlink()
    training = train_masks(data=data, model_args=SEGMENTER | {"in_chans": 1})
    loaded = overfocus.load_model(training.checkpoint)
    assert (loaded.input_size, loaded.class_names) == ((1, 32, 32), ["0", "1", "2"])
    named = train_masks("named", data=data, class_names=["x", "y", "z"], validation=data)
    assert overfocus.load_model(named.checkpoint).class_names == ["x", "y", "z"]


def test_cityscapes_keeps_its_names_and_colours(train_masks: Train, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split, city, count in (("train", "aachen", 6), ("val", "munster", 2)):
        for number in range(count):
            stem = f"{city}_{number:06}_000019"
            for kind, ending, content in (
                ("leftImg8bit", "leftImg8bit", random.integers(0, 256, (32, 64, 3))),
                ("gtFine", "gtFine_labelIds", random.integers(0, 34, (32, 64))),
            ):
                (tmp_path / "data" / kind / split / city).mkdir(parents=True, exist_ok=True)
                path = tmp_path / "data" / kind / split / city / f"{stem}_{ending}.png"
                Image.fromarray(content.astype(np.uint8)).save(path)
    training = train_masks(data=tmp_path / "data")
    loaded = overfocus.load_model(training.checkpoint)
    assert loaded.num_classes == 19
    assert loaded.class_names is not None
    assert loaded.class_colours is not None
    assert (loaded.class_names[13], loaded.class_colours[13]) == ("car", [0, 0, 142])
    assert training.log["validation_miou"].iloc[-1] < 0.2  # labels are noise


@pytest.mark.slow
def test_backbones_of_timm(train_masks: Train) -> None:
    for name in ("pvt_v2_b0", "swin_tiny_patch4_window7_224"):
        arguments = {"depths": [1, 1, 1, 1], "img_size": 32} if name.startswith("swin") else {}
        training = train_masks(name, {"batch_size": 2}, model=name, model_args=arguments, image_size=32, limit=2)
        loaded = overfocus.load_model(training.checkpoint)
        assert (loaded.name, loaded.input_size, loaded.num_classes) == (f"{name}_segformer", (3, 32, 32), 3)
        assert loaded.missing_keys == loaded.unexpected_keys == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tap_fan_tiny_8_p4_hybrid", "tap_fan_tiny_8_p4_hybrid_segformer"])
def test_the_papers_backbone_at_one_image(train_masks: Train, name: str) -> None:
    classifier = overfocus.load_model("tap_fan_tiny_8_p4_hybrid", pretrained=False, num_classes=5).model
    torch.manual_seed(1)
    path = train_masks("folder", {"batch_size": 2}, limit=2).path.parent / "tap_fan_tiny_8_p4_hybrid.pth"
    averaged = {key: tensor + 1 for key, tensor in classifier.state_dict().items()}
    torch.save({"state_dict": classifier.state_dict(), "state_dict_ema": averaged, "arch": "tap_fan_tiny_8_p4_hybrid"}, path)
    for init_ema, expected in ((True, averaged), (False, classifier.state_dict())):
        changes = STILL | {"batch_size": 1, "adl": 1.0, "adl_threshold": 0.5, "init_ema": init_ema}
        training = train_masks(
            f"{name}-{init_ema}",
            changes,
            model=name,
            model_args={},
            image_size=64,
            limit=2,
            tap=4,
            init=path,
            recipe="segmentation",
        )
        assert training.info.notes[0].endswith("new: decode_head")
        assert (training.log["adl"] > 0).all()
        loaded = overfocus.load_model(training.checkpoint)
        assert (loaded.name, loaded.input_size) == ("tap_fan_tiny_8_p4_hybrid_segformer", (3, 64, 64))
        weight = loaded.model.state_dict()["backbone.blocks.0.attn.q.weight"]
        torch.testing.assert_close(weight, expected["blocks.0.attn.q.weight"], atol=1e-6, rtol=0)
