"""Fused attention with masks, causal, grouped and scaled, against softmax in float64 from its definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import overfocus


class Fused(nn.Module):
    """Fused attention over projections, with whatever arguments torch takes."""

    def __init__(self, width=8):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        for layer in self.children():
            nn.init.normal_(layer.weight, 0, 0.7)

    def forward(self, queries, keys, **arguments):
        return F.scaled_dot_product_attention(self.query(queries), self.key(keys), self.value(keys), **arguments)


def softmax(model, queries, keys, mask=None, causal=False, scale=None):
    """Weights (batch, heads, queries, keys) in float64 by numpy; rows that hide every key are zero."""
    query = queries.double().numpy() @ model.query.weight.detach().double().numpy().T
    key = keys.double().numpy() @ model.key.weight.detach().double().numpy().T
    key = np.repeat(key, query.shape[1] // key.shape[1], axis=1)
    scores = query @ key.swapaxes(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    if mask is not None:
        mask = mask.numpy()
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    highest = scores.max(-1, keepdims=True)
    exponentials = np.exp(scores - np.where(np.isfinite(highest), highest, 0))
    return exponentials / np.maximum(exponentials.sum(-1, keepdims=True), 1e-300)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    grouped=st.booleans(),
    queries=st.integers(1, 9),
    keys=st.integers(1, 9),
    form=st.sampled_from(["none", "causal", "bool", "float", "row", "batch"]),
    scale=st.one_of(st.none(), st.floats(0.05, 2.0)),
    seed=st.integers(0, 1000),
)
def test_weights_by_definition(batch, heads, grouped, queries, keys, form, scale, seed):
    torch.manual_seed(seed)
    model = Fused()
    shared = 1 if grouped else heads
    x, y = torch.randn(batch, heads, queries, 8), torch.randn(batch, shared, keys, 8)
    mask = {
        "bool": torch.rand(queries, keys) > 0.4,
        "float": torch.randn(queries, keys),
        "row": torch.randn(batch, 1, 1, keys),
        "batch": torch.rand(batch, heads, queries, keys) > 0.4,
    }.get(form)
    arguments = {"attn_mask": mask, "is_causal": form == "causal", "scale": scale, "enable_gqa": grouped}
    with torch.no_grad():
        plain = model(x, y, **arguments)
        with overfocus.capture(model) as captured:
            assert torch.equal(model(x, y, **arguments).nan_to_num(), plain.nan_to_num())
    (attention,) = captured.maps
    expected = softmax(model, x, y, mask, form == "causal", scale)
    assert attention.shape == (batch, heads, queries, keys)
    np.testing.assert_allclose(attention.weights.numpy(), expected, rtol=0, atol=2e-6)
    blocks = torch.cat(list(attention.chunks(4)), dim=2)
    np.testing.assert_allclose(blocks.numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_verified_with_masks(mask):
    torch.manual_seed(0)
    model = Fused()
    x = torch.randn(2, 2, 6, 8)
    masks = {"bool": torch.ones(6, 6, dtype=torch.bool).tril(), "float": torch.randn(2, 1, 6, 6)}
    verification = overfocus.verify(model, {"queries": x, "keys": x, "attn_mask": masks.get(mask), "scale": 0.9})
    assert verification.passed


def test_a_query_that_may_see_nothing_has_an_empty_row():
    torch.manual_seed(0)
    model = Fused()
    x = torch.randn(1, 1, 4, 8)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2] = False
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(x, x, attn_mask=mask)
    weights = captured.maps[0].weights
    assert torch.equal(weights[0, 0, 2], torch.zeros(4))
    torch.testing.assert_close(weights[0, 0, [0, 1, 3]].sum(-1), torch.ones(3))


def test_keyword_and_positional_arguments():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 5, 8)
    mask = torch.randn(5, 5)

    class Spelled(nn.Module):
        def __init__(self, call):
            super().__init__()
            self.call = call

        def forward(self, x):
            return self.call(x)

    calls = [
        lambda x: F.scaled_dot_product_attention(x, k, v, mask, 0.0, False, scale=0.5),
        lambda x: F.scaled_dot_product_attention(query=x, key=k, value=v, attn_mask=mask, scale=0.5),
        lambda x: torch.nn.functional.scaled_dot_product_attention(x, key=k, value=v, attn_mask=mask, scale=0.5),
        lambda x: torch._C._nn.scaled_dot_product_attention(x, k, v, mask, scale=0.5),
    ]
    expected = (q @ k.mT * 0.5 + mask).softmax(-1)
    for call in calls:
        with torch.no_grad(), overfocus.capture(Spelled(call)) as captured:
            captured.tracer.stack.model(q)
        torch.testing.assert_close(captured.maps[0].weights, expected)
