import numpy as np
import pandas as pd
import pytest
from scipy import stats

from overfocus.statistics.intervals import interval_of, value_range


def test_mean_and_interval_agree_with_scipy():
    values = np.random.default_rng(0).random(20)
    found = interval_of(pd.Series(values), "gini")
    low, high = stats.t.interval(0.95, 19, loc=values.mean(), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high))
    assert (found.count, found.skipped) == (20, 0)


def test_undefined_values_are_skipped_and_counted():
    found = interval_of(pd.Series([0.5, np.nan, 0.7, np.nan]), "gini")
    assert found.mean == pytest.approx(0.6)
    assert (found.count, found.skipped) == (2, 2)


def test_one_value_has_no_interval_and_none_has_no_mean():
    one = interval_of(pd.Series([0.5]), "gini")
    assert one
    assert one.mean == 0.5
    assert np.isnan(one.low)
    assert np.isnan(one.high)
    nothing = interval_of(pd.Series([np.nan, np.nan]), "gini")
    assert not nothing
    assert nothing.skipped == 2


def test_intervals_end_where_the_range_of_the_metric_ends():
    found = interval_of(pd.Series([0.0, 1.0, 1.0]), "top_overlap")
    assert (found.low, found.high) == (0.0, 1.0)
    unbounded = interval_of(pd.Series([1.0, 90.0, 90.0]), "max_ratio")
    assert unbounded.high > 100


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("gini", (0.0, np.inf)), ("top_overlap", (0.0, 1.0)), ("rank_correlation", (-1.0, 1.0)), ("unheard of", (-np.inf, np.inf))],
)
def test_value_range(metric, expected):
    assert value_range(metric) == expected
