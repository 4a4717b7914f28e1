"""The reference's numbers: manifests, and what each model must give for weights made by the recipe below."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

DATA = Path(__file__).parents[1] / "data" / "models"


@dataclass(frozen=True)
class Golden:
    """One file of reference values; `name` is that of the file."""

    name: str

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Model, keyword arguments, number of parameters, and every entry of the state dict with its shape, in order."""
        return json.loads((DATA / f"{self.name}.json").read_text())

    @cached_property
    def values(self) -> dict[str, torch.Tensor]:
        with np.load(DATA / f"{self.name}.npz") as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: recipe_tensor(name, shape) for name, shape in self.manifest["state_dict"].items()}


def recipe_tensor(name: str, shape: list[int]) -> torch.Tensor:
    """A parameter or buffer that depends on its name and shape alone."""
    noise = np.asarray(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape), dtype=np.float32)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(noise)
    elif name.endswith("att_mask"):
        values = noise
    elif len(shape) >= 2 and not name.endswith("temperature"):
        gain = 2 if any(part in name for part in (".qkv.", ".q.", ".kv.")) else 1
        values = gain * noise / np.sqrt(np.prod(shape[1:]))
    elif name.endswith(("weight", "temperature")) or "gamma" in name:
        values = 1 + 0.1 * noise
    else:
        values = 0.1 * noise
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def recipe_images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(0).standard_normal(shape).astype(np.float32))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    return Golden


@pytest.fixture(scope="session")
def golden_images() -> Callable[..., torch.Tensor]:
    return recipe_images


@pytest.fixture(scope="session")
def golden_names() -> list[str]:
    return sorted(path.stem for path in DATA.glob("*.json"))
