"""Norm and prediction metrics by hand and against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overfocus.metrics.formulas import agreement, confidence_drop, correct, high_norm_tokens, norm_metrics


def test_by_hand():
    norms = torch.tensor([[1.0, 2.0, 1.0, 8.0], [2.0, 2.0, 2.0, 2.0]])
    received = torch.tensor([[0.1, 0.2, 0.1, 0.6], [0.25, 0.25, 0.25, 0.25]])
    values = norm_metrics(norms, received)
    assert values["token_norm"].tolist() == [3.0, 2.0]
    torch.testing.assert_close(values["norm_ratio"], torch.tensor([8 / 1.5, 1.0]))
    assert values["outlier_share"].tolist() == [0.25, 0.0]
    assert values["outlier_received"][0] == 0.6
    assert bool(values["outlier_received"][1].isnan()), "no outlier, nothing to receive"


def test_without_received_attention():
    values = norm_metrics(torch.tensor([[1.0, 1.0, 9.0]]))
    assert bool(values["outlier_received"].isnan().all())
    assert values["outlier_share"].tolist() == [torch.tensor(1 / 3).item()]


@given(st.integers(1, 40), st.integers(0, 1000))
def test_against_numpy(tokens, seed):
    norms = np.random.default_rng(seed).lognormal(sigma=1.2, size=(3, tokens)).astype(np.float32)
    median = np.median(norms, axis=1, keepdims=True)
    values = norm_metrics(torch.from_numpy(norms))
    np.testing.assert_allclose(values["norm_ratio"], norms.max(1) / median[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(high_norm_tokens(torch.from_numpy(norms)), norms > np.float32(3) * median)
    assert bool((values["norm_ratio"] >= 1).all())


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
