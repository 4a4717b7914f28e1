"""Saved runs brought together: which images and versions, which numbers, and what does not compare."""

import json

import numpy as np
import pandas as pd
import pytest

import overfocus
from overfocus import Comparison, RunError
from overfocus.statistics.panel import LAYER_GROUPS, read_panel


@pytest.fixture
def pair(write_run):
    """Two runs of twenty images."""
    return [write_run("plain", seed=1), write_run("mended", seed=2, shift=0.2)]


def _row(comparison, **identity):
    table = comparison.table
    for name, value in identity.items():
        table = table[table[name] == value]
    (row,) = table.to_dict("records")
    return row


def test_means_and_differences_are_those_of_the_tables(pair):
    comparison = Comparison(pair)
    base, other = (run.table for run in pair)
    row = _row(comparison, metric="js_divergence", layers="all", corruption="fog", severity=4)
    means = [
        table.query("corruption == 'fog' and severity == 4").groupby("image")["js_divergence"].mean() for table in (base, other)
    ]
    assert row["baseline_mean"] == pytest.approx(means[0].mean())
    assert row["mean"] == pytest.approx(means[1].mean())
    assert row["difference"] == pytest.approx((means[1] - means[0]).mean())
    assert row["low"] < row["difference"] < row["high"]
    assert row["effect_size"] == pytest.approx((means[1] - means[0]).mean() / (means[1] - means[0]).std())
    assert (row["model"], row["count"]) == ("mended", 20)
    every = _row(comparison, metric="gini", layers="late", corruption="all")
    late = [table.query("corruption == 'fog' and layer == 2")["gini"].mean() for table in (base, other)]
    assert every["difference"] == pytest.approx(late[1] - late[0])
    output = _row(comparison, metric="agreement", corruption="fog", severity=2)
    assert output["layers"] == "output"
    assert output["mean"] == pytest.approx(pair[1].predictions.query("severity == 2")["agreement"].mean())


def test_rows_are_what_the_contract_names(pair):
    table = Comparison(pair).table
    assert set(table.columns) >= {
        "metric", "layers", "corruption", "severity", "model", "mean", "difference", "low", "high", "p_value", "p_adjusted",
        "effect_size", "baseline_mean", "count",
    }  # fmt: skip
    assert not table.duplicated(["metric", "layers", "corruption", "severity", "model"]).any()
    assert set(table["layers"]) == {"all", "early", "middle", "late", "output"}
    assert (table["p_adjusted"] >= table["p_value"]).all()
    stable = table["metric"].isin(["top_overlap", "attention_cosine", "js_divergence"])
    assert table["control"].notna().equals(stable)
    assert {f"retained.{name}" for name in table.loc[stable, "metric"]} <= set(table["metric"])
    assert "other image" not in set(table["corruption"])
    assert not len(table[(table["corruption"] == "clean") & (table["metric"] == "js_divergence")])


def test_images_are_matched_by_name(write_run):
    """The same table under shuffled and missing images gives the same differences as the common images."""
    names = [f"{number:03d}.png" for number in range(20)]
    first = write_run("a", names=names)
    second = write_run("b", names=[*names[:3], "other.png", *names[5:]], seed=3)
    comparison = Comparison([first, second])
    assert comparison.images == [*names[:3], *names[5:]]
    assert comparison.notes == (
        "2 images of a left out: not measured for every model",
        "1 image of b left out: not measured for every model",
    )
    common = [run.predictions[run.predictions["name"].isin(comparison.images)] for run in (first, second)]
    ours, theirs = (table.query("severity == 2").set_index("name")["confidence_drop"] for table in common)
    row = _row(comparison, metric="confidence_drop", corruption="fog", severity=2)
    assert row["difference"] == pytest.approx((theirs - ours).mean())


def test_images_of_one_name_are_told_apart_by_their_order(write_run):
    twice = ["cat.png", "cat.png", "dog.png"]
    comparison = Comparison([write_run("a", names=twice), write_run("b", names=[*twice, "cat.png"], seed=4)])
    assert comparison.images == twice


def _grouped(run):
    panel = read_panel(run)
    return {group: panel.layer_group(group) for group in LAYER_GROUPS if panel.layer_group(group)}


def test_layers_are_grouped_by_relative_depth(write_run):
    assert _grouped(write_run("a", layers=12)) == {
        "all": list(range(12)), "early": [0, 1, 2, 3], "middle": [4, 5, 6, 7], "late": [8, 9, 10, 11],
    }  # fmt: skip
    assert _grouped(write_run("b", layers=1)) == {"all": [0], "middle": [0]}
    some = write_run("c", layers=2, info={"attention_layers": 12})
    assert _grouped(some) == {"all": [0, 1], "early": [0, 1]}


def test_other_numbers_of_tokens_are_rescaled(write_run):
    small, large = write_run("small", grid=(4, 4), seed=1), write_run("large", grid=(8, 8), seed=1)
    comparison = Comparison([small, large])
    assert "different numbers of tokens" in comparison.notes[0]
    table = small.table.query("corruption == 'clean'")
    row = _row(comparison, metric="effective_tokens", layers="all", corruption="clean")
    assert row["baseline_mean"] == pytest.approx(((table["effective_tokens"] - 1 / 16) / (1 - 1 / 16)).mean())
    assert row["mean"] == pytest.approx(((table["effective_tokens"] - 1 / 64) / (1 - 1 / 64)).mean())
    row = _row(comparison, metric="top_share", layers="all", corruption="clean")
    assert row["baseline_mean"] == pytest.approx(((table["top_share"] - 2 / 16) / (1 - 2 / 16)).mean())
    row = _row(comparison, metric="attention_distance", layers="all", corruption="clean")
    places = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2)
    mean = np.linalg.norm(places[:, None] - places, axis=-1).mean()
    assert row["baseline_mean"] == pytest.approx((table["attention_distance"] / mean).mean())


def test_only_corruptions_asked_for(pair):
    comparison = Comparison(pair, severities=[4])
    assert set(zip(comparison.table["corruption"], comparison.table["severity"], strict=True)) == {
        ("clean", 0), ("fog", 4), ("all", 0),
    }  # fmt: skip
    with pytest.raises(RunError, match="the runs have no corruption snow in common; they share fog"):
        Comparison(pair, corruptions=["snow"])
    with pytest.raises(RunError, match="the runs have no severity 5 in common; they share 2, 4"):
        Comparison(pair, severities=[5])


def test_versions_that_only_one_run_has_are_named(write_run):
    more = (("clean", 0), ("fog", 2), ("fog", 4), ("snow", 1))
    comparison = Comparison([write_run("a"), write_run("b", variants=more)])
    assert comparison.notes == ("1 variant of b left out, not measured for every model: snow 1",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {"seed": 7}}, "b was measured with seed 7, a with 0; runs compare with the same settings only"),
        ({"settings": {"top_fraction": 0.5}}, "b was measured with top_fraction 0.5, a with 0.125"),
        ({"size": 48}, r"b was measured on other pixels \(height 48, width 48\) than a \(height 32, width 32\)"),
        ({"names": ["x.png"]}, "the runs have no image in common: images are matched by name and label"),
        ({"variants": (("snow", 1),)}, "the runs have no corruption and severity in common"),
    ],
)
def test_runs_that_do_not_compare(write_run, options, message):
    with pytest.raises(RunError, match=message) as raised:
        Comparison([write_run("a"), write_run("b", **options)])
    assert "\n" not in str(raised.value)


def test_fewer_than_two_runs(write_run):
    with pytest.raises(RunError, match="expected at least two runs to compare, a baseline and another, got 1"):
        Comparison([write_run("a")])


def test_names_tell_runs_apart(write_run):
    assert Comparison([write_run("a"), write_run("b")]).names == ("a", "b")
    same = {"checkpoint": {"name": "vit", "source": "best.pth", "input_size": [3, 32, 32]}}
    first, second = write_run("x", info=same), write_run("y", info=same)
    assert Comparison([first, second]).names == ("x", "y")
    files = {"checkpoint": same["checkpoint"] | {"source": "tap.pth.tar"}}
    assert Comparison([first, write_run("z", info=files)]).names == ("best", "tap")
    assert Comparison([first, first, second]).names == ("vit", "vit (2)", "vit (3)")


def test_a_model_is_equal_to_itself(write_run):
    run = write_run("a")
    comparison = Comparison([run, run])
    table = comparison.table
    assert (table["difference"] == 0).all()
    assert (table["p_adjusted"] == 1).all()
    rates = table["metric"].isin(["agreement", "correct"])
    assert (table.loc[~rates, ["low", "high"]] == 0).all().all()
    assert (table.loc[rates, "low"] < 0).all()  # twenty images say no more of a rate
    assert {verdict.answer for verdict in comparison.verdicts} == {"can't tell"}


def test_models_without_classifier(write_run):
    comparison = Comparison([write_run("a", classifier=False), write_run("b", classifier=False, seed=5)])
    assert set(comparison.table.loc[comparison.table["layers"] == "output", "metric"]) == {"confidence_drop", "output_cosine"}
    (verdict,) = [verdict for verdict in comparison.verdicts if verdict.question == "predictions"]
    assert verdict.rows["metric"].tolist() == ["output_cosine"]
    assert not len(comparison.fragility)
    assert not len(comparison.reliability)


def test_evaluations_are_compared_by_their_predictions(write_run):
    evaluations = [write_run("a", attention=False), write_run("b", attention=False, seed=5)]
    comparison = Comparison(evaluations)
    assert set(comparison.table["layers"]) == {"output"}
    assert [verdict.question for verdict in comparison.verdicts] == ["predictions"]
    assert not len(comparison.fragility)
    mixed = Comparison([write_run("c"), evaluations[1]])
    assert set(mixed.table["layers"]) == {"output"}
    assert set(mixed.fragility["model"]) == {"c"}


def test_is_written_and_read_by_others(pair, tmp_path):
    comparison = Comparison(pair, path=tmp_path / "out")
    comparison.write(tmp_path / "out")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "comparison.parquet"), comparison.table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "fragility.csv"), comparison.fragility)
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["baseline"] == "plain"
    assert [verdict["question"] for verdict in found["verdicts"]] == ["overfocus", "stability", "predictions"]
    assert len(found["table"]) == len(comparison.table)
    assert found["rule"] == comparison.rule


def test_the_same_runs_give_the_same_numbers(pair):
    pd.testing.assert_frame_equal(Comparison(pair).table, Comparison(pair).table)


def test_metrics_that_foretell_flips(write_run):
    """Images whose received attention moved far are those that flip."""
    run = write_run("a", images=40)
    flipped = run.predictions["agreement"] == 0
    own = run.table["corruption"] != "other image"
    moved = np.repeat(flipped.to_numpy(), 3) + np.random.default_rng(0).normal(0, 0.1, own.sum())
    run.table.loc[own, "js_divergence"] = np.where(run.table.loc[own, "corruption"] == "clean", np.nan, moved)
    comparison = Comparison([run, write_run("b", images=40, seed=3)])
    found = comparison.fragility.query("model == 'a' and layers == 'all' and corruption == 'all'").set_index("metric")
    assert found.loc["js_divergence", "auroc"] > 0.99
    assert found.loc["js_divergence", "spearman"] > 0.7
    assert found.loc["attention_cosine", "auroc_low"] < 0.5 < found.loc["attention_cosine", "auroc_high"]
    assert found.loc["gini", "count"] == 80
    assert found.loc["gini", "flipped"] == flipped.sum()
    groups = comparison.reliability.query("model == 'a' and metric == 'js_divergence' and layers == 'all'")
    assert groups["flip_rate"].iloc[0] == 0
    assert groups["flip_rate"].iloc[-1] == 1
    assert groups["value"].is_monotonic_increasing
    assert groups["count"].sum() == 80


def test_tables_for_papers_escape_names(write_run):
    comparison = Comparison([write_run("a"), write_run("tap_50%|x")])
    assert "tap\\_50%\\|x" in comparison.to_markdown()
    lines = comparison.to_markdown().splitlines()
    assert {len(line.replace("\\|", "").split("|")) for line in lines} == {14}
    latex = comparison.to_latex()
    assert r"tap\_50\%$|$x" in latex
    assert latex.startswith("\\begin{tabular}{llllrrrrrrrr}\n\\toprule\n")
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {11}
    overlap = [line for line in lines if line.startswith("| Top-k overlap |")]
    assert len(overlap) == 1
    assert lines[lines.index(overlap[0]) - 1].startswith("| Effective tokens | all | all corruptions")


def test_is_exported():
    assert overfocus.Comparison is Comparison


def test_same_names_of_other_pixels_are_refused(write_run):
    """Images in memory have names such as "image 0": two runs of other images under these names do not compare."""
    runs = [write_run(name, names=["a", "b", "c"]) for name in "xyz"]
    for run, pixels in zip(runs, ("1", "1", "2"), strict=True):
        for image in run.description.images:
            object.__setattr__(image, "sha256", pixels * 64)
    Comparison(runs[:2])
    with pytest.raises(RunError, match="a shows other pixels in z than in x"):
        Comparison([runs[0], runs[2]])
