"""ADL against its textbook form in value and gradient, and in blocks of every size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import overfocus.losses.attention_diversification as blocks
from overfocus.capturing.sources import ArrangedWeights, Arrangement, QueryKeyWeights
from overfocus.losses import AttentionDiversificationLoss, diversify
from overfocus.losses.attention_diversification import arrange, row_alignment

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


Textbook = Callable[..., Tensor]
HEADS = Arrangement((("image",), ("head",)), ((-1,), (3,)))


def attended(query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(q kᵀ · scale + mask) in one go."""
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def sharp(*shape: int, seed: int = 0) -> Tensor:
    return (2.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def queries_and_keys(images: int = 5, tokens: int = 14, width: int = 8) -> tuple[Tensor, Tensor]:
    """Keys with a common direction, so that some of them receive much from all."""
    query = sharp(images, 3, tokens, width)
    key = sharp(images, 3, tokens, width, seed=1)
    with torch.no_grad():
        query += 1.0
        key[:, :, ::4] += 1.0
    return query, key


def assert_same(ours: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    assert 0.05 < float(expected.detach()) < 0.999
    assert torch.allclose(ours, expected, atol=1e-6)
    for gradient, wanted in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert gradient.dtype == wanted.dtype
        assert wanted.abs().max() > 1e-5
        assert torch.allclose(gradient, wanted, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("threshold", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_queries_and_keys(threshold: float, prefix: int, textbook: Textbook) -> None:
    query, key = queries_and_keys(tokens=20)
    ours = row_alignment(ArrangedWeights(QueryKeyWeights(query, key), HEADS), threshold, prefix, prefix)
    assert_same(ours, textbook(attended(query, key), threshold, prefix, prefix), [query, key])


@pytest.mark.parametrize(("block", "limit"), [(1, 2**22), (1500, 2**22), (1, 1), (1, 100), (2**18, 2**22)])
def test_blocks_of_images_and_queries_change_nothing(
    block: int, limit: int, monkeypatch: pytest.MonkeyPatch, textbook: Textbook
) -> None:
    monkeypatch.setattr(blocks, "CPU_BLOCK", block)
    monkeypatch.setattr(blocks, "LIMIT", limit)
    query, key = queries_and_keys()
    bias = sharp(1, 3, 14, 14, seed=2)
    ours = row_alignment(ArrangedWeights(QueryKeyWeights(query, key, bias), HEADS), 2.0, 1, 1)
    assert_same(ours, textbook(attended(query, key, bias), 2.0, 1, 1), [query, key, bias])


@pytest.mark.parametrize("shape", [(1, 3, 14, 14), (14, 14), (5, 3, 14, 14), (5, 1, 1, 14), (3, 14, 14)])
def test_additive_masks_get_gradients(shape: tuple[int, ...], textbook: Textbook) -> None:
    query, key = queries_and_keys()
    mask = sharp(*shape, seed=2)
    ours = row_alignment(ArrangedWeights(QueryKeyWeights(query, key, mask, scale=0.3), HEADS), 2.0)
    assert_same(ours, textbook(attended(query, key, mask, 0.3)), [query, key, mask])


def test_boolean_masks(textbook: Textbook) -> None:
    query, key = queries_and_keys()
    mask = torch.rand(5, 1, 14, 14, generator=torch.Generator().manual_seed(0)) > 0.3
    ours = row_alignment(ArrangedWeights(QueryKeyWeights(query, key, mask), HEADS), 2.0)
    assert_same(ours, textbook(attended(query, key, mask)), [query, key])


def test_fewer_key_heads_and_causal_masks(textbook: Textbook) -> None:
    query, _ = queries_and_keys()
    key = sharp(5, 1, 14, 8, seed=3)
    future = torch.ones(14, 14, dtype=torch.bool).tril()
    ours = row_alignment(ArrangedWeights(QueryKeyWeights(query, key, is_causal=True), HEADS), 1.0)
    assert_same(ours, textbook(attended(query, key, future), 1.0), [query, key])


def test_fewer_keys_than_queries(textbook: Textbook) -> None:
    query, _ = queries_and_keys()
    key = sharp(5, 3, 6, 8, seed=3)
    ours = row_alignment(ArrangedWeights(QueryKeyWeights(query, key), HEADS), 1.0)
    assert_same(ours, textbook(attended(query, key), 1.0), [query, key])


def test_windows_inside_the_batch_and_reordered_tokens(textbook: Textbook) -> None:
    query, key = queries_and_keys(images=6)
    weights = attended(query, key)
    windows = Arrangement((("image", "window"), ("head",)), ((-1, 3), (3,)))
    assert_same(row_alignment(ArrangedWeights(QueryKeyWeights(query, key), windows), 2.0), textbook(weights), [query, key])
    order = torch.randperm(14, generator=torch.Generator().manual_seed(0))
    reordered = Arrangement((("window", "image"), ("head",)), ((3, -1), (3,)), query_order=order, key_order=order)
    ours = row_alignment(ArrangedWeights(QueryKeyWeights(query, key), reordered), 2.0, 2, 2)
    assert_same(ours, textbook(attended(query, key)[:, :, order][..., order], 2.0, 2, 2), [query, key])


def test_maps_of_the_model(textbook: Textbook) -> None:
    scores = sharp(5, 3, 14, 14)
    assert_same(row_alignment(arrange(scores.softmax(-1)), 1.5, 1, 1), textbook(scores.softmax(-1), 1.5, 1, 1), [scores])


def test_gradient_scales_with_what_comes_after() -> None:
    query, key = queries_and_keys()
    source = ArrangedWeights(QueryKeyWeights(query, key), HEADS)
    once = torch.autograd.grad(row_alignment(source, 2.0), query)[0]
    assert torch.allclose(torch.autograd.grad(-3 * row_alignment(source, 2.0), query)[0], -3 * once)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type_and_small_gradients(kind: torch.dtype, textbook: Textbook) -> None:
    query, key = (tensor.detach().to(kind).requires_grad_() for tensor in queries_and_keys())
    ours = row_alignment(ArrangedWeights(QueryKeyWeights(query, key), HEADS), 2.0)
    expected = textbook(attended(query.float(), key.float()))
    scale = 2.0**16  # as a gradient scaler has it
    gradient, wanted = (torch.autograd.grad(scale * loss, query)[0] for loss in (ours, expected))
    assert gradient.dtype == kind
    assert torch.allclose(gradient.float(), wanted.float(), rtol=0.02, atol=0.02 * float(wanted.abs().max()))


def test_nothing_above_the_threshold_is_zero_with_zero_gradient() -> None:
    query, key = torch.zeros(2, 3, 9, 4, requires_grad=True), torch.ones(2, 3, 9, 4, requires_grad=True)
    loss = row_alignment(ArrangedWeights(QueryKeyWeights(query, key), HEADS), 2.0)
    assert float(loss.detach()) == 0
    assert all(gradient.abs().max() == 0 for gradient in torch.autograd.grad(loss, [query, key]))


def test_only_what_needs_a_gradient_gets_one() -> None:
    query, key = queries_and_keys()
    loss = row_alignment(ArrangedWeights(QueryKeyWeights(query, key.detach()), HEADS), 2.0)
    assert torch.autograd.grad(loss, query)[0].abs().max() > 0
    with torch.no_grad():
        assert not row_alignment(ArrangedWeights(QueryKeyWeights(query, key), HEADS), 2.0).requires_grad
