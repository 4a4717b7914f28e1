"""Intervals and tests of differences against scipy, by hand and by enumeration; their coverage and level by simulation."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from overfocus.statistics.intervals import (
    holm,
    interval_of,
    mcnemar_test,
    mean_interval,
    rate_difference_interval,
    rate_interval,
    ratio_difference_interval,
    ratio_swap_test,
    resample_counts,
    sign_flip_test,
    value_range,
)
from tests.statistics import simulation


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


@pytest.mark.parametrize(("successes", "number"), [(0, 20), (20, 20), (7, 20), (1, 50)])
def test_rates_are_wilsons(successes, number):
    outcomes = np.arange(number)[:, None] < successes
    reference = stats.binomtest(successes, number).proportion_ci(method="wilson")
    ends = rate_interval(outcomes.astype(float))
    assert (ends.low[0], ends.high[0]) == pytest.approx((reference.low, reference.high))
    found = interval_of(pd.Series(outcomes[:, 0].astype(float)), "agreement")
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))


def test_confidence_drops_are_no_rates():
    """Zeros everywhere are a mean without spread there, and twenty outcomes here."""
    zeros = pd.Series(np.zeros(20))
    assert interval_of(zeros, "confidence_drop").high == 0
    assert interval_of(zeros, "agreement").high > 0.1


def test_outcomes_of_one_image_count_as_fewer():
    """Between as many as there are images, where they agree, and as many as there are outcomes, where they do not."""
    random = np.random.default_rng(0)
    apart = random.binomial(8, 0.5, (50, 1)) / 8
    together = random.integers(0, 2, (50, 1)).astype(float)
    trials = np.full((50, 1), 8)
    widths = [np.subtract(*reversed(rate_interval(rates, trials)))[0] for rates in (apart, together)]
    plain = np.subtract(*reversed(rate_interval(together)))[0]
    assert widths[1] == pytest.approx(plain, rel=0.01)
    assert widths[0] < 0.5 * plain
    assert rate_interval(np.ones((20, 1)), np.full((20, 1), 8)).low[0] == pytest.approx(rate_interval(np.ones((20, 1))).low[0])


def test_paired_rates_are_newcombes():
    """The paper's first example: of 50 pairs 36 both, 12 the first alone, 2 the second alone, none neither."""
    first = np.r_[np.ones(36), np.ones(12), np.zeros(2), np.zeros(0)][:, None]
    second = np.r_[np.ones(36), np.zeros(12), np.ones(2), np.zeros(0)][:, None]
    ends = rate_difference_interval(first, second)
    assert (ends.low[0], ends.high[0]) == pytest.approx((0.0569, 0.3404), abs=2e-4)


def test_rates_that_never_differ_still_have_a_width():
    same = np.ones((30, 1))
    ends = rate_difference_interval(same, same)
    assert ends.low[0] < -0.05
    assert ends.high[0] > 0.05
    mixed = (np.arange(30) % 3 == 0).astype(float)[:, None]
    ends = rate_difference_interval(mixed, mixed)
    assert ends.low[0] < 0 < ends.high[0]


def test_ratio_by_resampling_whole_images():
    random = np.random.default_rng(1)
    top, bottom = random.gamma(2.0, size=(60, 1)), 3 + random.random((60, 1))
    ends = ratio_difference_interval(top, bottom, resamples=4000)
    drawn = random.integers(0, 60, (4000, 60))
    ratios = top[drawn, 0].mean(1) / bottom[drawn, 0].mean(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert ends.low[0] == pytest.approx(low, abs=0.1 * (high - low))
    assert ends.high[0] == pytest.approx(high, abs=0.1 * (high - low))
    assert ends.high[0] - ends.low[0] > 0.97 * (high - low)


def test_ratios_of_one_model_do_not_differ():
    values = np.random.default_rng(0).random((30, 2)) + 0.5
    ends = ratio_difference_interval(values, values[::-1], values, values[::-1], resamples=200)
    assert not np.any(ends)


def test_missing_values_leave_the_image_out_of_a_column():
    random = np.random.default_rng(1)
    top, bottom = random.random((2, 50, 2)) + 1
    top[40:, 1] = np.nan
    ends = ratio_difference_interval(top, bottom, resamples=4000)
    alone = ratio_difference_interval(top[:40, 1:], bottom[:40, 1:], resamples=4000)
    assert ends.low[1] == pytest.approx(alone.low[0], abs=0.03)
    assert ends.high[1] == pytest.approx(alone.high[0], abs=0.03)
    assert np.isnan(ratio_difference_interval(top[:1], bottom[:1], resamples=10).low).all()


def test_refuses_no_resamples():
    with pytest.raises(ValueError, match="expected at least 1 resample, got 0; 10,000 is usual"):
        next(resample_counts(2, 0, 0))


@settings(deadline=None, max_examples=30)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e3), st.integers(2, 40))
def test_moves_and_stretches_with_the_values(shift, factor, images):
    values = np.random.default_rng(images).normal(size=(images, 1))
    low, high = mean_interval(values)
    moved_low, moved_high = mean_interval(values * factor + shift)
    tolerance = 1e-9 * (factor * np.abs(values).max() + abs(shift))
    assert moved_low[0] == pytest.approx(low[0] * factor + shift, abs=tolerance)
    assert moved_high[0] == pytest.approx(high[0] * factor + shift, abs=tolerance)


_FAST = 1000
_FULL = 20_000


def _samples():
    return [pytest.param(_FAST), pytest.param(_FULL, marks=pytest.mark.slow)]


@pytest.mark.parametrize("samples", _samples())
@pytest.mark.parametrize(
    ("draw", "images", "least"),
    [("normal", 20, 0.93), ("normal", 50, 0.93), ("normal", 200, 0.93), ("exponential", 20, 0.9), ("exponential", 200, 0.93)],
)
def test_coverage_of_means(draw, images, least, samples):
    assert least <= simulation.of_means(draw, images, samples) < 0.97


@pytest.mark.parametrize("samples", _samples())
@pytest.mark.parametrize("images", [20, 50, 200])
def test_coverage_of_rates_and_their_differences(images, samples):
    assert min(simulation.of_rates(images, samples // 8)) >= 0.93


@pytest.mark.parametrize("samples", [pytest.param(150), pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("images", "least"), [(20, 0.9), (50, 0.91), (200, 0.92)])
def test_coverage_of_ratios(images, least, samples):
    """The fast version leaves room for chance."""
    assert simulation.of_ratios(images, samples) >= least - (0.0 if samples > 1000 else 0.04)


@pytest.mark.parametrize("samples", [pytest.param(500), pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("retained", [False, True])
@pytest.mark.parametrize("runs", [2, 3, 5])
def test_coverage_of_groups_of_runs(runs, retained, samples):
    assert simulation.of_groups(runs, 20, samples, retained=retained) >= 0.93


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


@pytest.mark.parametrize("samples", [pytest.param(500), pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("images", [10, 20, 50])
def test_level(images, samples):
    """Chance finds a difference in no more than 5 % of samples, save for what chance adds to the estimate."""
    assert max(simulation.level_of_tests(images, samples).values()) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / samples)


def test_ratios_of_different_scales_are_told_apart():
    """A model whose attention varies a quarter as much, and retains a little more: by its own scale that is sure."""
    random = np.random.default_rng(0)
    control, other = random.normal(1, 0.1, (2, 60, 1))
    shares, others = random.normal(0.4, 0.1, (2, 60, 1))
    found = ratio_swap_test((shares - 0.08) * control / 4, control / 4, others * other, other)
    assert found[0] < 0.001
