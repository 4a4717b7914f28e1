"""What comparisons compute from runs whose tables are known: controls, joint masks, groups of seeds, strata, mIoU of a set."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from overfocus import Comparison, Run, RunError
from overfocus.statistics.differences import paired_differences, set_differences
from overfocus.statistics.fragility import CORRUPTION_ALONE, POOLED
from overfocus.statistics.intervals import resample_counts, widened_quantiles
from overfocus.statistics.retained import tabulate_retained


def _row(table, **identity):
    for name, value in identity.items():
        table = table[table[name] == value]
    (row,) = table.to_dict("records")
    return row


def test_retained_is_one_minus_the_ratio_of_mean_distances(write_run):
    run = write_run("a", images=20)
    kept = run.retained
    row = _row(kept, metric="top_overlap", corruption="fog", severity=4, layer=1)
    of_layer = run.table[run.table["layer"] == 1]
    own = of_layer[(of_layer["corruption"] == "fog") & (of_layer["severity"] == 4)]["top_overlap"].mean()
    control = of_layer[of_layer["corruption"] == "other image"]["top_overlap"].mean()
    assert row["value"] == pytest.approx(own)
    assert row["control"] == pytest.approx(control)
    assert row["retained"] == pytest.approx(1 - (1 - own) / (1 - control))
    assert row["low"] < row["retained"] < row["high"]
    assert row["count"] == 20
    assert set(zip(kept["corruption"], kept["severity"], strict=True)) == {("fog", 2), ("fog", 4)}
    pd.testing.assert_frame_equal(kept, tabulate_retained(run))


def test_without_a_control_nothing_is_retained(write_run):
    runs = [write_run(name, seed=seed, control=False) for seed, name in enumerate("ab")]
    assert runs[0].retained.empty
    comparison = Comparison(runs, resamples=300)
    assert not comparison.controlled
    assert comparison.table["control"].isna().all()
    assert not comparison.table["metric"].str.startswith("retained").any()
    (verdict,) = [verdict for verdict in comparison.verdicts if verdict.question == "stability"]
    assert verdict.answer == "can't tell"
    assert "control not measured" in verdict.sentence


def test_the_control_is_in_no_mean_over_corruptions(write_run):
    runs = [write_run(name, seed=seed, images=25) for seed, name in enumerate("ab")]
    row = _row(Comparison(runs, resamples=300).table, metric="js_divergence", layers="all", corruption="all")
    fog = runs[1].table[runs[1].table["corruption"] == "fog"]
    other = runs[1].table[runs[1].table["corruption"] == "other image"]
    assert row["mean"] == pytest.approx(fog["js_divergence"].mean())
    assert row["control"] == pytest.approx(other["js_divergence"].mean())
    assert row["retained"] == pytest.approx(1 - fog["js_divergence"].mean() / other["js_divergence"].mean())
    again = _row(Comparison(runs, resamples=300).table, metric="retained.js_divergence", layers="all", corruption="all")
    assert again["mean"] == pytest.approx(row["retained"])
    assert again["baseline_mean"] == pytest.approx(row["baseline_retained"])
    assert again["difference"] == pytest.approx(row["retained"] - row["baseline_retained"])


def test_a_control_of_numerical_noise_leaves_retained_undefined(write_run):
    def uniform(table):
        table.loc[table["js_divergence"].notna(), "js_divergence"] *= 1e-7
        return table

    run = write_run("a", images=20, adjust=uniform)
    kept = run.retained.set_index("metric")
    assert kept.loc["js_divergence", ["retained", "low", "high"]].isna().all().all()
    assert kept.loc["top_overlap", "retained"].notna().all()
    measured = write_run("b", images=20, info={"noise": {"top_overlap": [0.5, None, 0.0]}}).retained
    layers = measured[measured["metric"] == "top_overlap"].groupby("layer")["retained"].apply(lambda values: values.isna().all())
    assert layers.tolist() == [True, False, False]


@pytest.mark.filterwarnings("error")
def test_copies_of_one_image_leave_retained_undefined(write_run):
    """The control is 0, and so is the noise that was measured: no infinite value, no p-value, no warning."""

    def copies(table):
        control = table["corruption"] == "other image"
        table.loc[control, ["top_overlap", "attention_cosine", "rank_correlation"]] = 1.0
        table.loc[control, ["js_divergence", "received_shift"]] = 0.0
        return table

    info = {"noise": {name: [0.0] * 3 for name in ("top_overlap", "attention_cosine", "js_divergence", "received_shift")}}
    runs = [write_run(name, images=20, adjust=copies, info=info) for name in "ab"]
    assert runs[0].retained[["retained", "low", "high"]].isna().all().all()
    compared = Comparison([runs[0], write_run("c", images=20)], resamples=100)
    for comparison in (Comparison(runs, resamples=100), compared):
        rows = comparison.table[comparison.table["metric"].str.startswith("retained.")]
        assert len(rows)
        assert rows[["mean", "difference", "low", "high", "p_value", "effect_size"]].isna().all().all()
        stability = next(verdict for verdict in comparison.verdicts if verdict.question == "stability")
        assert "the control cannot be distinguished from numerical noise" in stability.sentence


def test_parts_of_equal_and_of_other_rows_are_read_alike(write_run, monkeypatch):
    run = write_run("a", images=17)
    rows = run.table.astype(dict.fromkeys(["gini", "top_overlap"], "float32"))
    lacking = (rows["image"] == 5) & (rows["corruption"] == "fog") & (rows["layer"] == 1)
    rows = rows[~lacking & (rows["image"] != 14)]  # 12, 13, 15, 16: numbers that lie further apart
    parts = [rows[rows["image"].between(first, first + 3 + (first == 12))] for first in range(0, 16, 4)]
    parts[2] = parts[2].sample(frac=1, random_state=0)  # another order
    for part in parts:
        part.to_parquet(run.path / "metrics" / f"part-{part['image'].min():05d}.parquet")
    monkeypatch.setattr("overfocus.run.BLOCK_ROWS", 1)
    expected = pd.concat(parts)
    again = Run(run.path)
    assert list(again.cells.numbers) == expected["image"].drop_duplicates().tolist()
    for column in ("gini", "top_overlap", "js_divergence"):
        assert _row(again.summary(), metric=column, corruption="fog", severity=4, layer=1)["count"] == 15
        for place, variant in enumerate(again.cells.variants):
            of_variant = expected[(expected["corruption"] == variant.corruption) & (expected["severity"] == variant.severity)]
            wide = of_variant.pivot(index="image", columns="layer", values=column).reindex(again.cells.numbers)
            np.testing.assert_array_equal(again.cells[column][:, place], wide.to_numpy("float64"))


def test_differences_rest_on_the_same_layers_and_variants(write_run):
    """The second run is the first with holes: whatever is left out of one is left out of both, so that nothing differs."""

    def with_holes(table):
        random = np.random.default_rng(9)
        whole = (table["layer"] == 2) & (table["corruption"] != "other image")
        holes = whole | (random.random(len(table)) < 0.2)
        table.loc[holes, ["gini", "js_divergence", "attention_cosine"]] = np.nan
        return table

    comparison = Comparison(
        [write_run("a", images=30, seed=3), write_run("b", images=30, seed=3, adjust=with_holes)], resamples=300
    )
    rows = comparison.table[~comparison.table["metric"].isin(["agreement", "correct"])]
    assert rows["difference"].abs().max() < 1e-12
    assert rows[["low", "high"]].abs().max().max() < 1e-6
    late = rows[(rows["metric"] == "gini") & (rows["layers"] == "late")]
    assert late.empty  # the second run has none of it


def test_groups_take_in_images_and_runs(write_run):
    """Three seeds against three: the interval is wider than that of the images alone, and as wide as the seeds differ."""

    def shifted(amount):
        def change(table):
            table.loc[table["gini"].notna(), "gini"] += amount
            return table

        return change

    first = [write_run(f"a{n}", images=40, seed=n, adjust=shifted(0.2 * n)) for n in range(3)]
    second = [write_run(f"b{n}", images=40, seed=10 + n, adjust=shifted(0.2 * n + 0.05)) for n in range(3)]
    groups = Comparison({"plain": first, "tap": second}, resamples=300)
    assert groups.names == ("plain", "tap")
    assert [len(group) for group in groups.groups] == [3, 3]
    row = _row(groups.table, metric="gini", layers="all", corruption="clean")
    means = [[run.table.query("corruption == 'clean'")["gini"].mean() for run in group] for group in (first, second)]
    assert row["difference"] == pytest.approx(np.mean(means[1]) - np.mean(means[0]))
    one = _row(Comparison([first[0], second[0]], resamples=300).table, metric="gini", layers="all", corruption="clean")
    assert row["high"] - row["low"] > 2 * (one["high"] - one["low"])
    seeds = np.sqrt(np.var(means[0], ddof=1) / 3 + np.var(means[1], ddof=1) / 3)
    assert row["high"] - row["difference"] > 2.7 * seeds  # Student's t of four degrees of freedom
    assert row["p_value"] > 0.5
    assert any("tap is 3 runs" in note for note in groups.notes)
    assert {verdict.model for verdict in groups.verdicts} == {"tap"}
    kept = _row(groups.table, metric="retained.js_divergence", layers="all", corruption="all")
    assert kept["low"] < kept["difference"] < kept["high"]


def test_two_runs_against_two_by_hand():
    """Three images: their differences have mean 5/3 and error 1/3, means of runs vary by 1 + 4/9; both arms in quadrature."""
    ours = np.array([[1.0, 2, 3], [3, 4, 5]])[:, :, None]
    theirs = np.array([[0.0, 1, 1], [0, 1, 5]])[:, :, None]
    found = paired_differences(ours, theirs)
    assert (found.mean[0], found.baseline_mean[0], found.difference[0]) == pytest.approx((3, 4 / 3, 5 / 3))
    of_images = stats.t.ppf(0.975, 2) / 3
    runs = 1 + 4 / 9  # variance 2 over two runs, and (4/3)² / 2 over two
    of_runs = stats.t.ppf(0.975, runs**2 / (1 + (4 / 9) ** 2)) * runs**0.5
    half = (of_images**2 + of_runs**2) ** 0.5
    assert (found.low[0], found.high[0]) == pytest.approx((5 / 3 - half, 5 / 3 + half))
    total = 1 / 9 + runs
    freedom = total**2 / ((1 / 9) ** 2 / 2 + 1 + (4 / 9) ** 2)
    assert found.p_value[0] == pytest.approx(2 * stats.t.sf(5 / 3 / total**0.5, freedom))
    assert found.count[0] == 3


def test_a_model_of_one_run_adds_no_spread_of_runs():
    ours = np.random.default_rng(0).normal(size=(3, 25, 4))
    theirs = np.random.default_rng(1).normal(size=(1, 25, 4))
    found = paired_differences(ours, theirs)
    arm = stats.t.ppf(0.975, 24) * (ours.mean(0) - theirs[0]).std(0, ddof=1) / 5
    of_runs = stats.t.ppf(0.975, 2) * ours.mean(1).std(0, ddof=1) / 3**0.5
    np.testing.assert_allclose(found.high - found.difference, np.hypot(arm, of_runs))


def test_equal_groups_do_not_differ(write_run):
    """Not even by rounding: what is retained is a ratio."""
    groups = {"A": [write_run(f"a{n}") for n in range(3)], "B": [write_run(f"b{n}") for n in range(2)]}
    table = Comparison(groups, resamples=50).table
    assert table["difference"].abs().max() < 1e-12
    assert set(table["p_value"].dropna()) == {1.0}


def test_groups_are_written_and_read(write_run, tmp_path):
    from overfocus.results.comparison import read_comparison

    groups = {"plain": [write_run("a0"), write_run("a1", seed=1)], "tap": [write_run("b0", seed=2)]}
    written = Comparison(groups, resamples=100)
    again = read_comparison(written.write(tmp_path / "out"))
    assert [len(group) for group in again.groups] == [2, 1]
    pd.testing.assert_frame_equal(written.table, again.table)
    assert any("a model with one run says nothing about how runs differ" in note for note in again.notes)
    with pytest.raises(RunError, match="expected at least one run in each group, got none in empty"):
        Comparison({"plain": groups["plain"], "empty": []})


def test_within_a_stratum_a_number_that_knows_the_corruption_tells_nothing(write_run):
    """Divergence follows the severity, and so do flips; within a severity neither knows of the other."""
    random = np.random.default_rng(0)
    variants = (("clean", 0), ("fog", 1), ("fog", 5))

    def by_strength(table):
        strength = table["severity"].map({0: 0.5, 1: 0.1, 5: 0.9}) + random.normal(0, 0.02, len(table))
        table["js_divergence"] = np.where(table["js_divergence"].notna(), strength, np.nan)
        return table

    runs = [write_run(name, images=200, variants=variants, adjust=by_strength) for name in "ab"]
    for run in runs:
        chance = run.predictions["severity"].map({0: 1.0, 1: 0.9, 5: 0.3})
        run.predictions["agreement"] = np.where(
            run.predictions["severity"] == 0, np.nan, (random.random(len(chance)) < chance).astype(float)
        )
    found = Comparison(runs, resamples=300).fragility.query("model == 'a' and layers in ('all', 'output')")
    within = _row(found, metric="js_divergence", corruption="all")
    pooled = _row(found, metric="js_divergence", corruption=POOLED)
    alone = _row(found, metric=CORRUPTION_ALONE)
    assert pooled["auroc"] > 0.75
    assert within["auroc_low"] < 0.5 < within["auroc_high"]
    assert alone["auroc"] == pytest.approx(pooled["auroc"], abs=0.06)
    assert within["strata"] == 2
    assert alone["corruption"] == POOLED
    strata = found[(found["metric"] == "js_divergence") & found["severity"].isin([1, 5])]
    weights = strata["flipped"] * (strata["count"] - strata["flipped"])
    assert within["auroc"] == pytest.approx(np.average(strata["auroc"], weights=weights))
    assert within["spearman"] == pytest.approx(np.average(strata["spearman"], weights=weights))


def test_another_baseline_does_not_replace_a_comparison(write_run, tmp_path):
    import overfocus

    first, second = write_run("a"), write_run("b", seed=1)
    overfocus.compare([first, second], output=tmp_path / "out", resamples=50)
    overfocus.compare([first, second], output=tmp_path / "out", resamples=50)  # the same is written again
    with pytest.raises(RunError, match="holds another comparison"):
        overfocus.compare([second, first], output=tmp_path / "out", resamples=50)
    comparison = overfocus.compare([second, first], output=tmp_path / "out", resamples=50, overwrite=True)
    assert comparison.baseline == "b"


def test_images_of_one_name_in_two_folders_are_all_kept_and_read_alike(write_run):
    """A name that stands twice counts among all that was asked for, read or not, in the comparison as in the report."""
    from overfocus_reports.model import shared_runs

    twice = ["x.png", "x.png", "y.png"]
    runs = [write_run("a", names=twice), write_run("b", names=twice, seed=1)]
    one = runs[1]
    one.predictions = one.predictions[one.predictions["image"] != 0]
    comparison = Comparison(runs, resamples=300)
    assert comparison.images == ["x.png", "y.png"]
    assert [run.images[0].image for run in shared_runs(runs)] == [1, 1]


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
