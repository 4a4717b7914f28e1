"""A small model's checkpoint, images for it, and the program to give them to."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from overfocus_cli.main import app

Program = Callable[..., Result]


@pytest.fixture
def overfocus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Run a command line in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timm's `test_vit` (160 pixels, 1000 classes) with seeded weights, as a trainer saves it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "small.pth"
    torch.save({"arch": "test_vit", "state_dict": timm.create_model("test_vit").state_dict()}, path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three small images of noise, two of one class and one of another."""
    folder = tmp_path / "photos"
    for name in ("cat/one.png", "cat/two.png", "dog/three.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (24, 40, 3), np.uint8)).save(path)
    return folder
