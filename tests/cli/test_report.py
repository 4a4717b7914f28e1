"""`overfocus report` draws runs and comparisons again, whichever a folder holds."""

import json

import pytest

from overfocus.results.comparison import Comparison
from overfocus.run import Run


@pytest.mark.slow
def test_runs_and_comparisons(overfocus, tmp_path, synthetic_run):
    runs = [Run(synthetic_run(tmp_path / name, images=3, layers=1, displayed=1)) for name in ("one", "two")]
    Comparison(runs, ["a", "b"], resamples=20).write(tmp_path / "comparison")
    result = overfocus("report", tmp_path / "one", tmp_path / "comparison", "--json")
    assert result.exit_code == 0, result.output
    pages = json.loads(result.stdout)
    assert [page.split("/")[-2] for page in pages] == ["one", "comparison"]
    assert "is identical to" in (tmp_path / "comparison" / "report.html").read_text()


def test_neither(overfocus, tmp_path):
    result = overfocus("report", tmp_path)
    assert result.exit_code == 1
    assert "expected a run folder" in result.stderr
