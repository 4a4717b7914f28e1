"""`kill -9` at random moments of every command that writes: started again, it gives the same tables and weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "moments",
    [pytest.param(5, marks=pytest.mark.slow, id="5 moments"), pytest.param(20, marks=pytest.mark.nightly, id="20 moments")],
)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("command", ["analyze", "compare", "evaluate", "ablate", "train"])
def test_killed_at_random_moments(command: str, processes: int, moments: int, tmp_path: Path) -> None:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "cli", ROOT / "reports")))
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kills.py")), str(tmp_path), command, str(processes), str(moments), "7"],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
    assert ended.stdout.count(": same") == moments
