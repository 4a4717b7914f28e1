"""Tests of paired differences by hand, against scipy, and their level by simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from overfocus.statistics.significance import holm, mcnemar_test, ratio_swap_test, sign_flip_test


def test_four_one_sided_flips():
    """Of 20 outcomes four change, all to one side: 2 · 2⁻⁴, whichever test is asked."""
    changed = (np.arange(20) < 4).astype(float)[:, None]
    nothing = np.zeros((20, 1))
    assert mcnemar_test(changed, nothing).tolist() == [0.125]
    assert sign_flip_test(changed).tolist() == [0.125]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=9))
def test_few_images_try_every_pattern(values):
    found = sign_flip_test(np.array(values, float)[:, None])[0]
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((1, -1), repeat=len(values))
    ]
    assert found == pytest.approx(np.mean(np.array(sums) >= abs(sum(values)) - 1e-9))


def test_many_images_agree_with_scipy():
    random = np.random.default_rng(0)
    differences = random.normal(0.35, size=(40, 4))
    differences[10:20, 2] = np.nan
    found = sign_flip_test(differences)
    for column in range(4):
        values = differences[:, column][~np.isnan(differences[:, column])]
        reference = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1).pvalue
        assert found[column] == pytest.approx(reference, abs=0.012)


def test_what_draws_cannot_resolve_is_students():
    differences = np.random.default_rng(0).normal(1.0, size=(60, 1))
    expected = stats.ttest_1samp(differences[:, 0], 0).pvalue
    assert expected < 1e-4
    assert sign_flip_test(differences)[0] == pytest.approx(expected)
    assert sign_flip_test(np.full((20, 1), 0.3))[0] == pytest.approx(2.0**-19)


def test_mcnemar_is_the_binomial_test():
    random = np.random.default_rng(3)
    first, second = (random.random((2, 50, 6)) < [[[0.5]], [[0.7]]]).astype(float)
    found = mcnemar_test(first, second)
    for column in range(6):
        gained, lost = (first - second)[:, column] > 0, (first - second)[:, column] < 0
        assert found[column] == pytest.approx(stats.binomtest(int(gained.sum()), int((gained | lost).sum())).pvalue)


def test_ratios_swapped_by_hand():
    """Three images: every swap of the models' numbers, in units of their own mean denominator, written out."""
    random = np.random.default_rng(4)
    top, bottom, other_top, other_bottom = random.random((4, 3, 1)) + np.reshape([0.0, 1.0, 0.5, 1.0], (4, 1, 1))
    top, bottom = top / bottom.mean(), bottom / bottom.mean()
    other_top, other_bottom = other_top / other_bottom.mean(), other_bottom / other_bottom.mean()
    observed = abs(top.sum() / bottom.sum() - other_top.sum() / other_bottom.sum())
    found = []
    for swap in itertools.product((False, True), repeat=3):
        swapped = np.array(swap)[:, None]
        tops = [np.where(swapped, a, b).sum() for a, b in ((other_top, top), (top, other_top))]
        bottoms = [np.where(swapped, a, b).sum() for a, b in ((other_bottom, bottom), (bottom, other_bottom))]
        found.append(abs(tops[0] / bottoms[0] - tops[1] / bottoms[1]))
    expected = np.mean(np.array(found) >= observed - 1e-12)
    assert ratio_swap_test(top, bottom, other_top, other_bottom)[0] == pytest.approx(expected)


def test_no_difference_is_sure_of_nothing():
    assert sign_flip_test(np.zeros((9, 1))).tolist() == [1.0]
    assert np.isnan(sign_flip_test(np.array([[1.0], [np.nan]]))).all()
    assert mcnemar_test(np.ones((9, 1)), np.ones((9, 1))).tolist() == [1.0]
    same = np.random.default_rng(0).random((30, 1)) + 1
    assert ratio_swap_test(same, same + 1, same, same + 1).tolist() == [1.0]


def test_holm_by_hand():
    """Sorted 0.01, 0.03, 0.04 times 3, 2, 1, never falling."""
    assert holm(np.array([0.04, np.nan, 0.01, 0.03])) == pytest.approx([0.06, np.nan, 0.03, 0.06], nan_ok=True)
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("repeats", [pytest.param(500), pytest.param(5_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("images", [10, 20, 50])
def test_level(images, repeats):
    """Chance finds a difference in no more than 5 % of samples, save for what chance adds to the estimate."""
    random = np.random.default_rng(images)
    slack = 3 * np.sqrt(0.05 * 0.95 / repeats)
    assert np.mean(sign_flip_test(random.normal(size=(images, repeats))) < 0.05) < 0.05 + slack
    assert np.mean(sign_flip_test(random.standard_t(2, size=(images, repeats))) < 0.05) < 0.05 + slack
    rates = (random.random((2, images, repeats)) < 0.3).astype(float)
    assert np.mean(mcnemar_test(*rates) < 0.05) < 0.05 + slack
    control, other = random.normal(1, 0.2, (2, images, repeats))
    ratios = ratio_swap_test(
        0.4 * control + random.random(control.shape), control, 0.4 * other + random.random(other.shape), other
    )
    assert np.mean(ratios < 0.05) < 0.05 + slack
    small = ratio_swap_test(
        0.4 * control + random.random(control.shape), control, 0.1 * other + 0.25 * random.random(other.shape), other / 4
    )
    assert np.mean(small < 0.05) < 0.05 + slack


def test_ratios_of_different_scales_are_told_apart():
    """A model whose attention varies a quarter as much, and retains a little more: by its own scale that is sure."""
    random = np.random.default_rng(0)
    control, other = random.normal(1, 0.1, (2, 60, 1))
    shares, others = random.normal(0.4, 0.1, (2, 60, 1))
    found = ratio_swap_test((shares - 0.08) * control / 4, control / 4, others * other, other)
    assert found[0] < 0.001
