"""Statistics of layers from tables."""

from dataclasses import replace

import numpy as np
import pytest

from overfocus.statistics.panel import layer_statistics
from overfocus.variants import CLEAN_VARIANT, Variant, middle_severity


def test_variants_begin_with_clean_and_keep_the_order_asked_for(run):
    assert run.variants == [CLEAN_VARIANT, *[Variant(name, s) for name in ("gaussian_noise", "fog") for s in (1, 3)]]


def test_words_of_a_variant():
    assert (Variant("gaussian_noise", 3).label, Variant("gaussian_noise", 3).words) == (
        "gaussian noise 3",
        "gaussian noise at severity 3",
    )
    assert (CLEAN_VARIANT.label, CLEAN_VARIANT.words) == ("clean", "clean images")


@pytest.mark.parametrize(("severities", "middle"), [([3], 3), ([5, 1, 3], 3), ([2, 4], 4), ([1, 2, 3, 4, 5], 3)])
def test_middle_severity(severities, middle):
    assert middle_severity(severities) == middle


def test_means_are_those_of_the_table(run):
    statistics = layer_statistics(run)
    expected = run.table.groupby(["corruption", "severity", "layer"])["gini"].mean()
    for place, variant in enumerate(statistics.variants):
        for layer in range(4):
            key = (variant.corruption, variant.severity, layer)
            assert statistics.values["gini"]["mean"][0, place, layer] == pytest.approx(expected[key])
    assert (statistics.values["gini"]["low"] <= statistics.values["gini"]["mean"]).all()
    assert (statistics.values["gini"]["count"] == 6).all()


def test_grid_and_matrix(run):
    statistics = layer_statistics(run)
    table = run.table
    assert statistics.corruptions == ["gaussian_noise", "fog"]
    assert statistics.severities == [1, 3]
    fog = table[(table["corruption"] == "fog") & (table["severity"] == 3)]
    assert statistics.grid("js_divergence")[1, 1] == pytest.approx(fog["js_divergence"].mean())
    assert statistics.grid("js_divergence", layer=2)[1, 1] == pytest.approx(fog[fog["layer"] == 2]["js_divergence"].mean())
    by_layer = fog.groupby("layer")["js_divergence"].mean().to_numpy()
    np.testing.assert_allclose(statistics.matrix("js_divergence", 3)[1], by_layer)


def test_heads_come_after_their_mean(make_run):
    run = make_run(heads=2)
    run.table["gini"] = np.where(run.table["head"] == 0, 0.2, 0.4)
    statistics = layer_statistics(run)
    assert statistics.heads == ["all", "head 0", "head 1"]
    np.testing.assert_allclose(statistics.values["gini"]["mean"][:, 0, 0], [0.3, 0.2, 0.4])


def test_metrics_without_any_value_are_left_out(make_run):
    run = make_run(corruptions=(), severities=())
    statistics = layer_statistics(run)
    assert "gini" in statistics.metrics
    assert "top_overlap" not in statistics.metrics


def test_expectations_follow_each_layers_size(make_run):
    run = make_run(images=1)
    run.description = changed_layer(run.description, 1, {"keys": 50, "grid": [7, 7], "key_grid": [7, 7]})
    statistics = layer_statistics(run)
    assert statistics.uniform("top_share")[:2] == pytest.approx([2 / 36, 2 / 49])
    assert statistics.uniform("prefix_share")[0] == pytest.approx(1 / 37)


def test_the_control_stands_beside_and_is_no_variant(run, make_run):
    statistics = layer_statistics(run)
    other = run.table[run.table["corruption"] == "other image"]
    assert "other image" not in statistics.corruptions
    assert statistics.another_image("js_divergence") == pytest.approx(other.groupby("layer")["js_divergence"].mean().tolist())
    fog = run.table[(run.table["corruption"] == "fog") & (run.table["severity"] == 3)]
    ratio = fog.groupby("layer")["js_divergence"].mean() / other.groupby("layer")["js_divergence"].mean()
    assert statistics.matrix("js_divergence", 3, retained=True)[1] == pytest.approx((1 - ratio).tolist())
    assert np.isnan(statistics.another_image("gini")).all()
    without = layer_statistics(make_run(control=False))
    assert not without.retained
    assert np.isnan(without.another_image("js_divergence")).all()


def test_patch_tokens_are_counted_without_prefix(make_run):
    run = make_run(images=1)
    run.description = changed_layer(run.description, 0, {"kind": "class", "prefix_tokens": 1, "key_prefix_tokens": 1})
    assert [layer.tokens for layer in run.layers] == [36] * 4
    assert run.layers[0].label == "0 · blocks.0.attn"


def changed_layer(description, number, changes):
    """The description of a run with another layer."""
    layers = list(description.layers)
    layers[number] = replace(layers[number], **changes)
    return replace(description, layers=layers)
