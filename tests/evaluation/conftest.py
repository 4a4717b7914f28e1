"""A tiny classifier of three colours, and images to evaluate it on."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from overfocus.checkpoints.metadata import save_checkpoint
from overfocus.models import segmentation_model
from overfocus.preprocessing import Preprocess

CLASSES = ["blue", "green", "red"]
ARGUMENTS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images of each class in class folders."""
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


MASKED = ["ground", "box", "corner"]


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Five images of 48×40 pixels with masks of three classes, some pixels ignored."""
    random = np.random.default_rng(0)
    folder = tmp_path / "masked"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(5):
        mask = np.zeros((40, 48), np.uint8)
        top, left = random.integers(0, 20, 2)
        mask[top : top + 15, left : left + 20] = 1
        mask[30:, 40:] = 2
        mask[:2] = 255
        pixels = random.integers(0, 90, (40, 48, 3), np.uint8)
        pixels[..., 0] += (mask == 1) * np.uint8(120)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("\n".join(MASKED))
    return folder


@pytest.fixture
def write_segmenter(tmp_path: Path) -> Callable[..., Path]:
    """Saves a random segmentation model of 32×32 pixels under a name."""

    def write(name: str, seed: int = 0, class_names: Sequence[str] | None = MASKED, classes: int = 3) -> Path:
        torch.manual_seed(seed)
        model = segmentation_model(VisionTransformer(**ARGUMENTS, num_classes=0), num_classes=classes)
        model.decode_head.linear_pred.weight.data.normal_(std=1.0)
        return save_checkpoint(
            model,
            tmp_path / f"{name}.safetensors",
            architecture="VisionTransformer_segformer",
            model_args=ARGUMENTS,
            class_names=class_names,
            preprocess=Preprocess((3, 32, 32), crop_pct=1.0),
        )

    return write


@pytest.fixture
def segmenter(write_segmenter: Callable[..., Path]) -> Path:
    return write_segmenter("pixels")
