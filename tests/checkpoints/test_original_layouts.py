"""Checkpoints in the layouts that their authors publish: the model found computes what the original network computed.

The facts (names, shapes, outputs) were made with the authors' own code; `tests/data/layouts` keeps them, and the weights follow
from the names.
"""

import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch

from overfocus import load_model
from tests.scripts.layouts import FACTS, compare_outputs, read_facts, save_checkpoint
from tests.scripts.layouts_made import MAKERS

QUICK = ["pvtv2_b0"]
CASES = sorted(path.stem for path in FACTS.glob("*.json"))


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES])
def test_equals_the_original(case: str, tmp_path: Path) -> None:
    facts, arrays = read_facts(case)
    loaded = load_model(save_checkpoint(facts, arrays, tmp_path))
    assert any(fnmatch.fnmatch(loaded.name, pattern) for pattern in facts["expect"]["architecture"])
    assert max(compare_outputs(loaded.model, facts, arrays).values()) < 1e-4
    np.testing.assert_allclose(loaded.mean, facts["mean"], atol=1e-6)
    np.testing.assert_allclose(loaded.std, facts["std"], atol=1e-6)
    assert not loaded.lenient
    assert not loaded.missing_keys
    torch.manual_seed(0)


LARGE = (
    "BEiT", "MoCo", "TNT", "SAM, image", "Swin", "torchvision, Swin", "torchvision, MaxViT", "mmpretrain, Swin", "DeiT, dist",
    "CaiT", "CrossViT", "Twins", "VOLO", "MViTv2", "Hiera", "DaViT", "CAFormer", "EsViT", "SimMIM", "Depth Anything", "EVA-02",
    "XCiT",
)  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n.startswith(LARGE) else ()) for n in MAKERS])
def test_equals_the_model_it_was_made_from(name: str, tmp_path: Path) -> None:
    """Whatever library wrote it, by its own names."""
    try:
        made = MAKERS[name](tmp_path)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    loaded = load_model(made.path)
    assert made.difference is not None
    assert made.difference(loaded.model) < 1e-4
    assert not loaded.lenient
    assert not loaded.missing_keys
