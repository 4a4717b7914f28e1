"""A tiny data set and a training of a tiny model that takes a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from overfocus.training.train import Training, train

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
QUICK = {
    "epochs": 2,
    "batch_size": 8,
    "warmup_epochs": 0.5,
    "learning_rate": 2e-3,
    "auto_augment": "rand-m5-mstd0.5-inc1",
    "erasing": 0.3,
    "mixup": 0.2,
    "drop_path": 0.1,
    "ema_decay": 0.9,
}


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 training and 12 validation images of three classes: noise of another colour each."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for channel, name in enumerate(("red", "green", "blue")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 90, (20, 18, 3), np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture
def train_tiny(shapes_folder: Path, tmp_path: Path) -> Callable[..., Training]:
    """`train` with a tiny model; keywords replace what is set here, `recipe` entries are added to the changes."""

    def run(name: str = "training", changes: dict[str, Any] | None = None, **options: Any) -> Training:
        given: dict[str, Any] = {
            "model": "VisionTransformer",
            "model_args": TINY,
            "changes": QUICK | (changes or {}),
            "workers": 0,
            "log_every": 1,
            "trackers": [],
            "device": "cpu",
            "progress": False,
        }
        return train(options.pop("data", shapes_folder), tmp_path / name, **(given | options))

    return run


SEGMENTER = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
MASKS_QUICK = {"epochs": 1, "batch_size": 6, "warmup_epochs": 0.5}


def write_squares(folder: Path, counts: dict[str, int], size: tuple[int, int] = (40, 48)) -> Path:
    """Noise with a green and a blue square on it, and a row that does not count."""
    random = np.random.default_rng(0)
    height, width = size
    for split, count in counts.items():
        for number in range(count):
            pixels = random.integers(0, 90, (height, width, 3)).astype(np.uint8)
            mask = np.zeros((height, width), np.uint8)
            for channel in (1, 2):
                top, left = random.integers(0, height - 16), random.integers(0, width - 16)
                square = np.s_[top : top + 14, left : left + 14]
                pixels[square] //= 2
                pixels[square][..., channel] += 140
                mask[square] = channel
            mask[0] = 255
            for kind, content in (("images", pixels), ("masks", mask)):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(folder / kind / split / f"{number}.png")
    (folder / "classes.txt").write_text("background\ngreen\nblue")
    return folder


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("squares"), {"train": 18, "val": 5})


@pytest.fixture
def train_masks(squares: Path, tmp_path: Path) -> Callable[..., Training]:
    """`train` with a tiny segmentation model; keywords replace what is set here, `changes` are added."""

    def run(name: str = "training", changes: dict[str, Any] | None = None, **options: Any) -> Training:
        given: dict[str, Any] = {
            "task": "segmentation",
            "model": "VisionTransformer",
            "model_args": SEGMENTER,
            "changes": MASKS_QUICK | (changes or {}),
            "workers": 0,
            "log_every": 1,
            "trackers": [],
            "device": "cpu",
            "progress": False,
        }
        return train(options.pop("data", squares), tmp_path / name, **(given | options))

    return run
