"""Checkpoints laid out as the published ones are: they load whole, and say by themselves what they are."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import overfocus
import overfocus.models


def saved(path: Path, name: str, layout: str) -> torch.nn.Module:
    """A model with random weights, saved as timm's trainer does (under DDP, with EMA) or as mmsegmentation does."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    checkpoint: dict[str, Any] = {
        "epoch": 309,
        "arch": name,
        "state_dict": state,
        "version": 2,
        "args": Namespace(model=name, num_scales=4),
    }
    if layout == "mmsegmentation":
        checkpoint = {"meta": {"CLASSES": [f"class {i}" for i in range(19)]}, "state_dict": model.state_dict()}
    torch.save(checkpoint, path)
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "file", "size"),
    [
        ("tap_fan_base_16_p4_hybrid", "timm", "tapadl_fan_base.pth.tar", 224),
        ("tap_rvt_base_plus", "timm", "tapadl_rvt_base.pth.tar", 224),
        ("tap_fan_base_16_p4_hybrid_segformer", "mmsegmentation", "tapadl_fan_base_segmentation.pth", 128),
    ],
)
def test_published_checkpoints(name: str, layout: str, file: str, size: int, tmp_path: Path) -> None:
    model = saved(tmp_path / file, name, layout)
    loaded = overfocus.load_model(tmp_path / file)
    assert (loaded.name, loaded.missing_keys, loaded.unexpected_keys) == (name, [], [])
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images), model(images))
