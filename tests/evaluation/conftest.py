"""A tiny classifier of three colours, and pictures to evaluate it on."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from overfocus.checkpoints.save import save_checkpoint
from overfocus.preprocessing import Preprocess

CLASSES = ["blue", "green", "red"]
ARGUMENTS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures of each class in class folders."""
    random = np.random.default_rng(0)
    for channel, name in zip((2, 1, 0), CLASSES, strict=True):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 150, (32, 32, 3), np.uint8)
            pixels[..., channel] += 60
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Saves a random classifier under a name."""

    def write(name: str, seed: int = 0, class_names: Sequence[str] = CLASSES) -> Path:
        torch.manual_seed(seed)
        arguments = ARGUMENTS | {"num_classes": len(class_names)}
        model = VisionTransformer(**arguments)
        model.head.weight.data.normal_(std=1.0)
        return save_checkpoint(
            model,
            tmp_path / f"{name}.safetensors",
            architecture="VisionTransformer",
            model_args=arguments,
            class_names=class_names,
            preprocess=Preprocess((3, 32, 32), crop_pct=1.0),
        )

    return write


@pytest.fixture
def checkpoint(write_checkpoint: Callable[..., Path]) -> Path:
    return write_checkpoint("tiny")
