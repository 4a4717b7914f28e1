"""Whole trainings of a tiny model: what they write, how they go on, what they say when something is wrong."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import overfocus
from overfocus.errors import ImageError, OverfocusError, TrainingError
from overfocus.training.data import _named
from overfocus.training.loop import Trainer
from overfocus.training.train import Training, train
from tests.training.stopping import StoppedError, same_weights, stop_at

Train = Callable[..., Training]


def test_result_goes_into_analyze_as_it_is(train_tiny: Train, shapes_folder: Path, tmp_path: Path) -> None:
    training = train_tiny(tap=3, changes={"adl": 1.0, "adl_threshold": 0.5})
    loaded = overfocus.load_model(training.checkpoint)
    assert (loaded.found_by, loaded.input_size, loaded.class_names) == ("metadata", (3, 16, 16), ["blue", "green", "red"])
    assert (loaded.missing_keys, loaded.unexpected_keys, loaded.notes) == ([], [], ())
    assert loaded.model.blocks[0].dilation_predictor.branches == 3
    run = overfocus.analyze(training.checkpoint, shapes_folder / "val", [], [], tmp_path / "run", workers=0, progress=False)
    assert run.predictions["correct"].notna().all()
    assert run.predictions["correct"].mean() == pytest.approx(training.log["validation_accuracy"].iloc[-1])

    log = training.log
    assert log["step"].tolist() == list(range(1, 9))
    assert log["loss"].notna().all()
    assert (log["adl"] > 0).any()
    assert log["validation_accuracy"].notna().tolist() == [False] * 3 + [True] + [False] * 3 + [True]
    assert (training.path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert training.info.status == "complete"
    assert training.info.settings.recipe["adl"] == 1.0


def test_training_learns(train_tiny: Train) -> None:
    training = train_tiny(changes={"epochs": 15, "mixup": 0, "auto_augment": None, "erasing": 0, "ema_decay": None})
    assert training.log["validation_accuracy"].iloc[-1] == 1.0


@pytest.mark.parametrize("save_every", [1, 3])
def test_a_continued_training_equals_the_uninterrupted_one(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, save_every: int
) -> None:
    options: dict[str, Any] = {"tap": 2, "changes": {"adl": "auto", "adl_threshold": 0.5, "accumulation": 2, "batch_size": 4}}
    whole = train_tiny("whole", **options)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(StoppedError):
            train_tiny("parts", save_every=save_every, **options)
    assert not (whole.path.with_name("parts") / "model.safetensors").exists()
    parts = train_tiny("parts", save_every=save_every, **options)
    assert same_weights(whole, parts)
    timing = ["images_per_second", "waiting"]
    assert parts.log.drop(columns=timing).equals(whole.log.drop(columns=timing))


def test_workers_change_nothing(train_tiny: Train) -> None:
    cv2.GaussianBlur(np.zeros((2000, 2000), np.float32), (31, 31), 5)  # OpenCV has threads from here on, which forks do not copy
    assert same_weights(train_tiny("none", changes={"epochs": 1}), train_tiny("two", changes={"epochs": 1}, workers=2))


def test_another_seed_is_another_training(train_tiny: Train) -> None:
    assert not same_weights(train_tiny("one", changes={"epochs": 1}), train_tiny("two", changes={"epochs": 1}, seed=1))


def test_a_finished_training_is_not_done_again(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_tiny(changes={"epochs": 1})
    before = first.checkpoint.stat().st_mtime_ns
    stop_at(monkeypatch, 0)
    assert train_tiny(changes={"epochs": 1}).checkpoint.stat().st_mtime_ns == before


def test_other_settings_do_not_continue_a_training(train_tiny: Train, tmp_path: Path) -> None:
    train_tiny(changes={"epochs": 1})
    with pytest.raises(TrainingError, match=re.escape("flip 0.5 there, 0.25 asked for); choose another output")):
        train_tiny(changes={"epochs": 1, "flip": 0.25})
    with pytest.raises(TrainingError, match="seed 0 there, 5 asked for"):
        train_tiny(changes={"epochs": 1}, seed=5)
    assert train_tiny(changes={"epochs": 1}, seed=5, overwrite=True).info.settings.seed == 5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(TrainingError, match=re.escape("holds other files (thesis.tex)")):
        train_tiny("mine")


def test_weights_to_start_from(train_tiny: Train) -> None:
    first = train_tiny("first", changes={"epochs": 1})
    still = {"epochs": 1, "learning_rate": 1e-12, "ema_decay": None, "warmup_epochs": 0, "minimum_rate": 0}
    second = train_tiny("second", changes=still, model=None, model_args={}, init=first.checkpoint, tap=2)
    before, after = (overfocus.load_model(training.checkpoint) for training in (first, second))
    assert after.model.blocks[0].dilation_predictor.branches == 2
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(before.model(images), after.model(images), atol=1e-4, rtol=1e-4)
    assert second.info.notes == [f"start from {first.checkpoint} (VisionTransformer); new: TAP"]
    with pytest.raises(TrainingError, match="whose weights do not fit the model to train"):
        train_tiny("third", init=first.checkpoint, model_args={**before_arguments(first), "depth": 3})


def before_arguments(training: Training) -> dict[str, Any]:
    arguments: dict[str, Any] = training.info.settings.architecture.arguments
    return {name: value for name, value in arguments.items() if name not in ("num_classes", "in_chans")}


def test_a_classifier_for_other_classes_starts_anew(train_tiny: Train, shapes_folder: Path, tmp_path: Path) -> None:
    first = train_tiny("first", changes={"epochs": 1})
    for name in ("red", "blue"):
        shutil.copytree(shapes_folder / "train" / name, tmp_path / "two" / name)
    second = train_tiny(
        "second", changes={"epochs": 1}, data=tmp_path / "two", model=None, model_args={}, init=first.checkpoint, image_size=32
    )
    loaded = overfocus.load_model(second.checkpoint)
    assert (loaded.class_names, loaded.input_size) == (["blue", "red"], (3, 32, 32))
    assert second.info.notes[0].endswith("new: head")
    assert second.log["validation_accuracy"].isna().all()


def test_models_of_timm_and_of_overfocus(train_tiny: Train) -> None:
    quick = {"epochs": 1, "batch_size": 4}
    for name, options in (("tap_rvt_tiny", {"tap": 2, "image_size": 32}), ("vit_tiny_patch16_224", {"image_size": 32, "tap": 3})):
        training = train_tiny(name, changes=quick, model=name, model_args={}, limit=4, **options)
        loaded = overfocus.load_model(training.checkpoint)
        assert (loaded.name, loaded.input_size, loaded.num_classes) == (name, (3, 32, 32), 3)
        assert loaded.missing_keys == loaded.unexpected_keys == []


def test_options_that_must_not_change_the_result(train_tiny: Train) -> None:
    plain = train_tiny("plain", changes={"epochs": 1, "adl": 1.0, "adl_threshold": 0.5})
    checkpointed = train_tiny("checkpointed", changes={"epochs": 1, "adl": 1.0, "adl_threshold": 0.5}, checkpointing=True)
    first, second = load_file(plain.checkpoint), load_file(checkpointed.checkpoint)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_loss_that_is_no_number_keeps_the_last_checkpoint(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from overfocus.training.objective import Classification

    original = Classification.loss
    calls = []

    def loss(objective: Classification, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return original(objective, logits, targets) * (float("nan") if len(calls) > 5 else 1)

    monkeypatch.setattr(Classification, "loss", loss)
    with pytest.raises(TrainingError, match="the loss became nan by step 6; the checkpoint of step 4 is kept; try"):
        train_tiny(name := "training")
    assert name
    monkeypatch.undo()
    training = train_tiny(name)
    assert training.log["step"].tolist() == list(range(1, 9))
    assert training.log["loss"].notna().all()


def test_a_loss_without_bounds_before_any_checkpoint(train_tiny: Train, tmp_path: Path) -> None:
    diverging = {"optimizer": "sgd", "learning_rate": 1e30, "warmup_epochs": 0, "ema_decay": None}
    with pytest.raises(TrainingError, match=r"the loss became (nan|inf) by step 2; there is no checkpoint yet"):
        train_tiny(changes=diverging)
    assert not (tmp_path / "training" / "checkpoint.pt").exists()


def test_weights_that_are_no_numbers_are_not_kept(train_tiny: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = Trainer._take_step

    def step(trainer: Trainer, batches: Any) -> float:
        waited = original(trainer, batches)
        if trainer.step == 2:
            next(trainer.bare.parameters()).data[0] = math.inf
        return waited

    monkeypatch.setattr(Trainer, "_take_step", step)
    with pytest.raises(TrainingError, match="the weights became inf by step 3; there is no checkpoint yet"):
        train_tiny(save_every=3)
    assert not (tmp_path / "training" / "checkpoint.pt").exists()


def test_a_validation_loss_that_is_no_number_is_told(train_tiny: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from overfocus.training.objective import Classification

    monkeypatch.setattr(Classification, "score", lambda *_: torch.tensor([math.nan, 1.0, 1.0]))
    with pytest.raises(TrainingError, match="the validation loss became nan by step 4; there is no checkpoint yet"):
        train_tiny()
    assert not (tmp_path / "training" / "model.safetensors").exists()


def test_killed_while_its_result_is_written_it_still_ends_whole(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("overfocus.training.session.write_curves", killed)
    with pytest.raises(KeyboardInterrupt):
        train_tiny()
    monkeypatch.undo()
    training = train_tiny()
    assert training.info.status == "complete"
    assert (training.path / "curves.png").is_file()
    assert training.log["step"].tolist() == list(range(1, 9))


def test_what_was_refused_before_a_checkpoint_does_not_stand_in_the_way(train_tiny: Train) -> None:
    with pytest.raises(TrainingError, match="adl_layers"):
        train_tiny(changes={"adl": 1.0, "adl_layers": [7]})
    training = train_tiny(changes={"adl": 1.0, "adl_layers": [1]})
    assert training.info.settings.recipe["adl_layers"] == [1]
    assert len(training.log) == 8


def test_a_result_whose_checkpoint_was_removed_is_kept(train_tiny: Train) -> None:
    training = train_tiny()
    before = training.checkpoint.read_bytes()
    (training.path / "checkpoint.pt").unlink()
    assert train_tiny().checkpoint.read_bytes() == before
    with pytest.raises(TrainingError, match="holds another training"):
        train_tiny(seed=3)


def test_validation_classes_in_another_order_or_number_are_told(tmp_path: Path) -> None:
    def named(*names: str) -> Any:
        return SimpleNamespace(class_names=list(names))

    trained, source = named("a", "b", "c"), tmp_path
    for held_out, words in (
        (named("b", "a", "c"), "classes differ from those trained (for instance 'b')"),
        (named("a", "c"), "has no images of 'b', which is trained"),
        (named("a", "d"), "classes differ from those trained (for instance 'd')"),
    ):
        with pytest.raises(ImageError, match=re.escape(words)):
            _named(trained, held_out, None, source=source)


def test_overwriting_does_not_continue_what_is_there(train_tiny: Train, tmp_path: Path) -> None:
    other = train_tiny("other", seed=5)
    (tmp_path / "training").mkdir()
    shutil.copy(other.path / "checkpoint.pt", tmp_path / "training")
    with pytest.raises(TrainingError, match=r"holds other files \(checkpoint\.pt\)"):
        train_tiny()
    assert len(train_tiny(overwrite=True).log) == 8


def test_a_line_for_each_epoch_says_how_long_it_takes(train_tiny: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_tiny(progress=True, validate_every=None)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert [line.endswith(" min left") for line in lines] == [True, False]


def test_a_corrupt_image_is_named(train_tiny: Train, shapes_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shapes_folder, tmp_path / "copy")
    broken = data / "train" / "red" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    for workers in (0, 1):
        with pytest.raises(ImageError, match=r"red/3\.png: expected a whole image"):
            train_tiny(data=data, workers=workers)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_out_of_memory(train_tiny: Train, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(Trainer, "_take_step", Mock(side_effect=error))
    with pytest.raises(TrainingError, match=r"out of memory.*; try a smaller batch_size than 8 with more accumulation") as caught:
        train_tiny()
    assert "\n" not in str(caught.value)


def test_other_errors_are_not_hidden(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_take_step", Mock(side_effect=RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        train_tiny()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": None, "model_args": {}}, "give --model NAME or --init CHECKPOINT"),
        ({"model": "vit_tiny_patch16_225", "model_args": {}}, "vit_tiny_patch16_224"),
        ({"model_args": {"deepness": 3}}, "VisionTransformer cannot be built with"),
        ({"tap": 0}, "tap must be at least 1 and at most 64, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"changes": {"epochs": 2, "iterations": 3}}, "expected either epochs or iterations, got both; leave one out"),
        ({"changes": {"learning_rate": math.inf}}, "learning_rate must be finite, got inf"),
        ({"limit": 5}, "5 images do not fill one step of 8 (batch_size 8 × 1); try --batch-size 4"),
        ({"limit": 3, "accumulation": 4}, r"(batch_size 8 × 4); try --batch-size 2 --accumulation 1"),
        ({"trackers": ["tensorbord"]}, "no tracker 'tensorbord'; accelerate has"),
        ({"device": "tpu"}, "device must be cpu or cuda, got 'tpu'"),
        ({"class_names": ["a"]}, "expected names for 3 classes, got 1"),
        ({"changes": {"precision": "float16"}}, "precision float16 needs a GPU"),
        ({"changes": {"auto_augment": "imaginary"}}, "timm cannot build the augmentation"),
        ({"changes": {"adl": 1, "adl_layers": [7]}}, "layers from 0 to 1, got 7"),
        ({"model": "resnet18", "model_args": {}, "tap": 2}, "resnet18 cannot be built"),
        ({"model_args": {"in_chans": 4}}, "in_chans must be 1 (grey) or 3 (RGB), got 4"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(train_tiny: Train, options: dict[str, Any], words: str) -> None:
    if not torch.cuda.is_available() or options.get("changes", {}).get("precision") != "float16":
        with pytest.raises(OverfocusError, match=re.escape(words)) as caught:
            train_tiny(**options)
        assert "\n" not in str(caught.value)


def test_damaged_checkpoint(train_tiny: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(StoppedError):
            train_tiny()
    state = tmp_path / "training" / "checkpoint.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: the checkpoint cannot be read .*--overwrite"):
        train_tiny()
    (tmp_path / "training" / "training.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(TrainingError, match="expected the description of a training"):
        train_tiny()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "accelerate" else object())
    with pytest.raises(TrainingError, match=re.escape('need accelerate; install them: pip install "overfocus[train]"')):
        train("data", model="VisionTransformer")


def test_processes_that_accelerate_does_not_start_are_told(train_tiny: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    line = "--cpu --num_processes 2 --mixed_precision no --dynamo_backend no program.py"
    asked = launch_command_parser().parse_args(line.split())
    asked.use_cpu, asked.num_machines, asked.num_cpu_threads_per_process = True, 1, 1
    for name, value in prepare_simple_launcher_cmd_env(asked)[1].items():
        monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match="accelerate launch --cpu starts one process"):
        train_tiny(changes={"epochs": 1})
