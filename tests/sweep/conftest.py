"""A tiny ViT with random weights and a folder of labelled images."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from overfocus.checkpoints.loaded import LoadedModel
from overfocus.preprocessing import Preprocess


def _make_loaded(model=None, channels=3, class_names=None):
    """A `LoadedModel` around a small ViT for 32×32 images, 4×4 patches, two layers of two heads."""
    if model is None:
        torch.manual_seed(0)
        model = timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, in_chans=channels
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "qkv.weight" in name:
                    parameter.mul_(15)  # attention that is far from uniform
    statistics = (0.5,) * channels
    return LoadedModel(
        model=model.eval(),
        preprocess=Preprocess(input_size=(channels, 32, 32), mean=statistics, std=statistics, crop_pct=1.0),
        name="tiny",
        source="made for tests",
        sha256=None,
        found_by="test",
        weights_entry="random",
        missing_keys=[],
        unexpected_keys=[],
        notes=[],
        class_names=class_names,
    )


def _write_images(folder, number=6):
    """Smooth random images in two class folders, "cat" and "dog"."""
    for index in range(number):
        rng = np.random.default_rng(index)
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        path = folder / ("cat" if index < number // 2 else "dog") / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((48, 40), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture
def loaded():
    """A tiny model in the wrapping that `load_model` gives."""
    return _make_loaded()


@pytest.fixture
def photos(tmp_path):
    """Six images of 48×40 pixels, three in "cat" and three in "dog"."""
    return _write_images(tmp_path / "photos")


@pytest.fixture
def make_loaded():
    """Make such a model: `make_loaded(model=None, channels=3, class_names=None)`."""
    return _make_loaded


@pytest.fixture
def write_images():
    """Write such a folder: `write_images(folder, number=6)`."""
    return _write_images
