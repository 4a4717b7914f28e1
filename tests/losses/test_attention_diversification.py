"""ADL on given maps: the reference values, batches of one, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from overfocus.losses import AttentionDiversificationLoss, diversify

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "adl.npz")


def reference_maps() -> list[torch.Tensor]:
    return [torch.from_numpy(GOLDEN[f"logits_{layer}"]).softmax(-1) for layer in range(3)]


@pytest.mark.parametrize("threshold", [1, 2, 4])
def test_equals_the_reference(threshold: int) -> None:
    logits = [torch.from_numpy(GOLDEN[f"logits_{layer}"]).requires_grad_() for layer in range(3)]
    loss = AttentionDiversificationLoss(threshold)([scores.softmax(-1) for scores in logits])
    loss.backward()
    assert loss.item() == pytest.approx(float(GOLDEN[f"adl_tau{threshold}"]), abs=1e-5)
    expected = torch.from_numpy(GOLDEN[f"grad_tau{threshold}_layer0_image0_head0"])
    assert torch.allclose(logits[0].grad[0, 0], expected, atol=1e-7)
    assert expected.abs().max() > 1e-4


def test_an_image_alone_counts_as_in_a_batch() -> None:
    """The reference gives exactly 0 for a batch of one."""
    loss = AttentionDiversificationLoss()
    whole = loss(reference_maps())
    alone = [loss([weights[image : image + 1] for weights in reference_maps()]) for image in range(2)]
    assert all(0.1 < value.item() < 1 for value in alone)
    assert torch.allclose(torch.stack(alone).mean(), whole, atol=1e-6)


def test_rows_that_all_look_at_one_key_are_the_worst() -> None:
    weights = torch.zeros(1, 2, 10, 10)
    weights[..., 3] = 1
    assert AttentionDiversificationLoss()([weights]).item() == pytest.approx(1, abs=1e-5)


def test_rows_that_each_look_elsewhere_are_the_best() -> None:
    assert AttentionDiversificationLoss()([torch.eye(10).expand(1, 2, 10, 10)]).item() == 0


def test_prefix_tokens_are_left_out() -> None:
    weights = reference_maps()[0]
    expected = AttentionDiversificationLoss()([weights[:, :, 2:, 2:]])
    assert torch.equal(AttentionDiversificationLoss()([weights], prefix_tokens=2), expected)


@pytest.mark.parametrize("threshold", [0, -1.0, float("nan")])
def test_refuses_a_threshold_that_is_not_above_zero(threshold: float) -> None:
    message = rf"expected a threshold above 0 .*the paper uses 2\), got {threshold}"
    with pytest.raises(ValueError, match=message):
        AttentionDiversificationLoss(threshold)
    with pytest.raises(ValueError, match=message), diversify(torch.nn.Identity(), threshold=threshold):
        pass


def test_refuses_what_are_no_maps() -> None:
    loss = AttentionDiversificationLoss()
    with pytest.raises(ValueError, match="expected the attention of at least one layer, got none"):
        loss([])
    with pytest.raises(
        ValueError, match=r"expected attention weights \(batch, heads, tokens, tokens\) .*, got shape \(2, 9, 9\)"
    ):
        loss([torch.rand(2, 9, 9)])
    with pytest.raises(ValueError, match=r"with more than 9 tokens, got shape \(1, 2, 9, 9\)"):
        loss([torch.rand(1, 2, 9, 9)], prefix_tokens=9)
