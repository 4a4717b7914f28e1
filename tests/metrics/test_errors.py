"""What is refused, and in which words."""

import pytest
import torch

from overfocus.errors import CaptureError
from overfocus.metrics import METRICS, STABILITY, measure


def keywords(name):
    return {"grid": (4, 4)} if name == "attention_distance" else {}


@pytest.fixture
def weights(draw_weights):
    return draw_weights(2, 3, 16, 16)


@pytest.mark.parametrize("name", METRICS)
def test_nan_is_refused(name, weights):
    weights[1, 2, 3, 4] = torch.nan
    with pytest.raises(CaptureError, match="expected attention weights, got NaN"):
        METRICS[name](weights, **keywords(name))


@pytest.mark.parametrize("name", METRICS)
def test_rows_must_sum_to_one(name, weights):
    with pytest.raises(
        CaptureError, match=r"expected attention rows that sum to 1 within 0.001, got one that misses it by 0\.01"
    ):
        METRICS[name](weights * 1.01, **keywords(name))
    METRICS[name](weights * 1.0009, **keywords(name))


@pytest.mark.parametrize("name", METRICS)
def test_negative_weights_are_refused(name, weights):
    weights[0, :, 0] = 0
    weights[0, :, 0, :2] = torch.tensor([1.5, -0.5])
    with pytest.raises(CaptureError, match="expected attention weights ≥ 0, got a negative one"):
        METRICS[name](weights, **keywords(name))


@pytest.mark.parametrize("name", STABILITY)
@pytest.mark.parametrize("place", [0, 1])
def test_stability_refuses_what_is_no_attention(name, place, weights):
    pair = [weights, weights.clone()]
    pair[place][0, 0, 0, 0] = torch.nan
    with pytest.raises(CaptureError, match="got NaN"):
        STABILITY[name](*pair)


@pytest.mark.parametrize("name", STABILITY)
def test_stability_needs_one_shape(name, weights):
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3, 16, 16\) and \(1, 3, 16, 16\)"):
        STABILITY[name](weights, weights[:1])


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda weights: weights.masked_fill(weights == weights.max(), torch.nan), "expected attention weights, got NaN"),
        (lambda weights: weights * 0.9, r"rows that sum to 1 within 0.001, got one that misses it by 0\.1;"),
        (lambda weights: weights - 0.1 + 0.1 / 16 * 16 * torch.eye(16), "expected attention"),
        (lambda weights: (weights + torch.eye(16)) * 2 - weights - 2 * torch.eye(16).roll(1, 0), "got"),
    ],
)
def test_measure_names_the_module(spoil, words, chunk_size, weights, make_map):
    with pytest.raises(CaptureError, match=words) as raised:
        measure(make_map(spoil(weights)), chunk_size=chunk_size)
    assert str(raised.value).startswith("blocks.0.attn: ")
    assert "\n" not in str(raised.value)


def test_measure_refuses_negative_weights(make_map):
    weights = torch.tensor([[1.5, -0.5], [0.5, 0.5]]).expand(1, 1, 2, 2)
    with pytest.raises(CaptureError, match=r"blocks\.0\.attn: expected attention weights ≥ 0, got a negative one"):
        measure(make_map(weights))


def test_half_precision_may_miss_by_its_rounding(weights):
    for dtype in (torch.bfloat16, torch.float16):
        sharp = (weights * 40).softmax(-1)
        torch.testing.assert_close(METRICS["gini"](sharp.to(dtype)), METRICS["gini"](sharp), rtol=0, atol=0.01)
        assert METRICS["gini"](sharp.to(dtype)).dtype == torch.float32
    with pytest.raises(CaptureError, match="sum to 1"):
        METRICS["gini"]((weights * 0.9).to(torch.bfloat16))


def test_double_precision_stays(weights):
    sharp = weights.double() / weights.double().sum(-1, keepdim=True)
    for name, function in METRICS.items():
        assert function(sharp, **keywords(name)).dtype == torch.float64
    for function in STABILITY.values():
        assert function(sharp, sharp).dtype == torch.float64


@pytest.mark.parametrize("shape", [(16, 16), (2, 16, 16), (1, 2, 3, 16, 16)])
def test_four_axes_are_expected(shape):
    with pytest.raises(ValueError, match=r"expected weights of shape \(batch, heads, queries, keys\), got"):
        METRICS["gini"](torch.full(shape, 1 / 16))


def test_prefix_tokens_must_leave_patches(weights):
    with pytest.raises(ValueError, match="expected fewer prefix tokens than queries and keys, got 16 of 16 queries"):
        METRICS["gini"](weights, prefix_tokens=16)
    with pytest.raises(ValueError, match="got -1 of 16 queries"):
        METRICS["gini"](weights, prefix_tokens=-1)


def test_measured_map_must_hold_patches(weights, make_map):
    with pytest.raises(
        CaptureError, match=r"blocks\.0\.attn: expected patch tokens, got 16 queries and 16 keys of which 16 and 16"
    ):
        measure(make_map(weights, prefix_tokens=16))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5])
def test_top_fraction_is_a_share(fraction, weights, make_map):
    for call in (lambda: METRICS["top_share"](weights, top_fraction=fraction),
                 lambda: STABILITY["top_overlap"](weights, weights, top_fraction=fraction),
                 lambda: measure(make_map(weights), top_fraction=fraction)):  # fmt: skip
        with pytest.raises(ValueError, match=rf"expected top_fraction in \(0, 1\], got {fraction}"):
            call()


def test_distance_needs_a_grid_that_fits(weights):
    with pytest.raises(ValueError, match=r"expected grid=\(rows, columns\) of the patches, got None"):
        METRICS["attention_distance"](weights)
    with pytest.raises(ValueError, match=r"hold the 16 query and 16 key patches, got \(3, 4\) and \(3, 4\)"):
        METRICS["attention_distance"](weights, grid=(3, 4))


@pytest.mark.parametrize("reference", [[0], [0, 2], [-1, 0], [0, 0, 0]])
def test_reference_must_point_into_the_batch(reference, weights, make_map):
    with pytest.raises(ValueError, match="expected reference to hold the index of the clean counterpart of each of 2 images"):
        measure(make_map(weights), reference=torch.tensor(reference))
