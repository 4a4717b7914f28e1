"""Small models and the files that trainers make of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def vit() -> nn.Module:
    """timm's `test_vit` (0.4 M parameters, 160 pixels, patch 16, 1000 classes), seeded."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_vit").eval()
    return model


@pytest.fixture
def state(vit: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in vit.state_dict().items()}


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Save an object with torch.save and give its path."""

    def save(content: object, name: str = "weights.pth") -> Path:
        path = tmp_path / name
        torch.save(content, path)
        return path

    return save
