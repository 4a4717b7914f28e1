"""What holds for every map: ranges, values at the ends of the ranges, and indifference to the order of tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overfocus.metrics import CATALOGUE, METRICS, STABILITY, received_attention, uniform_value

SLACK = 1e-5


@st.composite
def attention(draw, images=1):
    """(weights of each image, prefix tokens, grid): softmax of scores of any sharpness, some of them masked."""
    grid = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    prefix, heads = draw(st.integers(0, 3)), draw(st.integers(1, 4))
    tokens = grid[0] * grid[1] + prefix
    sharpness = draw(st.floats(0, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randn(images, heads, tokens, tokens, generator=generator) * sharpness
    masked = torch.rand(scores.shape, generator=generator) < draw(st.floats(0, 0.9))
    masked[..., 0] = False  # a row sees at least one key
    return scores.masked_fill(masked, -torch.inf).softmax(-1), prefix, grid


def keywords(name, prefix, grid):
    return {"prefix_tokens": prefix} | ({"grid": grid} if name == "attention_distance" else {})


def bounds(name, tokens, grid):
    known = {"k/N": max(1, round(0.05 * tokens)) / tokens, "1/N": 1 / tokens, "N": tokens, "1 − 1/N": 1 - 1 / tokens,
             "diagonal of the patch grid": math.hypot(grid[0] - 1, grid[1] - 1), "−1": -1.0}  # fmt: skip
    metric = CATALOGUE[name]
    return [known[end] if end in known else float(end) for end in (metric.lowest, metric.highest)]


@settings(max_examples=60, deadline=None)
@given(attention())
@pytest.mark.parametrize("name", METRICS)
def test_metric_stays_in_its_range(name, drawn):
    weights, prefix, grid = drawn
    value = METRICS[name](weights, **keywords(name, prefix, grid)).item()
    low, high = bounds(name, grid[0] * grid[1], grid)
    assert math.isnan(value) or low - SLACK <= value <= high + SLACK * max(1, high)


@settings(max_examples=60, deadline=None)
@given(attention(images=2))
@pytest.mark.parametrize("name", STABILITY)
def test_stability_stays_in_its_range_and_is_symmetric(name, drawn):
    weights, prefix, grid = drawn
    value = STABILITY[name](weights[:1], weights[1:], prefix_tokens=prefix).item()
    low, high = bounds(name, grid[0] * grid[1], grid)
    assert math.isnan(value) or low - SLACK <= value <= high + SLACK
    back = STABILITY[name](weights[1:], weights[:1], prefix_tokens=prefix).item()
    assert back == pytest.approx(value, abs=SLACK, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(attention(), st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", [name for name in METRICS if name != "attention_distance"])
def test_order_of_patches_does_not_matter(name, drawn, random):
    weights, prefix, _ = drawn
    tokens = weights.shape[-1]
    order = [*range(prefix), *random.sample(range(prefix, tokens), tokens - prefix)]
    shuffled = weights[..., order, :][..., order]
    value, again = (METRICS[name](w, prefix_tokens=prefix).item() for w in (weights, shuffled))
    assert again == pytest.approx(value, abs=SLACK, rel=SLACK, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(attention(images=2), st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", ["rank_correlation", "attention_cosine", "js_divergence", "received_shift"])
def test_order_of_patches_does_not_matter_to_stability(name, drawn, random):
    weights, prefix, _ = drawn
    tokens = weights.shape[-1]
    order = [*range(prefix), *random.sample(range(prefix, tokens), tokens - prefix)]
    shuffled = weights[..., order, :][..., order]
    value, again = (STABILITY[name](w[:1], w[1:], prefix_tokens=prefix).item() for w in (weights, shuffled))
    # a few maps hold columns that agree to the last digits, whose order then is a matter of rounding
    assert again == pytest.approx(value, abs=0.02 if name == "rank_correlation" else SLACK, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(attention())
def test_profile_sums_to_one(drawn):
    weights, prefix, _ = drawn
    profile = received_attention(weights, prefix_tokens=prefix)
    assert profile.isnan().all() or profile.sum().item() == pytest.approx(1, abs=SLACK)
    assert not (profile < 0).any()


@pytest.mark.parametrize(("grid", "prefix"), [((4, 4), 0), ((7, 7), 1), ((14, 14), 5), ((3, 5), 1), ((1, 1), 0)])
@pytest.mark.parametrize("name", METRICS)
def test_uniform_attention_has_the_value_that_is_told(name, grid, prefix):
    tokens = grid[0] * grid[1] + prefix
    weights = torch.full((1, 3, tokens, tokens), 1 / tokens)
    value = METRICS[name](weights, **keywords(name, prefix, grid)).item()
    told = uniform_value(name, tokens - prefix, prefix_tokens=prefix, grid=grid)
    assert value == pytest.approx(told, abs=SLACK, nan_ok=True)


@pytest.mark.parametrize("tokens", [4, 49, 50, 196])
@pytest.mark.parametrize("name", STABILITY)
def test_uniform_attention_compared_with_itself_has_the_value_that_is_told(name, tokens):
    weights = torch.full((1, 3, tokens, tokens), 1 / tokens)
    value = STABILITY[name](weights, weights.clone()).item()
    assert value == pytest.approx(uniform_value(name, tokens), abs=1e-6, nan_ok=True)


def test_one_token_takes_all():
    weights = torch.zeros(1, 2, 20, 20)
    weights[..., 7] = 1
    values = {name: function(weights, **keywords(name, 0, (4, 5))).item() for name, function in METRICS.items()}
    assert values["top_share"] == pytest.approx(1)
    assert values["max_ratio"] == pytest.approx(20)
    assert values["gini"] == pytest.approx(0.95)
    assert values["effective_tokens"] == pytest.approx(0.05)
    assert values["row_entropy"] == pytest.approx(0)
    assert values["token_cosine"] == pytest.approx(1)
    assert values["diversification"] == pytest.approx(1)


def test_every_token_looks_at_itself():
    weights = torch.eye(20).expand(1, 2, 20, 20)
    values = {name: function(weights, **keywords(name, 0, (4, 5))).item() for name, function in METRICS.items()}
    assert values["gini"] == pytest.approx(0)
    assert values["effective_tokens"] == pytest.approx(1)
    assert values["row_entropy"] == pytest.approx(0)
    assert values["token_cosine"] == pytest.approx(0)
    assert values["diversification"] == pytest.approx(0)  # the mean row is even, nothing in it exceeds 2/N
    assert values["attention_distance"] == pytest.approx(0)


def test_ties_go_to_the_lower_index():
    """Uniform attention has the first k tokens as its most attended ones."""
    uniform = torch.full((1, 1, 40, 40), 1 / 40)
    onto = [torch.zeros(1, 1, 40, 40) for _ in range(2)]
    onto[0][..., [0, 1]] = 0.5
    onto[1][..., [38, 39]] = 0.5
    assert STABILITY["top_overlap"](uniform, onto[0]).item() == 1
    assert STABILITY["top_overlap"](uniform, onto[1]).item() == 0
