import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import overfocus
from overfocus.evaluation.evaluate import evaluate
from overfocus.evaluation.layouts import VideoFolders, open_evaluation_data
from overfocus.probes.predictions import flip_rate
from overfocus_cli.main import app


@given(st.lists(st.integers(0, 3), min_size=2, max_size=30))
def test_flip_rate_by_counting(classes: list[int]) -> None:
    steps = sum(first != second for first, second in pairwise(classes))
    assert flip_rate(classes, noisy=False) == pytest.approx(steps / (len(classes) - 1))
    assert flip_rate(classes, noisy=True) == pytest.approx(sum(other != classes[0] for other in classes[1:]) / (len(classes) - 1))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(0)
    for perturbation in ("gaussian_noise", "tilt"):
        for label, length in (("red", 5), ("blue", 8), ("green", 3)):
            folder = tmp_path / "videos" / perturbation / label
            folder.mkdir(parents=True)
            writer = cv2.VideoWriter(str(folder / "0.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 32))
            for _ in range(length):
                writer.write(random.integers(0, 256, (32, 32, 3), np.uint8))
            writer.release()
    return tmp_path / "videos"


def test_videos_are_evaluated_frame_by_frame(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    assert open_evaluation_data(videos).layout == "ImageNet-P"
    (evaluation,) = evaluate(checkpoint, videos, tmp_path / "run", workers=0, device="cpu", batch_size=40)
    loaded = overfocus.load_model(checkpoint)
    rates: dict[str, list[float]] = {}
    for perturbation in ("gaussian_noise", "tilt"):
        images = VideoFolders(videos / perturbation)
        for index in range(3):
            frames = torch.stack([loaded.preprocess(frame) for frame in images.frames(index)])
            with torch.no_grad():
                classes = loaded.model(frames).argmax(-1).tolist()
            reference = [classes[0]] * (len(classes) - 1) if perturbation == "gaussian_noise" else classes[:-1]
            flips = [one != other for one, other in zip(classes[1:], reference, strict=True)]
            rates.setdefault(perturbation, []).append(sum(flips) / len(flips))
    expected = {name: pytest.approx(sum(values) / 3) for name, values in rates.items()}
    assert evaluation.summary["flips"]["perturbations"] == expected
    assert evaluation.summary["flips"]["mean_flip_rate"] == pytest.approx(sum(map(sum, rates.values())) / 6)
    note = evaluation.summary["flips"]["note"]
    assert note.startswith(
        "mean over 2 of ImageNet-P's ten perturbations, images as they are at 32×32 pixels, not cropped; not divided"
    )
    assert evaluation.summary["mce"] is None


def test_accuracy_is_told_as_that_of_first_frames(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", checkpoint, "--data", videos, "--output", tmp_path / "run", "--workers", 0, "--device", "cpu"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert re.search(r"^first frames of videos +top-1 ", result.output, re.MULTILINE)
    assert re.search(r"^top-1 of first frames ", result.output, re.MULTILINE)
    assert "corrupted" not in result.output
    assert "note: ImageNet-P: accuracy and calibration are those of the first frame of each video" in result.output


def test_a_video_that_is_none_is_left_out(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    (videos / "tilt" / "red" / "0.avi").write_bytes(b"nothing")
    (evaluation,) = evaluate(checkpoint, videos, tmp_path / "run", workers=0, device="cpu")
    (skipped,) = evaluation.run.skipped
    assert "expected a video of 2 to 1,000 frames, got 0" in skipped.reason
    assert len(evaluation.run.predictions) == 5


def test_the_mean_is_over_the_benchmarks_perturbations(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    shutil.copytree(videos / "tilt", videos / "shear")
    shutil.copytree(videos / "gaussian_noise", videos / "gaussian_noise_3")
    (evaluation,) = evaluate(checkpoint, videos, tmp_path / "run", workers=0, device="cpu")
    flips = evaluation.summary["flips"]
    assert set(flips["perturbations"]) == {"gaussian_noise", "gaussian_noise_3", "shear", "tilt"}
    expected = (flips["perturbations"]["gaussian_noise"] + flips["perturbations"]["tilt"]) / 2
    assert flips["mean_flip_rate"] == pytest.approx(expected)
    assert "mean over 2 of ImageNet-P's ten" in flips["note"]
