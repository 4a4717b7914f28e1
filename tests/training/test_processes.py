"""Trainings in two processes."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import overfocus

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MODEL = "--model VisionTransformer --model-arg img_size=16 --model-arg patch_size=4 --model-arg embed_dim=16 --model-arg depth=2 --model-arg num_heads=2"  # fmt: skip  # noqa: E501
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in (".", "cli", "reports")),
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
}


def arguments(data: Path, output: Path, more: str) -> list[str]:
    options = f"{MODEL} --adl 0.5 --set adl_threshold=0.5 --set warmup_epochs=0 --log-every 1 --workers 0 --device cpu {more}"
    return ["overfocus", "train", str(data), "--output", str(output), *options.split()]


def losses(output: Path) -> list[float]:
    with (output / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_equal_one_with_twice_the_batch(shapes_folder: Path, tmp_path: Path) -> None:
    common = "--epochs 4 --learning-rate 0.002"
    one = arguments(shapes_folder, tmp_path / "one", f"{common} --batch-size 8")
    two = arguments(shapes_folder, tmp_path / "two", f"{common} --batch-size 4")
    subprocess.run([sys.executable, "-m", *one], env=ENVIRONMENT, check=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *two]
    subprocess.run(launcher, env=ENVIRONMENT, check=True)
    assert len(losses(tmp_path / "one")) == 16
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


def test_two_processes_train_and_validate_one_segmentation_model(squares: Path, tmp_path: Path) -> None:
    more = "--task segmentation --iterations 6 --batch-size 3 --set warmup_iterations=1"
    command = arguments(squares, tmp_path / "two", more)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *command]
    subprocess.run(launcher, env=ENVIRONMENT, check=True)
    with (tmp_path / "two" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    (evaluation,) = overfocus.evaluate(
        tmp_path / "two" / "model.safetensors", squares, tmp_path / "run", workers=0, device="cpu", progress=False
    )
    clean = evaluation.table.iloc[0]
    assert clean["miou"] == pytest.approx(float(rows[-1]["validation_miou"]), abs=1e-6)
