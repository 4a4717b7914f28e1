"""`check`: limits on what a run measured."""

import json
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from overfocus.errors import RunError
from overfocus.limits import check
from overfocus.run import Run
from overfocus_cli.main import app

MakeRun = Callable[..., Run]


def worst(run: Run, column: str, *, high: bool, clean: bool = True) -> float:
    """The same by hand: mean over images for each cell, then the worst."""
    table = run.table if column in run.table else run.predictions
    cells: dict[tuple[Any, ...], list[float]] = {}
    for row in table.to_dict("records"):
        if row["corruption"] not in (("other image",) if clean else ("other image", "clean")):
            cells.setdefault((row["corruption"], row["severity"], row.get("layer")), []).append(row[column])
    means = [sum(values) / len(values) for values in cells.values()]
    return max(means) if high else min(means)


def test_the_worst_layer_and_variant_count(make_run: MakeRun) -> None:
    run = make_run()
    expected = worst(run, "top_share", high=True)
    (limit,) = check(run, maximum={"top_share": expected + 1e-9})
    assert limit.kept
    assert limit.value == pytest.approx(expected)
    (limit,) = check(run.path, maximum={"top_share": expected - 1e-9})
    assert not limit.kept
    assert "top_share" in limit.sentence
    assert f"in layer {limit.layer} (blocks.{limit.layer}.attn)" in limit.sentence
    assert not limit.others


def test_every_layer_and_variant_that_fails_is_listed(make_run: MakeRun) -> None:
    run = make_run()
    means = run.table[run.table["corruption"] != "other image"].groupby(["corruption", "severity", "layer"])["gini"].mean()
    middle = float(means.median())
    (limit,) = check(run, maximum={"gini": middle})
    broken = means[means > middle].sort_values(ascending=False)
    found = [(row.corruption, row.severity, row.layer) for row in (limit, *limit.others)]
    assert sorted(found) == sorted(broken.index)
    assert [row.value for row in (limit, *limit.others)] == pytest.approx(broken.tolist())


def test_what_compares_with_the_clean_image_is_looked_at_under_corruption_only(make_run: MakeRun) -> None:
    run = make_run()
    (overlap, agreement) = check(run, minimum={"top_overlap": 0.0, "agreement": 0.0})
    assert overlap.value == pytest.approx(worst(run, "top_overlap", high=False, clean=False))
    assert overlap.corruption != "clean"
    assert agreement.value == pytest.approx(worst(run, "agreement", high=False, clean=False))
    assert agreement.layer is None


def test_layers_and_corruptions_narrow_it_down(make_run: MakeRun) -> None:
    run = make_run()
    table = run.table
    expected = table[(table["layer"] == 3) & (table["corruption"] == "fog")].groupby("severity")["gini"].mean().max()
    (limit,) = check(run, maximum={"gini": 1}, layers=[-1], corruptions=["fog"])
    assert (limit.value, limit.layer, limit.corruption) == (pytest.approx(expected), 3, "fog")


def test_an_undefined_value_is_not_kept(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    table = run.table.copy()
    table.loc[table["layer"] == 2, "gini"] = math.nan
    monkeypatch.setitem(run.__dict__, "table", table)
    (limit,) = check(run, maximum={"gini": 1})
    assert not limit.kept
    assert limit.sentence.startswith("gini is undefined in layer 2")


def test_what_is_retained(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    rows = [
        {"metric": "js_divergence", "corruption": "fog", "severity": severity, "layer": layer, "module": f"blocks.{layer}.attn"}
        | {"retained": 0.9 - 0.1 * layer - 0.01 * severity}
        for severity in (1, 3)
        for layer in (0, 1)
    ]
    monkeypatch.setattr(Run, "retained", pd.DataFrame(rows), raising=False)
    (limit,) = check(run, minimum={"retained.js_divergence": 0.78})
    assert (limit.kept, limit.layer, limit.severity) == (False, 1, 3)
    assert limit.value == pytest.approx(0.77)
    with pytest.raises(RunError, match="retained is not defined for gini; choose one of js_divergence"):
        check(run, minimum={"retained.gini": 0.5})
    monkeypatch.setattr(Run, "retained", pd.DataFrame([]), raising=False)
    with pytest.raises(RunError, match="needs the control"):
        check(run, minimum={"retained.js_divergence": 0.78})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "expected at least one limit"),
        (
            {"maximum": {"ginni": 1}},
            "holds no metric 'ginni'; `overfocus list metrics` explains those there are; did you mean gini?",
        ),
        ({"maximum": {"layer": 1}}, "holds no metric 'layer'"),
        ({"maximum": {"gini": "low"}}, "expected a finite number as the limit of gini, got 'low'"),
        ({"maximum": {"gini": 1}, "layers": [9]}, "has no layer 9; it holds 0, 1, 2, 3"),
        ({"maximum": {"gini": 1}, "corruptions": ["fogg"]}, "not 'fogg'; did you mean fog?"),
    ],
)
def test_what_cannot_be_checked(options: dict[str, Any], words: str, make_run: MakeRun) -> None:
    with pytest.raises(RunError) as caught:
        check(make_run(), **options)
    assert words in str(caught.value)


def test_the_command(make_run: MakeRun) -> None:
    run = make_run()
    passed = CliRunner().invoke(app, ["check", str(run.path), "--max", "top_share=1", "--min", "agreement=0"])
    assert passed.exit_code == 0, passed.output
    assert passed.stdout.count("ok") == 2
    failed = CliRunner().invoke(app, ["check", str(run.path), "--max", "top_share=0.01", "--min", "agreement=0", "--json"])
    assert failed.exit_code == 1
    answer = json.loads(failed.stdout)
    assert not answer["passed"]
    assert [row["kept"] for row in answer["limits"]] == [False, True]
    assert answer["limits"][0]["metric"] == "top_share"
    assert all(row["value"] > 0.01 and not row["kept"] for row in answer["limits"][0]["others"])
    assert answer["limits"][1]["others"] == []
    words = CliRunner().invoke(app, ["check", str(run.path), "--max", "top_share=0.01"])
    others = len(answer["limits"][0]["others"])
    assert len(words.stdout.splitlines()) == 1 + min(others, 10) + (others > 10)
    wrong = CliRunner().invoke(app, ["check", str(run.path), "--max", "top_share"])
    assert wrong.exit_code == 2
    assert "expected NAME=VALUE" in wrong.stderr
