"""ADL on given maps: the reference values, batches of one, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from overfocus.losses import AttentionDiversificationLoss

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "adl.npz")


@pytest.mark.parametrize("threshold", [1, 2, 4])
def test_equals_the_reference(threshold: int) -> None:
    logits = [torch.from_numpy(GOLDEN[f"logits_{layer}"]).requires_grad_() for layer in range(3)]
    loss = AttentionDiversificationLoss(threshold)([scores.softmax(-1) for scores in logits])
    loss.backward()
    assert float(loss) == pytest.approx(float(GOLDEN[f"adl_tau{threshold}"]), abs=1e-5)
    expected = torch.from_numpy(GOLDEN[f"grad_tau{threshold}_layer0_image0_head0"])
    assert torch.allclose(logits[0].grad[0, 0], expected, atol=1e-5)
    assert expected.abs().max() > 1e-5
