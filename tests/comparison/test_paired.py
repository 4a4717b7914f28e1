"""Paired tests, adjusted p-values and effect sizes against scipy and by hand."""

import numpy as np
import pytest
from scipy import stats

from overfocus.comparison.paired import holm, paired_differences, signed_rank_p_values


def test_signed_rank_test_agrees_with_scipy_column_by_column():
    random = np.random.default_rng(0)
    differences = random.normal(0.2, size=(40, 5))
    differences[:, 1] = random.integers(-1, 2, 40)  # ties and zeros
    differences[10:20, 2] = np.nan
    found = signed_rank_p_values(differences)
    for column in range(5):
        values = differences[:, column][~np.isnan(differences[:, column])]
        assert found[column] == pytest.approx(stats.wilcoxon(values, method="approx").pvalue)


def test_no_difference_is_sure_of_nothing():
    assert signed_rank_p_values(np.zeros((9, 1))).tolist() == [1.0]
    assert np.isnan(signed_rank_p_values(np.array([[1.0], [np.nan]]))).all()


def test_chance_finds_a_difference_as_often_as_it_should():
    p_values = signed_rank_p_values(np.random.default_rng(1).normal(size=(30, 4000)))
    assert np.mean(p_values < 0.05) == pytest.approx(0.05, abs=0.01)


def test_holm_by_hand():
    """Sorted 0.01, 0.03, 0.04 times 3, 2, 1, never falling."""
    assert holm(np.array([0.04, np.nan, 0.01, 0.03])) == pytest.approx([0.06, np.nan, 0.03, 0.06], nan_ok=True)
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_by_hand():
    model, baseline = np.array([[2.0, 1.0], [5.0, np.nan], [2.0, 7.0]]), np.array([[1.0, 1.0], [2.0, 4.0], [0.0, 5.0]])
    found = paired_differences(model, baseline)
    assert found.count.tolist() == [3, 2]
    assert found.mean.tolist() == [3, 4]
    assert found.baseline_mean.tolist() == [1, 3]
    assert found.difference.tolist() == [2, 1]
    assert found.effect_size == pytest.approx([2 / 1, 1 / np.sqrt(2)])
    assert found.low[0] == 1
    assert found.high[0] == 3


def test_effect_size_of_a_constant_difference_is_undefined():
    found = paired_differences(np.full((4, 1), 2.0), np.ones((4, 1)))
    assert np.isnan(found.effect_size[0])
    assert (found.low[0], found.high[0]) == (1, 1)
