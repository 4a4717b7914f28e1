"""The analysis of the experiments, by hand and by simulation."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

HERE = Path(__file__).parent


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    yield importlib.import_module("common")
    sys.modules.pop("common", None)


def test_one_seed_is_students_interval_over_images(common):
    values = np.random.default_rng(0).normal(1, 2, (1, 50))
    expected = stats.ttest_1samp(values[0], 0).confidence_interval()
    assert common.crossed_interval(values) == pytest.approx((expected.low, expected.high))


def test_seeds_that_differ_decide_with_their_few_degrees_of_freedom(common):
    values = np.repeat(np.array([[0.1], [0.2], [0.6]]), 500, axis=1)
    expected = stats.ttest_1samp(values[:, 0], 0).confidence_interval()
    assert common.crossed_interval(values) == pytest.approx((expected.low, expected.high))


def test_nothing_that_varies(common):
    assert common.crossed_interval(np.full((3, 10), 0.5)) == (0.5, 0.5)


@pytest.mark.parametrize(("of_seed", "of_image", "rest"), [(0.3, 1.0, 1.0), (0.02, 1.0, 2.0), (0.5, 0.1, 0.5)])
def test_the_interval_holds_at_least_what_it_says(common, of_seed, of_image, rest):
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        values = random.normal(0, of_seed, (3, 1)) + random.normal(0, of_image, (1, 80)) + random.normal(0, rest, (3, 80))
        low, high = common.crossed_interval(values)
        hits += low <= 0 <= high
    assert 0.94 <= hits / 1000 <= 0.999


def test_detectable_difference_is_found_with_the_power_it_says(common):
    difference = common.detectable(2.0, 10)
    draws = np.random.default_rng(0).normal(difference, 2.0, (4000, 10))
    assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.02)
    assert common.detectable(1.7, 10) == pytest.approx(1.7, abs=0.05)  # what the docstring of fashion.py says
    assert common.detectable(2.0, 5) == pytest.approx(3.4, abs=0.1)  # and that of stamps.py
    assert np.isnan(common.detectable(2.0, 1))


def test_holm_by_hand(common):
    np.testing.assert_allclose(common.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_tables_of_models_made_by_hand(common, tmp_path):
    """Four images, two seeds; the arm is right where the baseline is wrong on one image of seed 0 under all corruptions."""
    labels = np.array([0, 1, 2, 3])
    jobs = [common.Job("main", arm, seed) for arm in ("baseline", "TAP") for seed in (0, 1)]
    for job in jobs:
        classes = labels.copy()
        classes[0] = 9 if job.arm == "baseline" or job.seed else 0
        predictions = {f"{name}-{severity}": classes.astype(np.uint8) for name, severity in common.VARIANTS}
        predictions["clean-0"] = labels.astype(np.uint8)
        common.save_predictions(tmp_path, job, predictions, training_seconds=1.0)
    common.write_tables(tmp_path, jobs, {"main": "main"}, labels)
    models, differences = (pd.read_csv(tmp_path / "results" / f"{name}.csv") for name in ("models", "differences"))
    np.testing.assert_allclose(models["corrupted_error"], [25, 25, 0, 25])
    np.testing.assert_allclose(models["clean_error"], 0)
    row = differences[differences["error"] == "corrupted"].iloc[0]
    assert row["difference"] == pytest.approx(-12.5)
    assert row["spread_of_seeds"] == pytest.approx(np.std([-25, 0], ddof=1), rel=1e-4)
    assert "-12.50" in (tmp_path / "results" / "results.md").read_text(encoding="utf-8")


def test_images_of_a_unit_count_together(common, tmp_path):
    labels, units = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    job = common.Job("main", "baseline", 0)
    predictions = {f"{name}-{severity}": np.array([0, 5, 1, 1], np.uint8) for name, severity in common.VARIANTS}
    common.save_predictions(tmp_path, job, predictions)
    np.testing.assert_allclose(common.read_outcome(tmp_path, job, labels, units).corrupted, [0.5, 0])


def test_tables_of_the_readme_are_those_of_the_results(common):
    models, differences = (pd.read_csv(HERE / "results" / "fashion" / f"{name}.csv") for name in ("models", "differences"))
    text = (HERE / "README.md").read_text(encoding="utf-8")
    table = common.as_markdown(models, differences)
    assert table.count("\n") == 9
    assert table in text


@pytest.mark.usefixtures("common")
def test_ablations_of_the_readme_are_those_of_the_results():
    attention = importlib.import_module("attention")
    table = pd.read_csv(HERE / "results" / "fashion" / "ablations.csv")
    sys.modules.pop("attention", None)
    assert len(table) == 4 * 3 * 4 * 3  # arms, seeds, corruptions, choices
    assert attention.ablations_as_markdown(table) in (HERE / "README.md").read_text(encoding="utf-8")
    assert (table["p_value"] < 0.05 / len(table)).sum() == 3


def test_what_the_readme_says_of_dinov2_is_measured():
    table = pd.read_csv(HERE / "results" / "dinov2" / "layers.csv")
    text = (HERE / "README.md").read_text(encoding="utf-8")
    for images, said in (("fashion", "0.67 (0.65"), ("photographs", "0.54 (0.43")):
        rows = table[table["images"] == images]
        lowest = rows.nsmallest(4, "effective_tokens")
        assert sorted(lowest["layer"]) == [0, 7, 8, 9]
        assert f"{lowest['effective_tokens'].mean():.2f}" == said[:4]
        assert said in text


def test_what_the_readme_says_survives_holm_does(common):
    table = pd.read_csv(HERE / "results" / "fashion" / "corruptions.csv")
    main = table[table["group"] == "6 layers"]
    assert len(main) == 45
    np.testing.assert_allclose(common.holm(main["p_value"]), main["p_holm"], rtol=1e-3)
    survives = main[main["p_holm"] < 0.05]
    assert survives.groupby("arm").size().to_dict() == {"TAP": 9, "TAP+ADL": 10}
    assert (survives["difference"] < 0).all()
