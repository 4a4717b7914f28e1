"""Rank correlation and AUROC against scipy and counting; their intervals against resampling whole images."""

import numpy as np
import pytest
from scipy import stats

from overfocus.statistics.fragility import auroc, share, spearman


def _variants(images=40, each=4, seed=0):
    """Variants of one image resemble each other in value and fate."""
    random = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), each)
    level = random.normal(size=images)[image]
    values = np.round(level + random.normal(size=len(image)), 1)
    return values, level + 0.7 * random.normal(size=len(image)) > 0.2, image


def _resampled(estimate, values, happened, image, resamples=600):
    random = np.random.default_rng(9)
    members = [np.flatnonzero(image == number) for number in np.unique(image)]
    found = []
    for _ in range(resamples):
        drawn = np.concatenate([members[number] for number in random.integers(0, len(members), len(members))])
        found.append(estimate(values[drawn], happened[drawn]))
    return np.quantile(found, [0.025, 0.975])


def _auroc(values, happened):
    return stats.mannwhitneyu(values[happened], values[~happened]).statistic / (happened.sum() * (~happened).sum())


def test_auroc_counts_pairs():
    values, happened = np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, True, False, True])
    assert auroc(values, happened, np.arange(4)).value == pytest.approx((1 + 0.5 + 1 + 1) / 4)


def test_estimates_agree_with_scipy():
    values, happened, image = _variants()
    assert auroc(values, happened, image).value == pytest.approx(_auroc(values, happened))
    assert spearman(values, happened.astype(float), image).value == pytest.approx(stats.spearmanr(values, happened).statistic)
    assert share(happened, image).value == happened.mean()


def test_interval_of_one_image_per_image_is_delongs():
    """Variance of the placements of either side over its size, as DeLong et al. have it, but for n − 1."""
    values, happened, _ = _variants(each=1, images=80)
    found = auroc(values, happened, np.arange(80))
    positive, negative = values[happened], values[~happened]
    wins = (positive[:, None] > negative).astype(float) + 0.5 * (positive[:, None] == negative)
    variance = wins.mean(1).var() / len(positive) + wins.mean(0).var() / len(negative)
    area = found.value
    half = stats.t.ppf(0.975, 79) * np.sqrt(variance * 80 / 79) / (area * (1 - area))
    ends = 1 / (1 + np.exp(-(np.log(area / (1 - area)) + np.array([-half, half]))))
    assert (found.low, found.high) == pytest.approx(tuple(ends))


@pytest.mark.parametrize("each", [1, 4])
def test_intervals_agree_with_resampling_images(each):
    values, happened, image = _variants(images=120, each=each, seed=each)
    for estimate, reference in (
        (auroc(values, happened, image), _auroc),
        (spearman(values, happened.astype(float), image), lambda v, h: stats.spearmanr(v, h).statistic),
        (share(happened, image), lambda _, h: h.mean()),
    ):
        low, high = _resampled(reference, values, happened, image)
        width = high - low
        assert estimate.low == pytest.approx(low, abs=0.12 * width)
        assert estimate.high == pytest.approx(high, abs=0.12 * width)


def test_images_of_one_image_count_less_than_as_many_images():
    values, happened, image = _variants()
    together, apart = auroc(values, happened, image), auroc(values, happened, np.arange(len(values)))
    assert together.high - together.low > 1.2 * (apart.high - apart.low)


def test_undefined():
    values, images = np.array([1.0, 2.0, 3.0]), np.arange(3)
    never = np.zeros(3, bool)
    assert np.isnan(auroc(values, never, images)).all()
    assert np.isnan(spearman(values, never.astype(float), images)).all()
    apart = auroc(values, np.array([False, False, True]), images)
    assert apart.value == 1
    assert np.isnan(apart[1:]).all()
    assert np.isnan(auroc(values, np.array([False, True, False]), np.zeros(3, int))[1:]).all()
