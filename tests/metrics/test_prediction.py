"""Whether the output follows, on logits that can be checked by hand."""

import pytest
import torch

from overfocus.metrics.prediction import agreement, confidence_drop, correct

CLEAN = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
CORRUPTED = torch.tensor([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 3.0]])


def test_agreement():
    assert agreement(CLEAN, CORRUPTED).tolist() == [1, 0, 1]


def test_confidence_drop():
    def share(*logits):
        return torch.tensor(logits, dtype=torch.float32).softmax(0)[0].item()

    want = [share(2, 0, 0) - share(1, 0, 0), share(1, 0, 0) - share(0, 3, 0), 0]
    assert confidence_drop(CLEAN, CORRUPTED).tolist() == pytest.approx(want, abs=1e-6)


def test_confidence_is_computed_in_float32():
    drop = confidence_drop(CLEAN.bfloat16(), CORRUPTED.bfloat16())
    assert drop.dtype == torch.float32
    torch.testing.assert_close(drop, confidence_drop(CLEAN, CORRUPTED))


def test_correct():
    assert correct(CORRUPTED, torch.tensor([0, 1, 2])).tolist() == [1, 0, 1]
