"""The intervals of the experiment, by hand and by simulation."""

import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

Interval = Callable[[np.ndarray], tuple[float, float]]


@pytest.fixture
def crossed_interval(monkeypatch: pytest.MonkeyPatch) -> Interval:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    found: Interval = importlib.import_module("experiment_intervals").crossed_interval
    return found


def test_one_seed_is_students_interval_over_images(crossed_interval: Interval) -> None:
    values = np.random.default_rng(0).normal(1, 2, (1, 50))
    expected = stats.ttest_1samp(values[0], 0).confidence_interval()
    assert crossed_interval(values) == pytest.approx((expected.low, expected.high))


def test_seeds_that_differ_decide_with_their_few_degrees_of_freedom(crossed_interval: Interval) -> None:
    values = np.repeat(np.array([[0.1], [0.2], [0.6]]), 500, axis=1)
    expected = stats.ttest_1samp(values[:, 0], 0).confidence_interval()
    assert crossed_interval(values) == pytest.approx((expected.low, expected.high))


def test_nothing_that_varies(crossed_interval: Interval) -> None:
    assert crossed_interval(np.full((3, 10), 0.5)) == (0.5, 0.5)
    assert np.isnan(crossed_interval(np.zeros((3, 1)))).all()


@pytest.mark.parametrize(("of_seed", "of_image", "rest"), [(0.3, 1.0, 1.0), (0.02, 1.0, 2.0), (0.5, 0.1, 0.5)])
def test_the_interval_holds_at_least_what_it_says(
    crossed_interval: Interval, of_seed: float, of_image: float, rest: float
) -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        values = random.normal(0, of_seed, (3, 1)) + random.normal(0, of_image, (1, 80)) + random.normal(0, rest, (3, 80))
        low, high = crossed_interval(values)
        hits += low <= 0 <= high
    assert 0.94 <= hits / 1000 <= 0.999
