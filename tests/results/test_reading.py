"""A comparison comes back from its folder as it was, and says in one line where it cannot."""

import json
import shutil

import pandas as pd
import pytest

from overfocus.errors import RunError
from overfocus.results.comparison import Comparison, is_comparison, read_comparison
from overfocus.run import Run


@pytest.fixture
def written(tmp_path, synthetic_run):
    folder = tmp_path / "comparison"
    runs = [Run(synthetic_run(folder / "runs" / name, images=4, layers=2 + number)) for number, name in enumerate(("one", "two"))]
    return Comparison(runs, ["a", "b"], corruptions=["fog"], severities=[3], resamples=50).write(folder)


def test_the_same_table_comes_back(written):
    found = read_comparison(written)
    assert is_comparison(written)
    assert (found.names, found.path, found.resamples) == (("a", "b"), written, 50)
    pd.testing.assert_frame_equal(found.table, pd.read_parquet(written / "comparison.parquet"))


def test_moved_with_its_runs(written, tmp_path):
    moved = shutil.move(written, tmp_path / "moved")
    assert [run.path.parent.parent.name for run in read_comparison(moved).runs] == ["moved", "moved"]


def test_no_comparison(tmp_path, written):
    assert not is_comparison(tmp_path)
    with pytest.raises(RunError, match="expected the description of a comparison"):
        read_comparison(tmp_path)
    (written / "comparison.json").write_text("[]")
    with pytest.raises(RunError, match="cannot be read"):
        read_comparison(written)
    (written / "comparison.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(RunError, match="upgrade overfocus"):
        read_comparison(written)
