"""TAP along one axis, by itself and in torch's encoder."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from overfocus.models import TapEncoderLayer, TokenAwareAveragePooling


def encoder(**arguments: object) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = TapEncoderLayer(16, 4, dim_feedforward=32, dropout=0.0, **arguments)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


@pytest.mark.parametrize("length", [1, 9, 100])
def test_mixture_along_one_axis(length: int) -> None:
    torch.manual_seed(0)
    module = TokenAwareAveragePooling(6, branches=4, axes=1).eval()
    tokens = torch.randn(2, length, 6)
    sequence = tokens.transpose(1, 2)
    branches = [sequence]
    for dilation in (1, 2, 3):
        kernel = torch.full((6, 1, 3), 1 / 3)
        branches.append(F.conv1d(sequence, kernel, padding=dilation, dilation=dilation, groups=6))
    weights = module.predictor.proj(sequence).softmax(1)
    expected = sum(weights[:, k : k + 1] * branch for k, branch in enumerate(branches))
    assert torch.allclose(module(tokens), expected.transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("pooling", ["average", "max", "gaussian", "learned"])
def test_every_pooling_runs_and_keeps_the_prefix(pooling: str) -> None:
    module = TokenAwareAveragePooling(6, pooling=pooling, axes=1).eval()
    tokens = torch.randn(2, 31, 6)
    pooled = module(tokens, prefix_tokens=1)
    assert torch.equal(pooled[:, 0], tokens[:, 0])
    assert not torch.allclose(pooled[:, 1:], tokens[:, 1:], atol=1e-2)


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_with_one_branch_is_torchs_encoder(norm_first: bool) -> None:
    ours = encoder(batch_first=True, norm_first=norm_first, branches=1)
    layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, dropout=0.0, batch_first=True, norm_first=norm_first)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    theirs.load_state_dict({name: value for name, value in ours.state_dict().items() if "dilation_predictor" not in name})
    tokens = torch.randn(3, 11, 16)
    assert torch.allclose(ours(tokens), theirs(tokens), atol=1e-5)


def test_encoder_trains_with_tap() -> None:
    model = encoder(batch_first=True, norm_first=True).train()
    tokens = torch.randn(3, 11, 16)
    assert not torch.allclose(model(tokens), encoder(batch_first=True, norm_first=True, branches=1)(tokens), atol=1e-3)
    model(tokens).square().sum().backward()
    assert all(layer.dilation_predictor.proj[0].weight.grad.abs().sum() > 0 for layer in model.layers)


def test_padding_does_not_leak_into_other_tokens() -> None:
    model = encoder(batch_first=True)
    tokens = torch.randn(2, 12, 16)
    padding = torch.zeros(2, 12, dtype=torch.bool)
    padding[0, 7:] = True
    with torch.no_grad():
        first = model(tokens, src_key_padding_mask=padding)
        tokens[0, 7:] = 100.0
        second = model(tokens, src_key_padding_mask=padding)
    assert torch.equal(first[0, :7], second[0, :7])
    assert torch.equal(first[1], second[1])


def test_sequence_first_and_unbatched() -> None:
    batch_first, sequence_first = encoder(batch_first=True), encoder(batch_first=False)
    tokens = torch.randn(2, 12, 16)
    expected = batch_first(tokens)
    assert torch.allclose(sequence_first(tokens.transpose(0, 1)).transpose(0, 1), expected, atol=1e-5)
    assert torch.allclose(batch_first(tokens[0]), expected[0], atol=1e-5)


def test_refuses_causal_attention() -> None:
    model = encoder(batch_first=True)
    with pytest.raises(ValueError, match="expected attention in both directions, got is_causal=True"):
        model(torch.randn(2, 5, 16), mask=nn.Transformer.generate_square_subsequent_mask(5), is_causal=True)
