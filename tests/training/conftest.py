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
    """36 training and 12 validation pictures of three classes: noise of another colour each."""
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
