"""A toy metric through the public API: measured on every kind of map, with and without pairs, found by its title."""

from dataclasses import replace

import pytest
import torch

from overfocus.metrics import CATALOGUE, METRICS, STABILITY, ForwardMeasurement, Metric, blocks, measure, select_metrics
from overfocus.metrics.catalogue import title_of


@pytest.fixture(autouse=True)
def forget():
    """The catalogue is as it was afterwards."""
    before = dict(CATALOGUE)
    yield
    CATALOGUE.clear()
    CATALOGUE.update(before)


def largest_weight(weights, prefix_tokens):
    """One weight takes all."""
    return weights.mean(1)[:, prefix_tokens:, prefix_tokens:].amax((1, 2))


def largest_change(clean, corrupted):
    """A weight has changed."""
    return (clean.mean(1) - corrupted.mean(1)).abs().amax((1, 2))


def test_function_becomes_a_row():
    row, pair = select_metrics([largest_weight, largest_change])
    assert (row.name, row.title, row.group, row.high) == ("largest_weight", "Largest weight", "custom", "One weight takes all.")
    assert (pair.group, pair.compares) == ("stability", True)
    assert title_of("largest_weight") == "Largest weight"
    assert CATALOGUE["largest_weight"] is row


def test_is_measured_beside_the_built_in_ones(draw_weights, make_map):
    weights = draw_weights(4, 3, 17, 17)
    attention = make_map(weights, prefix_tokens=1, grid=(4, 4))
    values = measure(attention, metrics=["gini", largest_weight, largest_change], reference=[0, 0, 2, 2])
    assert list(values) == ["gini", "largest_weight", "largest_change"]
    torch.testing.assert_close(values["gini"], METRICS["gini"](weights, prefix_tokens=1), rtol=0, atol=1e-6)
    torch.testing.assert_close(values["largest_weight"], largest_weight(weights, 1))
    torch.testing.assert_close(values["largest_change"][1], largest_change(weights[:1], weights[1:2])[0])
    assert values["largest_change"][[0, 2]].isnan().all()


def test_without_pairs_there_is_nothing_to_compare(draw_weights, make_map):
    attention = make_map(draw_weights(2, 3, 16, 16))
    assert list(measure(attention, metrics=[largest_weight, largest_change, "top_overlap"])) == ["largest_weight"]


def test_per_head_and_in_blocks(draw_weights, make_map, monkeypatch):
    weights = draw_weights(3, 2, 17, 17)
    attention = make_map(weights, prefix_tokens=1, grid=(4, 4))
    monkeypatch.setattr(blocks, "PROCESSOR", replace(blocks.PROCESSOR, images=1))
    values = measure(attention, metrics=[largest_weight], per_head=True)["largest_weight"]
    for head in range(2):
        torch.testing.assert_close(values[:, head], largest_weight(weights[:, head : head + 1], 1))


def test_windows_and_padding(draw_weights, make_map):
    """Padding tokens are taken out before the function sees the windows; the mean over windows is taken after."""
    seen = []

    def size(weights, prefix_tokens, grid):
        seen.append((tuple(weights.shape), prefix_tokens, grid))
        return torch.full((len(weights),), float(weights.shape[-1]))

    partition = torch.tensor([[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]])
    weights = draw_weights(8, 2, 4, 4)
    attention = make_map(weights, "window", windows=4, grid=(2, 2), partition=partition, image_grid=(3, 3))
    assert measure(attention, metrics=[size])["size"].tolist() == [(4 + 2 + 2 + 1) / 4] * 2
    assert sorted(shape for shape, _, _ in seen) == [(2, 2, 1, 1), (2, 2, 2, 2), (2, 2, 2, 2), (2, 2, 4, 4)]
    assert {(prefix, grid) for _, prefix, grid in seen} == {(0, None)}


def test_row_says_on_which_kinds(draw_weights, make_map):
    row = Metric(name="toy", function=lambda weights: weights.amax((1, 2, 3)), kinds=("class",))
    assert list(measure(make_map(draw_weights(2, 3, 16, 16)), metrics=[row])) == []
    attention = make_map(draw_weights(2, 3, 1, 17), "class", prefix_tokens=1, key_prefix_tokens=1)
    assert list(measure(attention, metrics=[row])) == ["toy"]


@pytest.mark.parametrize("returned", [1.0, torch.zeros(3), torch.zeros(2, 1)])
def test_one_value_each_is_expected(returned, draw_weights, make_map):
    def toy(weights):
        del weights
        return returned

    with pytest.raises(ValueError, match=r"expected metric toy to return a tensor of shape \(2,\), one value per map; got"):
        measure(make_map(draw_weights(2, 3, 16, 16)), metrics=[toy])


def test_forward_has_a_column_for_each(draw_weights, make_map):
    """In the order asked for; NaN where a metric does not fit the kind."""
    measurement = ForwardMeasurement([largest_weight, "diversification", "norm_ratio", largest_change])
    assert measurement.names == ["largest_weight", "diversification", "norm_ratio", "largest_change"]
    measurement.begin([0, 0])
    weights = draw_weights(2, 3, 16, 16)
    measurement.add(make_map(weights))
    measurement.add(make_map(draw_weights(2, 3, 16, 4), "pooled"))
    whole, pooled = measurement.finish()
    assert whole.values.shape == pooled.values.shape == (2, 1, 4)
    torch.testing.assert_close(torch.from_numpy(whole.values[:, 0, 0]), largest_weight(weights, 0))
    assert [bool(column) for column in torch.from_numpy(pooled.values[1, 0]).isnan()] == [False, True, True, False]


@pytest.mark.parametrize("name", [*METRICS, *STABILITY])
def test_any_built_in_metric_alone(name, draw_weights, make_map):
    attention = make_map(draw_weights(2, 3, 17, 17), prefix_tokens=1, grid=(4, 4))
    alone, beside = (measure(attention, metrics=metrics, reference=[0, 0])[name] for metrics in ([name], None))
    torch.testing.assert_close(alone, beside, rtol=0, atol=0, equal_nan=True)
