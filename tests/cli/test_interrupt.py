"""Ctrl-C in the middle of a run is told in one line, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = ["--corruption", "noise", "--batch-size", "2", "--workers", "1", "--no-report", "--output", "run"]


@pytest.mark.slow
def test_interrupted_run_is_continued_by_the_same_command(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "overfocus", "analyze", str(checkpoint), "--images", str(photos), *COMMAND]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    information = tmp_path / "run" / "run.json"
    while process.poll() is None and not information.exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    output, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output == ""
    assert complaint == "overfocus: interrupted; the same command continues where it stopped\n"
    assert json.loads(information.read_text())["status"] == "running"

    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(information.read_text())["status"] == "complete"
