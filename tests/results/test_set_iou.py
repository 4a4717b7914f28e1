"""mIoU of a set between two models: against a bootstrap written out, and cases known beforehand."""

import numpy as np
import pandas as pd
import pytest

from overfocus import Comparison, RunError
from overfocus.statistics.differences import set_differences
from overfocus.statistics.intervals import resample_counts, widened_quantiles


def pixels(seed, images=12, variants=3, classes=4):
    """(2, images, variants, classes) of intersections within unions."""
    random = np.random.default_rng(seed)
    unions = random.integers(1, 200, (images, variants, classes))
    return np.stack([(unions * random.random(unions.shape)).astype(np.int64), unions])


def miou(counts):
    """Of (2, classes)."""
    return np.mean([inter / union for inter, union in counts.T if union > 0])


def test_against_a_bootstrap_written_out():
    ours, theirs = pixels(0), pixels(1)
    found = set_differences(ours, theirs, [1, 2], resamples=200, seed=5)
    draws = np.concatenate([*resample_counts(12, 200, 5)]).astype(int)
    differences = np.empty((200, 4))
    for number, draw in enumerate(draws):
        places = np.repeat(np.arange(12), draw)
        for variant in range(3):
            differences[number, variant] = np.subtract(*(miou(part[:, places, variant].sum(1)) for part in (ours, theirs)))
        differences[number, 3] = differences[number, 1:3].mean()
    low, high = widened_quantiles(differences.T, 12)
    plain = np.quantile(differences, [0.025, 0.975], axis=0)
    assert (low < plain[0]).all()
    assert (high > plain[1]).all()
    np.testing.assert_allclose(found.low, low, atol=1e-6)
    np.testing.assert_allclose(found.high, high, atol=1e-6)
    expected = [miou(ours[:, :, variant].sum(1)) for variant in range(3)]
    np.testing.assert_allclose(found.mean, [*expected, np.mean(expected[1:])])
    np.testing.assert_allclose(found.difference, found.mean - found.baseline_mean)
    assert found.count.tolist() == [12] * 4
    assert np.isnan(found.p_value).all()


def test_a_model_does_not_differ_from_itself():
    found = set_differences(pixels(0), pixels(0), [1, 2], resamples=50)
    assert not found.difference.any()
    assert not found.low.any()
    assert not found.high.any()


def test_images_that_one_model_lacks_count_for_neither():
    ours, theirs = pixels(0), pixels(1)
    lacking = theirs.copy()
    lacking[:, 4, 1] = 0
    found = set_differences(ours, lacking, [1, 2], resamples=50)
    without = set_differences(np.delete(ours, 4, 1), np.delete(theirs, 4, 1), [1, 2], resamples=50)
    assert found.count.tolist() == [12, 11, 12, 11]
    assert found.mean[1] == pytest.approx(without.mean[1])


def test_without_masks_there_is_nothing_to_say():
    nothing = np.zeros_like(pixels(0))
    found = set_differences(nothing, nothing, [1, 2], resamples=10)
    assert found.count.tolist() == [0] * 4
    assert np.isnan(found.mean).all()


def with_pixels(run, counts):
    """A written run whose predictions are classes of pixels."""
    (path,) = (run.path / "predictions").glob("*.parquet")
    table = pd.read_parquet(path)
    for name, part in zip(("intersections", "unions"), counts, strict=True):
        table[name] = list(part.reshape(len(table), -1))
    table["image_iou"] = [np.mean(row[0] / row[1]) for row in zip(table["intersections"], table["unions"], strict=True)]
    table["agreement"] = np.where(table["severity"] == 0, np.nan, np.random.default_rng(3).random(len(table)))
    table.to_parquet(path)
    return type(run)(run.path)


def test_a_comparison_of_segmentation_models(write_run):
    counts = [pixels(seed, images=20) for seed in (0, 1)]
    runs = [with_pixels(write_run(name, seed=n), part) for n, (name, part) in enumerate(zip("ab", counts, strict=True))]
    comparison = Comparison(runs, resamples=100)
    output = comparison.table.query("layers == 'output'").set_index(["metric", "corruption", "severity"])
    row = output.loc[("mean_iou", "fog", 4)]
    assert row["mean"] == pytest.approx(miou(counts[1][:, :, 2].sum(1)))
    assert row["low"] < row["difference"] < row["high"]
    every = np.mean([miou(counts[1][:, :, variant].sum(1)) for variant in (1, 2)])
    assert output.loc[("mean_iou", "all", 0), "mean"] == pytest.approx(every)
    assert output.loc[("image_iou", "clean", 0), "mean"] == pytest.approx((counts[1][0] / counts[1][1])[:, 0].mean())
    assert {"mean_iou", "image_iou"} <= set(comparison.overview()["metric"])
    assert "mIoU of the set" in comparison.to_markdown()
    fragile = comparison.fragility.query("corruption == 'all'")
    assert (fragile["flipped"] * 2 == fragile["count"]).all()  # above the median is half of them
    assert any("more pixels change theirs" in note for note in comparison.notes)


def test_pixels_and_images_do_not_compare(write_run):
    first, second = write_run("a"), with_pixels(write_run("b"), pixels(0, images=20))
    with pytest.raises(RunError, match="b predicts 4 classes of pixels, a one class for an image"):
        Comparison([first, second])
