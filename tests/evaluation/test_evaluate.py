"""Whole evaluations of a tiny classifier."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import overfocus
from overfocus.checkpoints.metadata import save_checkpoint
from overfocus.errors import OverfocusError, RunError
from overfocus.evaluation.evaluate import evaluate, run_folders
from overfocus.preprocessing import Preprocess
from overfocus.sweep.sweep import Subject
from overfocus_cli.main import app

ARGUMENTS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
"""Of the classifier in `checkpoint`."""
QUICK: dict[str, Any] = {
    "corruptions": ["fog", "gaussian_noise"],
    "severities": [1, 4],
    "constants": "imagenet-c",
    "workers": 0,
    "batch_size": 12,
    "device": "cpu",
}
SEES = 70
"""Seed of a classifier that tells the colours apart better than chance and loses that under fog and under noise."""
COMPARED = ["image", "name", "label", "corruption", "severity", "predicted", "correct", "confidence", "negative_log_likelihood"]


def test_predictions_are_those_of_the_model(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    (evaluation,) = evaluate(checkpoint, images, tmp_path / "run", **QUICK)
    run = evaluation.run
    assert run.complete
    assert run.table.empty
    assert "gini" in run.table.columns
    assert len(run.predictions) == 12 * 5
    loaded = overfocus.load_model(checkpoint)
    for row in run.predictions.sample(10, random_state=0).to_dict("records"):
        pixels = loaded.preprocess.resize(Image.open(images / row["name"]))
        if row["severity"]:
            pixels = overfocus.corrupt(pixels, row["corruption"], row["severity"], constants="imagenet-c")
        with torch.no_grad():
            shares = loaded.model(loaded.preprocess.normalize(pixels)[None]).softmax(-1)[0]
        assert row["predicted"] == int(shares.argmax())
        assert row["predicted_name"] == loaded.class_names[row["predicted"]]
        assert row["confidence"] == pytest.approx(float(shares.max()), abs=1e-5)
        assert row["correct"] == (row["predicted_name"] == row["label"])
        assert row["negative_log_likelihood"] == pytest.approx(
            -float(shares[loaded.class_names.index(row["label"])].log()), abs=1e-4
        )
    clean = run.predictions[run.predictions["severity"] == 0]
    assert evaluation.summary["clean"]["top1"] == pytest.approx(clean["correct"].mean())
    assert evaluation.summary["mce"]["mce"] is None
    assert evaluation.summary["data"]["corruptions"] == "on-the-fly"
    written = pd.read_csv(tmp_path / "run" / "evaluation.csv")
    pd.testing.assert_frame_equal(written, evaluation.table, check_dtype=False)


def test_agreement_is_with_the_clean_image(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    (evaluation,) = evaluate(checkpoint, images, tmp_path / "run", **QUICK)
    predictions = evaluation.run.predictions
    clean = predictions[predictions["severity"] == 0].set_index("image")["predicted"]
    corrupted = predictions[predictions["severity"] > 0]
    expected = (corrupted["predicted"] == corrupted["image"].map(clean)).astype(float)
    assert corrupted["agreement"].tolist() == expected.tolist()


@pytest.fixture
def tree(images: Path, tmp_path: Path) -> Path:
    """The images as `QUICK` corrupts them."""
    for path in images.glob("*/*.png"):
        for name in QUICK["corruptions"]:
            for severity in QUICK["severities"]:
                target = tmp_path / "tree" / name / str(severity) / path.relative_to(images)
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(overfocus.corrupt(np.asarray(Image.open(path)), name, severity, constants="imagenet-c")).save(
                    target
                )
    return tmp_path / "tree"


def test_a_tree_gives_what_the_same_corruptions_on_the_fly_give(
    checkpoint: Path, images: Path, tree: Path, tmp_path: Path
) -> None:
    (fly,) = evaluate(checkpoint, images, tmp_path / "fly", **QUICK)
    (disk,) = evaluate(checkpoint, tree, tmp_path / "disk", workers=0, device="cpu")
    assert disk.summary["data"]["corruptions"] == "tree of corruptions"
    assert len(disk.run.images) == 12
    keys = ["corruption", "severity", "name"]
    first, second = (
        entry.run.predictions.query("severity > 0").sort_values(keys)[COMPARED].reset_index(drop=True) for entry in (fly, disk)
    )
    pd.testing.assert_frame_equal(first, second, check_exact=False, atol=1e-6)
    (part,) = evaluate(checkpoint, tree, tmp_path / "part", corruptions="fog", severities=4, workers=0, device="cpu")
    assert part.table[["corruption", "severity"]].to_numpy().tolist() == [["fog", 4]]


def test_a_tree_with_its_clean_images_has_the_relative_mce_of_on_the_fly(
    checkpoint: Path, write_checkpoint: Callable[..., Path], images: Path, tree: Path, tmp_path: Path
) -> None:
    both = [write_checkpoint("other", SEES), checkpoint]
    plain: dict[str, Any] = {"workers": 0, "device": "cpu"}
    fly = evaluate(both, images, tmp_path / "fly", **QUICK)[1].summary
    disk = evaluate(both, tree, tmp_path / "disk", clean=images, **plain)[1].summary
    without = evaluate(both, tree, tmp_path / "without", **plain)[1].summary
    assert fly["mce"]["relative_mce"] is not None
    for name in ("mce", "relative_mce"):
        assert disk["mce"][name] == pytest.approx(fly["mce"][name])
    assert disk["clean"] == pytest.approx(fly["clean"])
    assert (disk["data"]["clean"], disk["data"]["images"]) == (str(images), 12)
    assert without["mce"]["mce"] == pytest.approx(fly["mce"]["mce"])
    assert (without["clean"], without["mce"]["relative_mce"]) == (None, None)
    assert without["mce"]["relative_note"].startswith("no relative mCE: no clean images were measured")
    (late,) = evaluate(checkpoint, tree, tmp_path / "late", clean=images, baseline=tmp_path / "without" / "other", **plain)
    assert "other was measured without clean images" in late.summary["mce"]["relative_note"]


def cropping(checkpoint: Path, tmp_path: Path) -> tuple[Path, Preprocess]:
    """The same classifier, evaluated with a crop of three quarters."""
    loaded = overfocus.load_model(checkpoint)
    preprocess = Preprocess((3, 32, 32), crop_pct=0.75)
    path = tmp_path / "cropping.safetensors"
    save_checkpoint(
        loaded.model,
        path,
        architecture="VisionTransformer",
        model_args=ARGUMENTS | {"num_classes": 3},
        class_names=loaded.class_names,
        preprocess=preprocess,
    )
    return path, preprocess


@pytest.mark.parametrize("geometry", ["as-is", "model"])
def test_images_of_a_tree_are_not_cropped_again_and_clean_ones_are(
    checkpoint: Path, images: Path, tree: Path, tmp_path: Path, geometry: str
) -> None:
    path, preprocess = cropping(checkpoint, tmp_path)
    options = {"tree_geometry": geometry, "clean": images, "workers": 0, "device": "cpu", "baseline": path}
    (run,) = evaluate(path, tree, tmp_path / "run", **options)
    model = overfocus.load_model(path).model
    rows = run.run.predictions
    for row in rows[rows["name"] == "red/1.png"].to_dict("records"):
        folder = tree / row["corruption"] / str(row["severity"]) if row["severity"] else images
        image = Image.open(folder / row["name"])
        again = geometry == "model" or not row["severity"]
        pixels = preprocess.resize(image) if again else np.asarray(image)
        with torch.no_grad():
            confidence = model(preprocess.normalize(pixels)[None]).softmax(-1).max()
        assert row["confidence"] == pytest.approx(float(confidence), abs=1e-5)
    assert run.run.description.settings.tree_geometry == geometry
    assert run.run.description.pixels.crop_pct == (1.0 if geometry == "as-is" else 0.75)


def test_a_tree_of_another_size_is_resized_and_said_so(checkpoint: Path, tree: Path, tmp_path: Path) -> None:
    for path in tree.glob("*/*/*/*.png"):
        Image.open(path).resize((40, 40)).save(path)
    (run,) = evaluate(checkpoint, tree, tmp_path / "run", workers=0, device="cpu")
    assert "images of the tree are 40×40, resized to 32×32" in run.summary["notes"]


def test_tree_geometry_is_for_trees(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="tree_geometry is for images of a classifier that are corrupted on the disk"):
        evaluate(checkpoint, images, tmp_path / "run", **QUICK, tree_geometry="model")
    with pytest.raises(OverfocusError, match="tree_geometry must be as-is or model, got 'own'"):
        evaluate(checkpoint, images, tmp_path / "run", **QUICK, tree_geometry="own")


def test_approximations_are_noted(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    options = QUICK | {"corruptions": ["snow", "fog", "motion_blur"], "severities": 1, "limit": 2}
    (run,) = evaluate(checkpoint, images, tmp_path / "run", **options)
    assert "snow and motion blur approximate the benchmark: its constants, another algorithm" in run.summary["notes"]


def test_a_continued_evaluation_ends_with_the_same_table(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overfocus.sweep.recorder.SECONDS_PER_PART", 0.0)
    (whole,) = evaluate(checkpoint, images, tmp_path / "whole", **QUICK)
    original = Subject.measure
    calls: list[int] = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Subject, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(checkpoint, images, tmp_path / "parts", **QUICK)
    there = overfocus.Run(tmp_path / "parts").description
    assert 0 < there.done < len(there.images)
    (parts,) = evaluate(checkpoint, images, tmp_path / "parts", **QUICK)
    pd.testing.assert_frame_equal(whole.run.predictions, parts.run.predictions)
    monkeypatch.setattr(Subject, "measure", interrupted)
    calls[:] = [1] * 3
    assert evaluate(checkpoint, images, tmp_path / "parts", **QUICK)[0].run.complete


def test_the_first_of_several_is_the_baseline(
    checkpoint: Path, write_checkpoint: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    other = write_checkpoint("other", seed=1)
    first, second = evaluate([checkpoint, other], images, tmp_path / "both", **QUICK)
    assert (first.path.name, second.path.name) == ("tiny", "other")
    assert first.summary["mce"]["mce"] == pytest.approx(100)
    errors = [1 - entry.table[entry.table["severity"] > 0].groupby("corruption")["top1"].sum() / 2 for entry in (first, second)]
    expected = (100 * errors[1] / errors[0]).mean()
    assert second.summary["mce"]["mce"] == pytest.approx(expected)
    assert "relative to the baseline tiny, not to AlexNet" in second.summary["mce"]["note"]
    (again,) = evaluate(other, images, tmp_path / "alone", baseline=first.path, **QUICK)
    assert again.summary["mce"]["mce"] == pytest.approx(expected)
    (more,) = evaluate(other, images, tmp_path / "more", baseline=first.path, **(QUICK | {"severities": [1, 2, 4]}))
    assert more.summary["mce"]["mce"] == pytest.approx(expected)
    assert "severities 1, 4, on-the-fly" in more.summary["mce"]["note"]
    assert "left out, as the baseline tiny was not measured there: gaussian noise (2), fog (2)" in more.summary["mce"]["note"]


def test_baselines_that_nothing_can_be_relative_to(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    (first,) = evaluate(checkpoint, images, tmp_path / "first", **(QUICK | {"severities": 1}))
    (clean,) = evaluate(checkpoint, images, tmp_path / "clean", workers=0, device="cpu")
    for baseline, options, words in (
        (first, {"seed": 1}, "the baseline was evaluated with seed 0, expected 1; evaluate it alike"),
        (clean, {}, "the baseline was evaluated with corruptions 'none', expected 'on-the-fly'; evaluate it alike"),
        (
            first,
            {"severities": 4},
            "evaluated under fog (1), gaussian noise (1) alone, expected some of fog (4), gaussian noise (4); evaluate it under",
        ),
    ):
        with pytest.raises(RunError, match=re.escape(words)):
            evaluate(checkpoint, images, tmp_path / "run", baseline=baseline.path, **(QUICK | options))
    shutil.copytree(images / "red", tmp_path / "others" / "red")
    shutil.copytree(images / "blue", tmp_path / "others" / "blue")
    with pytest.raises(RunError, match="the baseline was evaluated on other images"):
        evaluate(checkpoint, tmp_path / "others", tmp_path / "run", baseline=first.path, **QUICK)
    run = first.path / "run.json"
    run.write_text(run.read_text().replace('"status": "complete"', '"status": "running"'))
    with pytest.raises(RunError, match="expected a finished evaluation as the baseline, got an interrupted one"):
        evaluate(checkpoint, images, tmp_path / "run", baseline=first.path, **QUICK)
    assert not (tmp_path / "run").exists()


def test_checkpoints_of_one_name_have_folders_of_their_own() -> None:
    folders = run_folders(Path("o"), ["x/m.pth", "x/m-3.pth", "y/m.pth"])
    assert folders == [Path("o/0_m"), Path("o/1_m-3"), Path("o/2_m")]
    assert run_folders(Path("o"), ["x/m.pth", "x/n.pth"]) == [Path("o/m"), Path("o/n")]
    assert run_folders(Path("o"), ["x/m.pth"]) == [Path("o")]


def test_classes_of_imagenet_a_are_the_only_ones_that_count(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "imagenet-a"
    for name in ("n01498041", "n01531178"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), "white").save(folder / name / "0.png")
    info = importlib.import_module("timm.data.imagenet_info").ImageNetInfo("imagenet-1k")
    path = write_checkpoint("thousand", class_names=info.label_descriptions())
    (evaluation,) = evaluate(path, folder, tmp_path / "run", workers=0, device="cpu")
    logits = _logits(path, folder / "n01498041" / "0.png")
    allowed = [index for index, name in enumerate(info.label_names()) if name in _synsets("a")]
    assert len(allowed) == 200
    expected = allowed[int(logits[allowed].argmax())]
    assert set(evaluation.run.predictions["predicted"]) == {expected}
    assert "predictions are restricted to its 200 classes" in evaluation.summary["notes"][-1]


def _logits(checkpoint: Path, image: Path) -> torch.Tensor:
    loaded = overfocus.load_model(checkpoint)
    with torch.no_grad():
        result: torch.Tensor = loaded.model(loaded.preprocess(Image.open(image))[None])[0]
    return result


def _synsets(letter: str) -> set[str]:
    folder = Path(importlib.import_module("timm.data").__file__ or "").parent
    return set((folder / "_info" / f"imagenet_{letter}_synsets.txt").read_text().split())


def test_images_that_cannot_be_read_are_left_out(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    (images / "red" / "1.png").write_bytes(b"no image")
    (evaluation,) = evaluate(checkpoint, images, tmp_path / "run", **QUICK)
    assert [skip.name for skip in evaluation.run.skipped] == ["red/1.png"]
    assert len(evaluation.run.predictions) == 11 * 5
    assert evaluation.summary["data"]["skipped"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"corruptions": "fogg"}, "unknown corruption 'fogg'; did you mean 'fog'?"),
        ({"severities": [6]}, "severity must be a whole number from 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        (
            {"corruptions": None},
            "severities need a corruption to apply; name one or a group, such as common",
        ),
        ({"clean": "."}, "clean images go with a tree corruption/severity/class, which the data are not; leave --clean out"),
    ],
)
def test_what_makes_no_sense(checkpoint: Path, images: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OverfocusError, match=re.escape(words)):
        evaluate(checkpoint, images, tmp_path / "run", **(QUICK | options))


def test_labels_that_mean_no_class(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    for name, other in (("red", "cat"), ("blue", "dog"), ("green", "fish")):
        (images / name).rename(images / other)
    with pytest.raises(
        RunError, match=re.escape("none of the labels (cat, dog, fish) matches one of its 3 classes (blue, green, red)")
    ):
        evaluate(checkpoint, images, tmp_path / "run", **QUICK)
    shutil.copytree(images / "cat", images / "red")
    (evaluation,) = evaluate(checkpoint, images, tmp_path / "run", **QUICK)
    assert evaluation.summary["notes"] == ["3 of 4 labels match no class of the model (cat, dog, fish)"]
    assert evaluation.table["images"].tolist() == [4] * 5


def test_the_command_prints_what_was_found(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", str(checkpoint), "--data", str(images), "--output", str(tmp_path / "run"), "--device", "cpu"]
    arguments += ["--corruption", "fog", "--severity", "2", "--severity", "5", "--workers", "0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "12 images" in result.output
    assert "no mCE and no relative mCE: AlexNet's errors are those of ImageNet's classes" in result.output
    assert re.search(r"^clean +top-1 +\d+\.\d\d%   top-5 +–   ECE", result.output, re.MULTILINE)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["clean"]["top5"] is None
    assert re.search(r"fog +\d+\.\d\d% +\d+\.\d\d%", result.output)


def test_the_command_takes_the_clean_images_of_a_tree(
    checkpoint: Path, write_checkpoint: Callable[..., Path], images: Path, tree: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", write_checkpoint("other", SEES), checkpoint, "--data", tree, "--output", tmp_path / "run"]
    arguments += ["--severity", 4, "--device", "cpu", "--workers", 0]
    for options, words in (([], "no relative mCE: no clean images were measured"), (["--clean", images], ", relative mCE ")):
        result = CliRunner().invoke(app, [str(argument) for argument in [*arguments, *options, "--overwrite"]])
        assert result.exit_code == 0, result.output
        assert words in result.output
        assert bool(re.search("^clean ", result.output, re.MULTILINE)) == bool(options)


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(root / folder) for folder in (".", "cli", "reports")),
        "OMP_NUM_THREADS": "1",
    }
    options = [
        "evaluate",
        str(checkpoint),
        "--data",
        str(images),
        "--corruption",
        "fog",
        "--batch-size",
        "6",
        "--device",
        "cpu",
    ]
    for name, launcher in (("one", []), ("two", ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"])):
        command = [sys.executable, "-m", *launcher, "overfocus", *options, "--output", str(tmp_path / name)]
        subprocess.run(command, env=environment, check=True)
    one, two = (overfocus.Run(tmp_path / name).predictions for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, check_exact=False, atol=1e-6)


def test_workers_change_nothing(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    alone, helped = (
        evaluate(checkpoint, images, tmp_path / f"run{workers}", **(QUICK | {"workers": workers}))[0] for workers in (0, 2)
    )
    pd.testing.assert_frame_equal(alone.run.predictions, helped.run.predictions)
