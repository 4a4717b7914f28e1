"""Signals at random moments of every command that writes: started again, it gives the same tables and weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = ["analyze", "compare", "evaluate", "ablate", "train"]


def end_at_moments(folder: Path, command: str, processes: int, moments: int, signal: str) -> None:
    """Run kills.py."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "cli", ROOT / "reports")))
    program = str(Path(__file__).with_name("kills.py"))
    ended = subprocess.run(
        [sys.executable, program, str(folder), command, str(processes), str(moments), "7", signal],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
    assert ended.stdout.count(": same") == moments


@pytest.mark.parametrize(
    "moments",
    [pytest.param(5, marks=pytest.mark.slow, id="5 moments"), pytest.param(20, marks=pytest.mark.nightly, id="20 moments")],
)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_moments(command: str, processes: int, moments: int, tmp_path: Path) -> None:
    end_at_moments(tmp_path, command, processes, moments, "SIGKILL")


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("command", COMMANDS)
def test_asked_to_end(command: str, signal: str, tmp_path: Path) -> None:
    """Ctrl-C, `kill`, and a terminal that is closed while a worker reads images."""
    end_at_moments(tmp_path, command, 1, 3, signal)
