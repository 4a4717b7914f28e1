"""Whole evaluations of a tiny segmentation model."""

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
from torchmetrics.classification import MulticlassJaccardIndex
from typer.testing import CliRunner

import overfocus
from overfocus.errors import OverfocusError
from overfocus.evaluation.evaluate import evaluate
from overfocus.segmentation.inference import sliding_logits
from overfocus.sweep.sweep import Subject
from overfocus_cli.main import app

MASKED = ["ground", "box", "corner"]
QUICK: dict[str, Any] = {
    "corruptions": ["fog", "gaussian_noise"],
    "severities": [1, 4],
    "workers": 0,
    "batch_size": 64,
    "device": "cpu",
}
SCORES = ["predicted", "confidence", "agreement", "confidence_drop", "correct", "image_iou"]


def logits_of(checkpoint: Path, pixels: np.ndarray) -> torch.Tensor:
    """At the image's size, by windows of 32×32 and a stride of 24."""
    loaded = overfocus.load_model(checkpoint, device="cpu")
    with torch.no_grad():
        return sliding_logits(loaded.model, loaded.preprocess.normalize(pixels)[None], (32, 32), (24, 24), 8)[0]


def assert_same(first: pd.DataFrame, second: pd.DataFrame) -> None:
    """Equal predictions, whatever they were batched with."""
    pd.testing.assert_frame_equal(first[SCORES], second[SCORES], check_exact=False, atol=1e-6, rtol=1e-5)
    for name in ("intersections", "unions"):
        assert [row.tolist() for row in first[name]] == [row.tolist() for row in second[name]]


def test_predictions_are_those_of_the_model(segmenter: Path, masked: Path, tmp_path: Path) -> None:
    (evaluation,) = evaluate(segmenter, masked, tmp_path / "run", **QUICK)
    run = evaluation.run
    assert run.complete
    assert run.segmented
    assert len(run.class_colours or []) == 3
    assert len(run.predictions) == 5 * 5
    for row in run.predictions.sample(8, random_state=0).to_dict("records"):
        clean_pixels = np.asarray(Image.open(masked / "images" / row["name"]))
        mask = np.asarray(Image.open(masked / "masks" / row["name"]))
        pixels = overfocus.corrupt(clean_pixels, row["corruption"], row["severity"]) if row["severity"] else clean_pixels
        shares, clean = (logits_of(segmenter, part).softmax(0).numpy() for part in (pixels, clean_pixels))
        predicted, before, counted = shares.argmax(0), clean.argmax(0), mask != 255
        assert row["predicted"] == np.bincount(predicted.ravel()).argmax()
        assert row["confidence"] == pytest.approx(shares.max(0).mean(), abs=1e-5)
        assert row["correct"] == pytest.approx((predicted == mask)[counted].mean())
        expected = [((predicted == number) & (mask == number)).sum() for number in range(3)]
        assert row["intersections"].tolist() == expected
        if row["severity"]:
            assert row["agreement"] == pytest.approx((predicted == before)[counted].mean())
            drop = clean.max(0) - np.take_along_axis(shares, before[None], 0)[0]
            assert row["confidence_drop"] == pytest.approx(drop.mean(), abs=1e-5)
        else:
            assert np.isnan([row["agreement"], row["confidence_drop"]]).all()


def test_the_set_is_scored_as_torchmetrics_does(segmenter: Path, masked: Path, tmp_path: Path) -> None:
    (evaluation,) = evaluate(segmenter, masked, tmp_path / "run", workers=0, device="cpu")
    jaccard = [MulticlassJaccardIndex(3, average=average, ignore_index=255) for average in ("macro", "none")]
    for path in sorted((masked / "images").iterdir()):
        predicted = logits_of(segmenter, np.asarray(Image.open(path))).argmax(0)
        mask = torch.from_numpy(np.asarray(Image.open(masked / "masks" / path.name)).astype(np.int64))
        for metric in jaccard:
            metric.update(predicted, mask)
    summary = evaluation.summary
    assert summary["clean"]["miou"] == pytest.approx(float(jaccard[0].compute()), abs=1e-6)
    per_class = dict(zip(["ground", "box", "corner"], jaccard[1].compute().tolist(), strict=True))
    assert summary["clean"]["per_class"] == pytest.approx(per_class, abs=1e-6)
    assert summary["averages"] == []
    assert summary["inference"] == "windows of 32×32 pixels, stride 24×24, where an image is larger"
    written = pd.read_csv(tmp_path / "run" / "evaluation.csv")
    pd.testing.assert_frame_equal(written, evaluation.table, check_dtype=False)


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"batch_size": 7}, {"workers": 2, "batch_size": 3}])
def test_batches_change_nothing(segmenter: Path, masked: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    runs = [evaluate(segmenter, masked, tmp_path / str(n), **(QUICK | part))[0].run for n, part in enumerate(({}, options))]
    assert_same(runs[0].predictions, runs[1].predictions)


def test_images_of_several_sizes(segmenter: Path, masked: Path, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        path = masked / folder / "1.png"
        Image.open(path).crop((0, 0, 30, 20)).save(path)
    (evaluation,) = evaluate(segmenter, masked, tmp_path / "run", **QUICK)
    alone = tmp_path / "alone"
    for folder in ("images", "masks"):
        (alone / folder).mkdir(parents=True)
        shutil.copy(masked / folder / "1.png", alone / folder)
    shutil.copy(masked / "classes.txt", alone)
    (single,) = evaluate(segmenter, alone, tmp_path / "single", **QUICK)
    both = [entry.run.predictions.query("name == '1.png'").reset_index(drop=True) for entry in (evaluation, single)]
    assert_same(*both)


@pytest.mark.parametrize("size", [64, 2])
def test_a_continued_evaluation_ends_with_the_same_table(
    segmenter: Path, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("overfocus.sweep.recorder.SECONDS_PER_PART", 0.0)
    options = QUICK | {"batch_size": size if size == 2 else 10}
    (whole,) = evaluate(segmenter, masked, tmp_path / "whole", **options)
    original, calls = Subject.measure, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == (6 if size == 2 else 2):
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Subject, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(segmenter, masked, tmp_path / "parts", **options)
    assert 0 < overfocus.Run(tmp_path / "parts").description.done < 5
    (parts,) = evaluate(segmenter, masked, tmp_path / "parts", **options)
    assert_same(whole.run.predictions, parts.run.predictions)


def cityscapes(folder: Path, names: list[str]) -> None:
    """Writes three images with train ids under gtFine/val, and the same images under each of `names`."""
    random = np.random.default_rng(1)
    for city, number in (("bonn", 0), ("bonn", 1), ("jena", 0)):
        pixels = random.integers(0, 255, (40, 64, 3), np.uint8)
        (folder / "gtFine" / "val" / city).mkdir(parents=True, exist_ok=True)
        mask = random.integers(0, 19, (5, 8), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(mask).save(folder / "gtFine" / "val" / city / f"{city}_{number}_gtFine_labelTrainIds.png")
        for name in names:
            corruption, _, severity = name.partition("/")
            where = folder / (f"{name}/{city}" if severity else f"leftImg8bit/val/{city}")
            where.mkdir(parents=True, exist_ok=True)
            shown = overfocus.corrupt(pixels, corruption, int(severity)) if severity else pixels
            Image.fromarray(shown).save(where / f"{city}_{number}_leftImg8bit.png")


def test_a_cityscapes_c_tree_gives_what_the_same_corruptions_on_the_fly_give(
    write_segmenter: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = write_segmenter("city", class_names=None, classes=19)
    cityscapes(tmp_path / "clean", ["clean"])
    cityscapes(tmp_path / "tree", ["fog/1", "fog/4", "gaussian_noise/1", "gaussian_noise/4"])
    (fly,) = evaluate(checkpoint, tmp_path / "clean", tmp_path / "fly", **QUICK)
    (disk,) = evaluate(checkpoint, tmp_path / "tree", tmp_path / "disk", workers=0, device="cpu")
    assert (fly.summary["data"]["corruptions"], disk.summary["data"]["corruptions"]) == ("on-the-fly", "Cityscapes-C")
    assert "published scores on Cityscapes-C" in fly.summary["notes"][0]
    assert disk.summary["notes"] == []
    assert disk.summary["clean"] is None
    keys = ["corruption", "severity"]
    tables = [
        entry.table.query("severity > 0").drop(columns="agreement").sort_values(keys).reset_index(drop=True)
        for entry in (fly, disk)
    ]
    pd.testing.assert_frame_equal(*tables)
    assert list(fly.summary["clean"]["per_class"])[:2] == ["road", "sidewalk"]
    (part,) = evaluate(checkpoint, tmp_path / "tree", tmp_path / "part", corruptions="fog", severities=4, workers=0, device="cpu")
    assert part.table[["corruption", "severity"]].to_numpy().tolist() == [["fog", 4]]


def test_the_conditions_of_acdc(write_segmenter: Callable[..., Path], tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    for condition in ("fog", "night", "rain", "snow"):
        for part, ending in (("rgb_anon", "rgb_anon"), ("gt", "gt_labelTrainIds")):
            folder = tmp_path / "acdc" / part / condition / "val" / "GP01"
            folder.mkdir(parents=True)
            size = (40, 64, 3) if part == "rgb_anon" else (40, 64)
            Image.fromarray(random.integers(0, 19, size, np.uint8)).save(folder / f"GP01_{condition}_{ending}.png")
    checkpoint = write_segmenter("city", class_names=None, classes=19)
    (evaluation,) = evaluate(checkpoint, tmp_path / "acdc", tmp_path / "run", workers=0, device="cpu")
    summary = evaluation.summary
    assert list(summary["conditions"]) == ["ACDC fog", "ACDC night", "ACDC rain", "ACDC snow"]
    assert (summary["clean"], summary["per_corruption"]) == (None, {})
    mean, together = summary["averages"]
    assert mean["miou"] == pytest.approx(np.mean([scores["miou"] for scores in summary["conditions"].values()]))
    intersections, unions = (np.stack(evaluation.run.predictions[name].to_list()).sum(0) for name in ("intersections", "unions"))
    assert together["miou"] == pytest.approx((intersections / unions).mean())
    with pytest.raises(OverfocusError, match="the images of ACDC show real fog, night, rain and snow"):
        evaluate(checkpoint, tmp_path / "acdc", tmp_path / "other", **QUICK)


def test_test_time_augmentation_reaches_the_predictions(segmenter: Path, masked: Path, tmp_path: Path) -> None:
    plain, augmented = (
        evaluate(segmenter, masked, tmp_path / name, workers=0, device="cpu", **options)[0]
        for name, options in (("plain", {}), ("augmented", {"flip": True, "scales": [1, 1.5], "stride": 16}))
    )
    assert augmented.summary["inference"] == (
        "windows of 32×32 pixels, stride 16×16, where an image is larger; mirrored too; at 1, 1.5 times its size; "
        "probabilities averaged"
    )
    assert (plain.run.predictions["confidence"] != augmented.run.predictions["confidence"]).all()
    with pytest.raises(OverfocusError, match="flip False there, True asked for"):
        evaluate(segmenter, masked, tmp_path / "plain", flip=True, workers=0, device="cpu")


def test_mixed_precision_changes_little(segmenter: Path, masked: Path, tmp_path: Path) -> None:
    plain, mixed = (
        evaluate(segmenter, masked, tmp_path / str(amp), amp=amp, workers=0, device="cpu")[0] for amp in (False, True)
    )
    difference = plain.run.predictions["confidence"] - mixed.run.predictions["confidence"]
    assert 0 < difference.abs().max() < 0.02


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "detection"}, "unknown task 'detection'; valid tasks: classification, segmentation"),
        ({"task": "classification"}, "holds images with masks, which classification has no use for; try --task segmentation"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": 16}, "the model takes 32×32 pixels only, got windows of 16×16"),
        ({"window": 32, "stride": 40}, "would leave pixels out; give a stride of at most 32"),
        ({"stride": 40}, "would leave pixels out; give a stride of at most 32"),
        ({"whole": True}, "the model takes 32×32 pixels only, got an image of 48×40 to be taken whole"),
        ({"whole": True, "window": 32}, "give whole (--whole) or window and stride, not both"),
        ({"window": 64, "image_size": 64}, "0.png: a window of 64×64 pixels is larger than the image (48×40)"),
        ({"scales": [0.0, 1.0]}, "scales must be above 0"),
        ({"baseline": "other"}, "a baseline is what mCE is divided by, which segmentation does not have"),
    ],
)
def test_what_makes_no_sense(segmenter: Path, masked: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    if "baseline" in options:
        options = {"baseline": shutil.copy(segmenter, tmp_path / "other.safetensors")}
    with pytest.raises(OverfocusError, match=re.escape(words)):
        evaluate(segmenter, masked, tmp_path / "run", **(QUICK | options))


def test_classifiers_and_segmentation_models_are_told_apart(
    segmenter: Path, checkpoint: Path, masked: Path, images: Path, tmp_path: Path
) -> None:
    for sources, data, options, words in (
        (checkpoint, masked, {"task": "segmentation"}, "no segmentation model (VisionTransformer), but --task segmentation"),
        (checkpoint, masked, {}, "is no segmentation model, but"),
        (segmenter, images, {"task": "classification"}, "a segmentation model (VisionTransformer_segformer), but --task"),
        (segmenter, images, {}, "expected images with masks: images/ beside masks/"),
        ([segmenter, checkpoint], masked, {}, "no segmentation model (VisionTransformer), but"),
        (checkpoint, images, {"flip": True}, "window, stride, whole, flip and scales are for segmentation models"),
    ):
        with pytest.raises(OverfocusError, match=re.escape(words)):
            evaluate(sources, data, tmp_path / "run", **(QUICK | options))


def test_classes_that_do_not_fit(write_segmenter: Callable[..., Path], masked: Path, tmp_path: Path) -> None:
    four = write_segmenter("four", class_names=None, classes=4)
    with pytest.raises(OverfocusError, match=re.escape("predicts 4 classes, the masks have 3 (ground, box, corner …)")):
        evaluate(four, masked, tmp_path / "run", **QUICK)
    swapped = write_segmenter("swapped", class_names=["box", "ground", "corner"])
    with pytest.raises(OverfocusError, match="its class 0 is box, that of the masks ground"):
        evaluate(swapped, masked, tmp_path / "run", **QUICK)


def test_classes_without_names(write_segmenter: Callable[..., Path], masked: Path, tmp_path: Path) -> None:
    numbered = write_segmenter("numbered", class_names=["0", "1", "2"])
    (evaluation,) = evaluate(numbered, masked, tmp_path / "named", workers=0, device="cpu")
    assert evaluation.run.class_names == ["ground", "box", "corner"]
    (masked / "classes.txt").unlink()
    for path in (masked / "masks").iterdir():  # the last class does not occur
        Image.fromarray(np.where(np.asarray(Image.open(path)) == 2, 0, np.asarray(Image.open(path)))).save(path)
    for name, names, expected in (("unnamed", None, ["0", "1", "2"]), ("own", MASKED, MASKED)):
        (evaluation,) = evaluate(write_segmenter(name, class_names=names), masked, tmp_path / name, workers=0, device="cpu")
        assert evaluation.run.class_names == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_wrong_masks_stop_the_evaluation(segmenter: Path, masked: Path, tmp_path: Path, workers: int) -> None:
    path = masked / "masks" / "3.png"
    kept = path.read_bytes()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(path)
    with pytest.raises(overfocus.ImageError, match=r"3\.png: expected a mask of its image's 48×40 pixels, got 40×40"):
        evaluate(segmenter, masked, tmp_path / "run", **(QUICK | {"workers": workers}))
    Image.fromarray(np.full((40, 48), 7, np.uint8)).save(path)
    with pytest.raises(overfocus.ImageError, match=r"3\.png.*7"):
        evaluate(segmenter, masked, tmp_path / "run", **(QUICK | {"workers": workers}))
    path.write_bytes(kept)
    (masked / "images" / "3.png").write_bytes(b"no image")
    (evaluation,) = evaluate(segmenter, masked, tmp_path / "run", **(QUICK | {"workers": workers}))
    assert [skip.name for skip in evaluation.run.skipped] == ["3.png"]
    assert len(evaluation.run.predictions) == 4 * 5


def test_the_command_prints_what_was_found(segmenter: Path, masked: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", str(segmenter), "--data", str(masked), "--output", str(tmp_path / "run"), "--device", "cpu"]
    arguments += ["--corruption", "fog", "--severity", "2", "--severity", "5", "--workers", "0", "--task", "segmentation"]
    result = CliRunner().invoke(app, [*arguments, "--flip", "--scales", "1,1.25", "--stride", "24"])
    assert result.exit_code == 0, result.output
    assert "5 images" in result.output
    assert re.search(r"clean +mIoU +\d+\.\d\d%   pixel accuracy +\d+\.\d\d%", result.output)
    assert re.search(r"ground +\d+\.\d\d%   box +\d+\.\d\d%", result.output)
    assert re.search(r"fog +\d+\.\d\d% +\d+\.\d\d% +\d+\.\d\d%", result.output)
    assert (
        "others 1–5: not measured (gaussian blur 1–5, motion blur 1–5, glass blur 1–5 and 13 more are missing)" in result.output
    )
    assert "mIoU over fog, at severities 2, 5:" in result.output
    wrong = CliRunner().invoke(app, [*arguments, "--scales", "big"])
    assert wrong.exit_code == 2


def test_two_evaluations_compare(write_segmenter: Callable[..., Path], masked: Path, tmp_path: Path) -> None:
    sources = [write_segmenter("first"), write_segmenter("second", seed=1)]
    first, second = evaluate(sources, masked, tmp_path / "both", **QUICK)
    comparison = overfocus.compare([first.path, second.path], output=tmp_path / "comparison", resamples=200)
    table = comparison.table
    assert set(table["metric"]) == {"agreement", "confidence_drop", "correct", "image_iou", "mean_iou"}
    (row,) = table.query("metric == 'mean_iou' and corruption == 'clean'").to_dict("records")
    assert row["mean"] == pytest.approx(second.summary["clean"]["miou"])
    assert row["baseline_mean"] == pytest.approx(first.summary["clean"]["miou"])
    assert row["low"] <= row["difference"] <= row["high"]
    (row,) = table.query("metric == 'correct' and corruption == 'clean'").to_dict("records")
    assert row["mean"] == pytest.approx(second.run.predictions.query("severity == 0")["correct"].mean())
    assert comparison.notes == ()
    printed = CliRunner().invoke(
        app, ["compare", str(first.path), str(second.path), "--output", str(tmp_path / "again"), "--no-report"]
    )
    assert printed.exit_code == 0, printed.output
    assert "mIoU" in printed.output


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(segmenter: Path, masked: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(str(root / folder) for folder in (".", "cli", "reports")),
        "OMP_NUM_THREADS": "1",
    }
    options = ["evaluate", segmenter, "--data", masked, "--corruption", "fog", "--batch-size", "3", "--device", "cpu"]
    for name, launcher in (("one", []), ("two", ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"])):
        command = [sys.executable, "-m", *launcher, "overfocus", *map(str, options), "--output", str(tmp_path / name)]
        subprocess.run(command, env=environment, check=True)
    one, two = (overfocus.Run(tmp_path / name).predictions for name in ("one", "two"))
    assert len(one) == 5 * 6
    assert one["name"].tolist() == two["name"].tolist()
    assert_same(one, two)
