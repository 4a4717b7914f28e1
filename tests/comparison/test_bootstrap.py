"""Bootstrap intervals against scipy's, where values are missing, and how long they take."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from overfocus.comparison.bootstrap import bootstrap_intervals


def test_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=(60, 3))
    low, high = bootstrap_intervals(values, resamples=20_000)
    for column in range(3):
        reference = stats.bootstrap((values[:, column],), np.mean, n_resamples=20_000, method="percentile", rng=1)
        width = reference.confidence_interval.high - reference.confidence_interval.low
        assert low[column] == pytest.approx(reference.confidence_interval.low, abs=0.03 * width)
        assert high[column] == pytest.approx(reference.confidence_interval.high, abs=0.03 * width)


def test_is_the_quantile_of_resampled_means():
    """Two images 0 and 1: a resample's mean is 0, ½ or 1 with chances ¼, ½ and ¼."""
    low, high = bootstrap_intervals(np.array([[0.0], [1.0]]))
    assert (low[0], high[0]) == (0, 1)
    low, high = bootstrap_intervals(np.array([[3.0], [3.0]]))
    assert (low[0], high[0]) == (3, 3)


def test_covers_the_true_mean_as_often_as_it_says():
    values = np.random.default_rng(3).normal(1.0, 2.0, size=(100, 2000))  # each column a sample of its own
    low, high = bootstrap_intervals(values, resamples=1000)
    assert np.mean((low < 1) & (high > 1)) == pytest.approx(0.945, abs=0.02)


def test_missing_values_are_left_out():
    values = np.random.default_rng(1).normal(size=(50, 2))
    values[40:, 1] = np.nan
    low, high = bootstrap_intervals(values)
    alone_low, alone_high = bootstrap_intervals(values[:40, 1:])
    assert low[1] == pytest.approx(alone_low[0], abs=0.03)
    assert high[1] == pytest.approx(alone_high[0], abs=0.03)


def test_undefined_for_fewer_than_two_values():
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [np.nan, np.nan]])
    for ends in bootstrap_intervals(values):
        assert np.isnan(ends).all()


def test_blocks_do_not_change_the_numbers(monkeypatch):
    values = np.random.default_rng(2).normal(size=(30, 7))
    expected = bootstrap_intervals(values, resamples=500)
    monkeypatch.setattr("overfocus.comparison.bootstrap._COLUMNS_PER_BLOCK", 2)
    for ends, reference in zip(bootstrap_intervals(values, resamples=500), expected, strict=True):
        np.testing.assert_allclose(ends, reference, rtol=1e-6)
    assert not np.array_equal(bootstrap_intervals(values, resamples=500, seed=1)[0], expected[0])


@settings(deadline=None, max_examples=30)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e3), st.integers(2, 40))
def test_moves_and_stretches_with_the_values(shift, factor, images):
    values = np.random.default_rng(images).normal(size=(images, 1))
    low, high = bootstrap_intervals(values, resamples=200)
    moved_low, moved_high = bootstrap_intervals(values * factor + shift, resamples=200)
    tolerance = 1e-5 * factor * np.abs(values).max() + 1e-9 * abs(shift)
    assert moved_low[0] == pytest.approx(low[0] * factor + shift, abs=tolerance)
    assert moved_high[0] == pytest.approx(high[0] * factor + shift, abs=tolerance)


def test_refuses_no_resamples():
    with pytest.raises(ValueError, match="expected at least 1 resample, got 0; 10,000 is usual"):
        bootstrap_intervals(np.zeros((2, 1)), resamples=0)
