"""`overfocus train` as a user types it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import overfocus
from overfocus_cli.main import app

MODEL = [
    "--model", "VisionTransformer", "--model-arg", "img_size=16", "--model-arg", "patch_size=4", "--model-arg", "embed_dim=16",
    "--model-arg", "depth=2", "--model-arg", "num_heads=2",
]  # fmt: skip
QUICK = ["--epochs", "1", "--batch-size", "4", "--set", "warmup_epochs=0", "--workers", "0", "--device", "cpu"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def test_train_with_tap_and_adl_and_fine_tune_the_result(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "first"
    options = ["--tap", "2", "--adl", "auto", "--adl-warmup", "0.5", "--adl-layers", "0,-1", "--learning-rate", "1e-3"]
    result = CliRunner().invoke(app, ["train", str(data), "--output", str(output), *MODEL, *QUICK, *options])
    assert result.exit_code == 0, result.output
    assert f"checkpoint: {output / 'model.safetensors'}" in result.output
    recipe = json.loads((output / "training.json").read_text())["settings"]["recipe"]
    assert (recipe["adl"], recipe["adl_layers"], recipe["learning_rate"]) == ("auto", [0, -1], 1e-3)
    assert overfocus.load_model(output / "model.safetensors").class_names == ["cat", "dog"]

    tuned = ["train", str(data), "--output", str(tmp_path / "second"), "--init", str(output / "model.safetensors"), "--json"]
    result = CliRunner().invoke(app, [*tuned, "--recipe", "finetune", "--set", "ema_warmup=true", *QUICK])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["step"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "mixups=1"], "no setting 'mixups' in a recipe; valid ones are epochs, "),
        (["--set", "mixups=1"], "; did you mean mixup?"),
        (
            ["--recipe", "huge"],
            "no recipe 'huge'; expected fan, finetune, mae, rvt, segmentation, segmentation_small, small or a YAML",
        ),
        (["--tap", "0"], "--tap must be at least 1 and at most 64, got 0"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(data: Path, tmp_path: Path, options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["train", str(data), "--output", str(tmp_path / "out"), *MODEL, *QUICK, *options])
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("overfocus: ")]
    assert words in line


def test_an_entry_without_an_equals_sign_is_wrong_usage(data: Path) -> None:
    result = CliRunner().invoke(app, ["train", str(data), "--model-arg", "depth"])
    assert result.exit_code == 2
    assert "expected NAME=VALUE, got 'depth'" in result.stderr


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Images of noise whose right half is brighter, which is class 1."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for number in range(count):
            pixels = random.integers(0, 120, (20, 24, 3)).astype(np.uint8)
            pixels[:, 12:] += 120
            mask = np.zeros((20, 24), np.uint8)
            mask[:, 12:] = 1
            for kind, content in (("images", pixels), ("masks", mask)):
                (tmp_path / "masks" / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(tmp_path / "masks" / kind / split / f"{number}.png")
    return tmp_path / "masks"


def test_train_a_segmentation_model(masks: Path, tmp_path: Path) -> None:
    command = [
        "train",
        str(masks),
        "--task",
        "segmentation",
        "--output",
        str(tmp_path / "out"),
        *MODEL,
        "--tap",
        "2",
        "--adl",
        "1",
    ]
    more = ["--iterations", "12", "--batch-size", "4", "--set", "warmup_iterations=2", "--workers", "0", "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, *more, "--set", "adl_threshold=0.5", "--class-names", "dark,bright"])
    assert result.exit_code == 0, result.output
    assert "mIoU" in result.output
    last = overfocus.load_model(tmp_path / "out" / "model.safetensors")
    assert (last.name, last.class_names) == ("VisionTransformer_segformer", ["dark", "bright"])
    again = CliRunner().invoke(app, [*command, *more, "--set", "adl_threshold=0.5", "--class-names", "dark,bright", "--json"])
    assert again.exit_code == 0, again.output
    row = json.loads(again.stdout)
    assert row["step"] == 12
    assert row["validation_miou"] > 0.5  # one class everywhere would be 0.25


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "detection"], "task must be classification or segmentation, got 'detection'"),
        ([], "holds images with masks; train on them with --task segmentation"),
        (["--task", "segmentation", "--set", "mixup=0.2"], "mixup changes images but not their masks"),
    ],
)
def test_what_is_wrong_with_a_segmentation_is_told_in_one_line(
    masks: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    result = CliRunner().invoke(app, ["train", str(masks), "--output", str(tmp_path / "out"), *MODEL, *QUICK, *options])
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("overfocus: ")
    assert words in line
