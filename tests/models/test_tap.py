"""TAP against the reference values, against unfolding, on sequences, and in every setting it must survive."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from overfocus.models import DilationPredictor, TapEncoderLayer, TokenAwareAveragePooling, TokenPooling

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "tap_block.npz")
GRIDS = [(14, 14), (1, 5), (7, 3), (16, 17), (17, 40), (64, 30), (3, 50)]


def tap(channels: int = 6, **arguments: object) -> TokenAwareAveragePooling:
    torch.manual_seed(0)
    return TokenAwareAveragePooling(channels, **arguments).eval()


def unfolded_mixture(tokens: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """The textbook form: unfold the neighbourhoods of each dilation, average, weigh, add up."""
    image = tokens.transpose(1, 2).unflatten(2, grid)
    branches = [image]
    for dilation in range(1, weights.shape[-1]):
        neighbours = F.unfold(image, 3, dilation=dilation, padding=dilation)
        branches.append(neighbours.reshape(*image.shape[:2], 9, *grid).mean(2))
    mixed = (torch.stack(branches, -1) * weights.reshape(len(image), 1, *grid, -1)).sum(-1)
    return mixed.flatten(2).transpose(1, 2)


def test_equals_the_reference() -> None:
    module = TokenAwareAveragePooling(channels=8, branches=4).eval()
    state = {name: torch.from_numpy(GOLDEN[name]) for name in GOLDEN.files if name.startswith("predictor.")}
    state["predictor.proj.1.num_batches_tracked"] = torch.tensor(0)
    module.load_state_dict(state)
    tokens = torch.from_numpy(GOLDEN["x"]).flatten(2).transpose(1, 2)
    weights = module.predictor(tokens, (9, 7))
    assert torch.allclose(weights.unflatten(1, (9, 7)), torch.from_numpy(GOLDEN["weights"]), atol=1e-5)
    pooled = module(tokens, grid=(9, 7))
    assert torch.allclose(pooled.transpose(1, 2).unflatten(2, (9, 7)), torch.from_numpy(GOLDEN["y"]), atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("branches", [1, 2, 4, 8])
def test_equals_unfolding_in_value_and_gradient(grid: tuple[int, int], branches: int) -> None:
    torch.manual_seed(1)
    tokens = torch.randn(2, grid[0] * grid[1], 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, grid[0] * grid[1], branches, dtype=torch.float64).softmax(-1).requires_grad_()
    upstream = torch.randn_like(tokens)
    mixed = TokenPooling(3, branches)(tokens, weights, grid)
    expected = unfolded_mixture(tokens, weights, grid)
    if branches > 1:
        assert torch.allclose(mixed, expected, atol=1e-12)
        gradients = torch.autograd.grad(mixed, (tokens, weights), upstream)
        for gradient, wanted in zip(gradients, torch.autograd.grad(expected, (tokens, weights), upstream), strict=True):
            assert torch.allclose(gradient, wanted, atol=1e-12)
    else:
        assert mixed is tokens


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), branches=st.integers(2, 8))
def test_any_grid_equals_unfolding(rows: int, columns: int, branches: int) -> None:
    torch.manual_seed(rows * 41 + columns)
    tokens = torch.randn(1, rows * columns, 2)
    weights = torch.rand(1, rows * columns, branches).softmax(-1)
    mixed = TokenPooling(2, branches)(tokens, weights, (rows, columns))
    assert torch.allclose(mixed, unfolded_mixture(tokens, weights, (rows, columns)), atol=1e-5)


def test_predictor_is_two_convolutions_around_a_batch_norm() -> None:
    predictor = tap(branches=3).predictor
    names = {name: tuple(value.shape) for name, value in predictor.state_dict().items()}
    assert names.pop("proj.0.weight") == (3, 6, 3, 3)
    assert names.pop("proj.2.weight") == (3, 3, 3, 3)
    assert set(names) == {f"proj.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    tokens = torch.randn(2, 20, 6)
    first, norm, second = predictor.proj
    image = tokens.transpose(1, 2).unflatten(2, (4, 5))
    logits = F.conv2d(F.conv2d(image, first.weight, padding=1) / np.sqrt(1 + norm.eps), second.weight, padding=1)
    expected = logits.softmax(1).permute(0, 2, 3, 1).flatten(1, 2)
    assert torch.allclose(predictor(tokens, (4, 5)), expected, atol=1e-5)


def test_prefix_tokens_stay_and_enter_no_neighbourhood() -> None:
    module = tap()
    tokens = torch.randn(2, 5 + 12, 6)
    pooled = module(tokens, grid=(3, 4), prefix_tokens=5)
    assert torch.equal(pooled[:, :5], tokens[:, :5])
    assert torch.equal(pooled[:, 5:], module(tokens[:, 5:], grid=(3, 4)))


def test_one_branch_changes_nothing_and_trains_nothing() -> None:
    module = tap(branches=1)
    tokens = torch.randn(2, 12, 6)
    assert torch.equal(module(tokens, grid=(3, 4)), tokens)
    assert len(module.state_dict()) == 7
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("pooling", ["average", "max", "gaussian", "learned"])
def test_pooling_of_one_branch_alone(pooling: str) -> None:
    torch.manual_seed(0)
    grid, dilation = (6, 5), 2
    image = torch.randn(2, 3, *grid)
    padded = F.pad(image, [dilation] * 4)
    shifted = torch.stack(
        [padded[:, :, y : y + 6, x : x + 5] for y in range(0, 5, dilation) for x in range(0, 5, dilation)], dim=-1
    )
    binomial = torch.tensor([1, 2, 1, 2, 4, 2, 1, 2, 1]) / 16
    expected = (shifted * binomial).sum(-1) if pooling == "gaussian" else shifted.mean(-1)
    if pooling == "max":
        padded = F.pad(image, [dilation] * 4, value=-torch.inf)
        windows = [padded[:, :, y : y + 6, x : x + 5] for y in range(0, 5, dilation) for x in range(0, 5, dilation)]
        expected = torch.stack(windows, dim=-1).amax(-1)
    only = torch.zeros(2, 30, 4)
    only[..., dilation] = 1
    pooled = TokenPooling(3, 4, pooling)(image.flatten(2).transpose(1, 2), only, grid)
    assert torch.allclose(pooled.transpose(1, 2).unflatten(2, grid), expected, atol=1e-6)


def test_learned_pooling_trains_its_kernels() -> None:
    module = tap(branches=3, pooling="learned")
    assert module.pool.kernels.shape == (2, 6, 1, 3, 3)
    module(torch.randn(2, 20, 6), grid=(4, 5)).square().sum().backward()
    assert module.pool.kernels.grad.abs().min() > 0


@pytest.mark.parametrize("pooling", ["max", "gaussian"])
def test_state_dict_tells_a_pooling_without_parameters(pooling: str) -> None:
    state = tap(pooling=pooling).state_dict()
    assert f"pool.{pooling}" in state
    with pytest.raises(RuntimeError, match=f"pool.{pooling}"):
        tap().load_state_dict(state)


def test_favour_identity_keeps_tokens_and_can_be_trained() -> None:
    torch.manual_seed(0)
    module = TokenAwareAveragePooling(8, branches=4)
    module.predictor.favour_identity()
    tokens, target = torch.randn(4, 36, 8), torch.randn(4, 36, 8)
    start = module(tokens, grid=(6, 6))
    assert torch.allclose(start, tokens, atol=1e-5)
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.01)
    for _ in range(2):
        optimiser.zero_grad()
        (module(tokens, grid=(6, 6)) - target).square().mean().backward()
        optimiser.step()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())


def test_autocast_stays_close() -> None:
    module = tap(32)
    tokens = torch.randn(2, 196, 32)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = module(tokens, grid=(14, 14))
    assert torch.allclose(pooled.float(), module(tokens, grid=(14, 14)), atol=0.05)


def test_bfloat16_module() -> None:
    module = tap(32)
    tokens = torch.randn(2, 900, 32)
    expected = module(tokens, grid=(30, 30))
    pooled = module.to(torch.bfloat16)(tokens.bfloat16(), grid=(30, 30))
    assert pooled.dtype == torch.bfloat16
    assert torch.allclose(pooled.float(), expected, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"branches": 0}, "expected at least 1 branch of pooling, got 0"),
        ({"pooling": "median"}, "expected pooling to be one of average, max, gaussian, learned, got 'median'"),
        ({"axes": 3}, "expected 2 axes"),
    ],
)
def test_refuses_what_it_cannot_build(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenAwareAveragePooling(6, **arguments)


def test_refuses_a_grid_that_does_not_fit() -> None:
    tokens = torch.randn(1, 13, 6)
    with pytest.raises(ValueError, match=r"expected a grid that holds the 13 tokens given, got 3 × 4 = 12; .*prefix_tokens"):
        tap()(tokens, grid=(3, 4))
    with pytest.raises(ValueError, match=r"expected grid=\(rows, columns\) of the 12 patch tokens, got none"):
        tap()(tokens, prefix_tokens=1)
    with pytest.raises(ValueError, match=r"expected a grid of \(rows, columns\), got \(13,\)"):
        DilationPredictor(6)(tokens, (13,))


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
