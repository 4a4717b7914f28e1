"""TAP against the reference values, against unfolding, and in every setting it must survive."""

from pathlib import Path

import numpy as np
import torch

from overfocus.models import TokenAwareAveragePooling

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "tap_block.npz")


def golden_module() -> TokenAwareAveragePooling:
    module = TokenAwareAveragePooling(channels=8, branches=4)
    state = {name: torch.from_numpy(GOLDEN[name]) for name in GOLDEN.files if name.startswith("predictor.")}
    state["predictor.proj.1.num_batches_tracked"] = torch.tensor(0)
    module.load_state_dict(state)
    return module.eval()


def test_equals_the_reference() -> None:
    module = golden_module()
    image = torch.from_numpy(GOLDEN["x"])
    tokens = image.flatten(2).transpose(1, 2)
    weights = module.predictor(tokens, (9, 7))
    assert torch.allclose(weights.unflatten(1, (9, 7)), torch.from_numpy(GOLDEN["weights"]), atol=1e-5)
    pooled = module(tokens, grid=(9, 7))
    assert torch.allclose(pooled.transpose(1, 2).unflatten(2, (9, 7)), torch.from_numpy(GOLDEN["y"]), atol=1e-5)
