import json

import pytest
from typer.testing import CliRunner

from overfocus.corruptions import CORRUPTIONS
from overfocus.metrics.catalogue import CATALOGUE
from overfocus_cli.main import app

run = CliRunner().invoke


def test_corruptions_are_listed_with_their_groups() -> None:
    rows = json.loads(run(app, ["list", "corruptions", "--json"]).stdout)
    assert [row["name"] for row in rows] == list(CORRUPTIONS)
    assert next(row for row in rows if row["name"] == "fog")["groups"] == "weather, common, all"


def test_metrics_are_listed_with_their_meaning() -> None:
    rows = json.loads(run(app, ["list", "metrics", "--json"]).stdout)
    assert [row["name"] for row in rows] == list(CATALOGUE)
    assert all(row["high"] and row["range"] for row in rows)


def test_models_can_be_filtered_by_part_and_by_pattern() -> None:
    part = run(app, ["list", "models", "deit_tiny"]).stdout.split()
    assert "deit_tiny_patch16_224" in part
    assert all("deit_tiny" in name for name in part)
    pattern = run(app, ["list", "models", "deit_*_distilled_*"]).stdout.split()
    assert "deit_tiny_distilled_patch16_224" in pattern
    assert "deit_tiny_patch16_224" not in pattern


def test_models_of_overfocus_itself_are_listed() -> None:
    assert "tap_fan_tiny_12_p16_224" in run(app, ["list", "models", "fan"]).stdout.split()


@pytest.mark.parametrize("what", ["models", "corruptions", "metrics"])
def test_nothing_found_is_said(what: str) -> None:
    result = run(app, ["list", what, "xyzzy"])
    assert result.exit_code == 1
    assert result.stderr == f"overfocus: no {what} match 'xyzzy'; overfocus list {what} shows all\n"


def test_tables_name_everything() -> None:
    shown = run(app, ["list", "metrics"]).stdout
    assert all(name in shown for name in CATALOGUE)


def test_something_else_is_refused() -> None:
    result = run(app, ["list", "weather"])
    assert result.exit_code == 1
    assert "models" in result.stderr
