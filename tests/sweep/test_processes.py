"""Several processes share the images: the same tables, whoever measured what, and whoever was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import overfocus
from overfocus import Run, RunError
from overfocus.processes import Processes, is_main_process, reports_errors

ROOT = Path(__file__).parents[2]
OPTIONS = ["--corruption", "gaussian_noise", "--severity", "3", "--workers", "0", "--device", "cpu", "--batch-size", "6"]

SLOWED = """
import sys, time
from overfocus.sweep import recorder
from overfocus.sweep.sweep import Subject

recorder.SECONDS_PER_PART = 0.0
measure = Subject.measure
Subject.measure = lambda self, samples, plan: (time.sleep(0.3), measure(self, samples, plan))[1]
from overfocus_cli.main import run
run()
"""


def command(processes, *arguments, slowed=None):
    """The program in so many processes."""
    target = ["-m", "overfocus"] if slowed is None else [str(slowed)]
    if processes == 1:
        return [sys.executable, *target, *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *launcher, *target, *arguments]


def environment():
    paths = [str(ROOT), str(ROOT / "cli"), str(ROOT / "reports"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def start(processes, *arguments, slowed=None):
    return subprocess.run(
        command(processes, *arguments, slowed=slowed), env=environment(), capture_output=True, text=True, timeout=900
    )


def assert_same(one, other):
    pd.testing.assert_frame_equal(one.table, other.table, check_exact=True)
    pd.testing.assert_frame_equal(one.predictions, other.predictions, check_exact=True)
    assert one.displayed == other.displayed


@pytest.mark.slow
def test_two_processes_write_the_tables_of_one(tmp_path):
    shared = [*OPTIONS, "--limit", "13", "--no-report", "--json"]
    one = start(1, "analyze", *shared, "--output", str(tmp_path / "one"))
    two = start(2, "analyze", *shared, "--output", str(tmp_path / "two"))
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert two.stdout.count('"model"') == one.stdout.count('"model"')
    assert_same(Run(tmp_path / "one"), Run(tmp_path / "two"))


@pytest.mark.slow
def test_compare_and_ablate_share_images_too(tmp_path):
    options = [*OPTIONS, "--limit", "7"]
    for processes in (1, 2):
        result = start(processes, "ablate", *options, "--fraction", "0.1", "--output", str(tmp_path / f"ablate-{processes}"))
        assert result.returncode == 0, result.stderr
        result = start(processes, "compare", *options, "--no-report", "--output", str(tmp_path / f"compare-{processes}"))
        assert result.returncode == 0, result.stderr
    one, two = (overfocus.Ablation(tmp_path / f"ablate-{processes}") for processes in (1, 2))
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)
    for run in (tmp_path / "compare-1" / "runs").iterdir():
        assert_same(Run(run), Run(tmp_path / "compare-2" / "runs" / run.name))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_killed_process_ends_the_run_with_one_line_and_others_go_on(tmp_path, victim):
    """Four processes, one of them killed by kill -9; then three go on."""
    shared = ["analyze", *OPTIONS, "--limit", "60", "--no-report"]
    assert start(1, *shared, "--output", str(tmp_path / "whole")).returncode == 0
    slowed = tmp_path / "slowed.py"
    slowed.write_text(SLOWED)
    output = ["--output", str(tmp_path / "run")]
    process = subprocess.Popen(
        command(4, *shared, *output, slowed=slowed), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list((tmp_path / "run").glob("metrics/part-*")):
        time.sleep(0.05)
    ranks = {_rank(child): child for child in _children(process.pid)}
    os.kill(ranks[victim], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    ours = [line for line in errors.splitlines() if line.startswith("overfocus: ")]
    assert len(ours) == 1, errors
    assert "another process of this run ended; what was measured is kept" in ours[0]
    assert 0 < Run(tmp_path / "run").description.done < 60
    result = start(3, *shared, *output)
    assert result.returncode == 0, result.stderr
    assert_same(Run(tmp_path / "whole"), Run(tmp_path / "run"))


def _children(parent):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _rank(process):
    content = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next((int(entry[5:]) for entry in content if entry.startswith(b"RANK=")), -1)


def test_one_process_needs_nobody(monkeypatch):
    import torch

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Processes(torch.device("cpu"))
    assert alone.main
    assert alone.decide(lambda: 5) == 5
    assert alone.gather([1]) == [[1]]
    alone.wait()
    with pytest.raises(RunError, match="wrong"):
        alone.gather([1], RunError("wrong"))
    assert is_main_process()
    assert reports_errors()


def test_only_the_first_process_speaks(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_main_process()
    assert not reports_errors()
    monkeypatch.setattr("overfocus.processes._main", ("another host", 1))
    assert reports_errors()
    monkeypatch.setattr("overfocus.processes._main", (__import__("socket").gethostname(), os.getpid()))
    assert not reports_errors()


def test_a_training_that_has_its_own_group_is_left_alone(monkeypatch):
    """`analyze` in one process of a training would wait for the others for ever."""
    import torch.distributed

    from overfocus.processes import join_processes

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert join_processes("cpu").count == 1
