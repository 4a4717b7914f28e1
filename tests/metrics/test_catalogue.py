"""The catalogue agrees with the functions, and reading it costs nothing."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from overfocus.metrics import CATALOGUE, METRICS, STABILITY, Metric, chance_level, select_metrics, uniform_value
from overfocus.metrics.catalogue import BUILT_IN, HEADINGS, Level, TokenCounts, mean_distance, top_count


def test_every_metric_is_described():
    of_attention = [metric.name for metric in BUILT_IN if metric.of_attention]
    assert of_attention == [*METRICS, *STABILITY]
    assert list(METRICS) == [
        "top_share", "max_ratio", "gini", "effective_tokens", "row_entropy", "prefix_share",
        "token_cosine", "diversification", "attention_distance",
    ]  # fmt: skip
    assert list(STABILITY) == ["top_overlap", "rank_correlation", "attention_cosine", "js_divergence", "received_shift"]
    for metric in BUILT_IN:
        texts = [metric.formula, metric.lowest, metric.highest, metric.unit, metric.high, metric.uniform, metric.chance]
        assert CATALOGUE[metric.name] is metric
        assert all(texts)
        assert metric.compares == (metric.name in STABILITY)
        assert (metric.identical is not None) or not metric.compares
        assert set(metric.kinds) <= {"global", "window", "pooled", "class"}


def test_titles_are_one_each():
    titles = [metric.title for metric in BUILT_IN]
    assert len(set(titles)) == len(titles)
    assert set(HEADINGS) >= {metric.group for metric in BUILT_IN}


def test_distance_from_equal():
    assert CATALOGUE["top_overlap"].distance(np.array([1.0, 0.25])).tolist() == [0, 0.75]
    assert CATALOGUE["js_divergence"].distance(0.25) == 0.25
    with pytest.raises(ValueError, match="gini is measured on one map"):
        CATALOGUE["gini"].distance(1.0)


def test_scale_of_layers():
    """0 and 1 of the form that is comparable between layers are the ends of the range, save for overlap and distance."""
    counts = TokenCounts(100, grid=(10, 10))
    for metric in BUILT_IN:
        if metric.scale and metric.name not in ("top_overlap", "attention_distance"):
            assert [end.value(counts) for end in metric.scale] == [metric.lowest.value(counts), metric.highest.value(counts)]
    assert [end.value(counts) for end in CATALOGUE["top_overlap"].scale] == [0.05, 1]


def test_row_survives_json():
    row = Metric(name="toy", title="Toy", lowest=Level("0"), overfocused="high", high="much", function=abs)
    again = Metric(**json.loads(json.dumps(row.describe())))
    assert again.describe() == row.describe()
    assert again.lowest.number == 0


@pytest.mark.parametrize(("given", "words"), [
    ([], "at least one metric"),
    ("gini", "metrics must be a list of"),
    (["ginny"], "got 'ginny'"),
    (["agreement"], "agreement is a score of the prediction"),
    (["gini", "gini"], "gini is given twice"),
    ([lambda weights: weights], "named functions"),
    ([3], r"got \[3\]"),
])  # fmt: skip
def test_wrong_selection_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        select_metrics(given)


def test_names_that_are_taken_are_refused():
    def gini(weights):
        return weights

    def image(weights):
        return weights

    def three(a, b, c):
        return a + b + c

    for function, words in ((gini, "name of a built-in metric"), (image, "no other column"), (three, "got 3 arguments")):
        with pytest.raises(ValueError, match=words):
            select_metrics([function])


def test_reading_the_catalogue_does_not_import_torch():
    code = "import sys; from overfocus.metrics import CATALOGUE, uniform_value; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_package_names_can_be_listed_and_unknown_ones_are_refused():
    import overfocus.metrics

    assert {"measure", "METRICS", "STABILITY", "CATALOGUE"} <= set(dir(overfocus.metrics))
    assert all(getattr(overfocus.metrics, name) is not None for name in overfocus.metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'metric'"):
        overfocus.metrics.metric  # noqa: B018


@pytest.mark.parametrize(
    ("tokens", "fraction", "count"), [(196, 0.05, 10), (49, 0.05, 2), (4, 0.05, 1), (1, 1.0, 1), (10, 1.0, 10)]
)
def test_top_count(tokens, fraction, count):
    assert top_count(tokens, fraction) == count


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (2, 2), (3, 4), (14, 14)])
def test_mean_distance(grid):
    places = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).double()
    between = (places[:, None] - places[None]).square().sum(-1).sqrt()
    assert mean_distance(grid) == pytest.approx(between.mean().item())


def test_chance_of_an_overlap():
    """Drawing k of N tokens twice, at random, k·k/N of them coincide."""
    generator = torch.Generator().manual_seed(0)
    marks = torch.rand(20000, 40, generator=generator).argsort(-1)[:, :4]
    hit = (marks < 4).double().sum(-1).mean().item() / 4
    assert chance_level("top_overlap", 40, top_fraction=0.1) == pytest.approx(0.1)
    assert hit == pytest.approx(0.1, abs=0.005)


def test_levels_that_do_not_exist():
    assert math.isnan(chance_level("gini", 196))
    assert math.isnan(uniform_value("rank_correlation", 196))
    assert math.isnan(uniform_value("attention_distance", 196))
    assert math.isnan(uniform_value("row_entropy", 1))
    assert chance_level("rank_correlation", 196) == 0


@pytest.mark.parametrize("function", [uniform_value, chance_level])
def test_unknown_metric_lists_the_known_ones(function):
    with pytest.raises(ValueError, match=r"expected a metric, one of top_share, .*; got 'ginny'"):
        function("ginny", 196)
