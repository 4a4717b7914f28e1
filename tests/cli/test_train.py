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
        (["--set", "mixups=1"], "no setting 'mixups' in a recipe; did you mean mixup?"),
        (
            ["--recipe", "huge"],
            "no recipe 'huge'; expected fan, finetune, mae, rvt, segmentation, segmentation_small, small or a YAML",
        ),
        (["--tap", "0"], "tap must be at least 1, got 0"),
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
