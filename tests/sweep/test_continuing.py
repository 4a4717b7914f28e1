"""A run that ends at any moment can be read, continued, and ends with the same tables; nobody else's files are touched."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch

import overfocus
from overfocus import Run, RunError
from overfocus.files import atomic_file
from overfocus.runs.folder import RunFolder
from overfocus.sweep import recorder
from overfocus.sweep.sweep import Subject

OPTIONS = {"corruptions": ["gaussian_noise"], "severities": [3], "batch_size": 6, "workers": 0, "device": "cpu"}

PROGRAM = """
import importlib.util, os, signal, sys
import overfocus
from overfocus.sweep import recorder
from overfocus.sweep.sweep import Subject

_, fixtures, photos, output, number, shards = sys.argv
spec = importlib.util.spec_from_file_location("fixtures", fixtures)
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
recorder.SECONDS_PER_PART = 0.0
measure, calls = Subject.measure, iter(range(1000))

def signalling(self, samples, plan):
    if next(calls) == int(shards):
        os.killpg(0, int(number))  # as a terminal does: the workers get it too
    return measure(self, samples, plan)

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell starts in the background
Subject.measure = signalling
overfocus.analyze(
    fixtures._make_loaded(), photos, corruptions=["gaussian_noise"], severities=[3], output=output,
    batch_size=6, workers=1, device="cpu",
)
"""


def start(photos, output, number, shards):
    """The program, in which that signal arrives after so many shards; its exit status and what it says."""
    fixtures = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-c", PROGRAM, *map(str, (fixtures, photos, output, int(number), shards))]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    return ended.returncode, ended.stderr


@pytest.fixture
def parts_after_every_shard(monkeypatch):
    """Write a part after each batch instead of after some seconds."""
    monkeypatch.setattr(recorder, "SECONDS_PER_PART", 0.0)


@pytest.fixture
def stop_after(monkeypatch):
    """Make the measuring raise an error after a number of shards."""

    def stop(shards, error):
        measure, calls = Subject.measure, iter(range(1000))

        def stopping(self, samples, plan):
            if next(calls) == shards:
                raise error
            return measure(self, samples, plan)

        monkeypatch.setattr(Subject, "measure", stopping)

    return stop


def assert_same(run, other):
    """Tables, maps and images are the same to the last bit."""
    pd.testing.assert_frame_equal(run.table, other.table, check_exact=True)
    pd.testing.assert_frame_equal(run.predictions, other.predictions, check_exact=True)
    assert run.displayed == other.displayed
    for image in run.displayed:
        np.testing.assert_array_equal(run.maps(image).pixels, other.maps(image).pixels)
        np.testing.assert_array_equal(run.maps(image).attention[1], other.maps(image).attention[1])
    for image in run.table["image"].unique():
        np.testing.assert_array_equal(run.received(image, "gaussian_noise", 3), other.received(image, "gaussian_noise", 3))


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_process_is_continued(loaded, write_images, tmp_path, kills):
    """kill -9 while it measures, then to the end."""
    photos = write_images(tmp_path / "photos", 12)
    whole = overfocus.analyze(loaded, photos, output=tmp_path / "whole", **OPTIONS)
    done = 0
    for _ in range(kills):
        assert start(photos, tmp_path / "run", signal.SIGKILL, 1)[0] == -signal.SIGKILL
        unfinished = Run(tmp_path / "run")
        assert not unfinished.complete
        assert done < unfinished.description.done < 12
        done = unfinished.description.done
        pd.testing.assert_frame_equal(unfinished.table, whole.table[whole.table["image"] < done], check_exact=True)
    assert start(photos, tmp_path / "run", signal.SIGKILL, 1000) == (0, "")
    finished = Run(tmp_path / "run")
    assert finished.complete
    assert_same(finished, whole)
    assert not list((tmp_path / "run").rglob(".*"))


def test_interrupt_writes_what_is_measured(loaded, photos, tmp_path, stop_after, monkeypatch):
    whole = overfocus.analyze(loaded, photos, output=tmp_path / "whole", **OPTIONS)
    stop_after(2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    monkeypatch.undo()
    interrupted = Run(tmp_path / "run")
    assert interrupted.description.done == 4
    assert sorted(interrupted.table["image"].unique()) == [0, 1, 2, 3]
    assert_same(overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS), whole)


@pytest.mark.slow
def test_interrupt_from_the_keyboard_in_a_process(write_images, tmp_path):
    photos = write_images(tmp_path / "photos", 12)
    status, shown = start(photos, tmp_path / "run", signal.SIGINT, 2)
    assert status != 0
    assert shown.count("Traceback") == 1
    assert shown.strip().endswith("KeyboardInterrupt")
    assert 0 < Run(tmp_path / "run").description.done < 12


def test_complete_run_is_not_measured_again(loaded, photos, tmp_path, stop_after):
    first = overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    stop_after(0, AssertionError("measured again"))
    again = overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS | {"workers": 1})
    pd.testing.assert_frame_equal(again.table, first.table)


@pytest.mark.usefixtures("parts_after_every_shard")
def test_the_table_does_not_depend_on_part_boundaries(loaded, photos, tmp_path):
    parts = overfocus.analyze(loaded, photos, output=tmp_path / "parts", **OPTIONS)
    assert sorted(path.name for path in (tmp_path / "parts/metrics").iterdir()) == [
        f"part-0000{first}.parquet" for first in (0, 2, 4)
    ]
    recorder.SECONDS_PER_PART = 1000.0
    assert_same(overfocus.analyze(loaded, photos, output=tmp_path / "one", **OPTIONS), parts)
    assert len(list((tmp_path / "one/metrics").iterdir())) == 1


@pytest.mark.usefixtures("parts_after_every_shard")
@pytest.mark.parametrize("file", ["metrics/part-00002.parquet", "maps/image-3.npz", "predictions/part-00002.parquet", "run.json"])
def test_disk_full(loaded, photos, tmp_path, monkeypatch, file):
    """Whichever file hits the end of the disk, the run stays readable and goes on later to the same tables."""
    whole = overfocus.analyze(loaded, photos, output=tmp_path / "whole", **OPTIONS)
    real, writes = os.fsync, iter(range(1000))

    def full(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        wanted = f".{Path(file).name}."
        if path.name.startswith(wanted) and (file != "run.json" or next(writes) >= 2):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        RunError, match=r"the disk is full \(No space left on device\).*make room and start the same command"
    ) as raised:
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(os, "fsync", real)
    assert not list((tmp_path / "run").rglob(".*"))
    halted = Run(tmp_path / "run")
    assert sorted(halted.table["image"].unique()) == [0, 1]
    assert sorted(halted.predictions["image"].unique()) == [0, 1]
    assert_same(overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS), whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 5}, "seed 0 there, 5 asked for"),
        ({"severities": [3, 4]}, r"severities \[3\] there, \[3, 4\] asked for"),
        ({"batch_size": 4}, "batch_size 6 there, 4 asked for"),
        ({"limit": 3}, "limit None there, 3 asked for; other images, 6 there, 3 asked for"),
    ],
)
def test_another_run_is_refused(loaded, photos, tmp_path, options, words):
    first = overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    with pytest.raises(RunError, match=rf"run: holds another run \({words}\); choose another output or overwrite"):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS | options)
    pd.testing.assert_frame_equal(Run(tmp_path / "run").table, first.table)
    other = overfocus.analyze(loaded, photos, output=tmp_path / "run", overwrite=True, **OPTIONS | options)
    assert other.complete
    if "severities" in options:
        assert set(other.table["severity"]) == {0, 3, 4}
    if "limit" in options:
        assert other.table["image"].max() == 2


def test_other_weights_are_refused(loaded, photos, tmp_path):
    overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    loaded.model.head.bias.data += 1
    with pytest.raises(RunError, match=r"holds another run \(other weights"):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)


def test_foreign_files_are_never_deleted(loaded, photos, tmp_path):
    output = tmp_path / "run"
    (output / "metrics").mkdir(parents=True)
    foreign = [output / "thesis.tex", output / "metrics" / "notes.txt"]
    for path in foreign:
        path.write_text("precious")
    with pytest.raises(RunError, match=r"run: holds other files \(metrics, thesis\.tex\)"):
        overfocus.analyze(loaded, photos, output=output, **OPTIONS)
    overfocus.analyze(loaded, photos, output=output, overwrite=True, **OPTIONS)
    (output / "figures").mkdir()
    (output / "figures" / "layers-gini.png").touch()
    (output / "report.html").touch()
    again = overfocus.analyze(loaded, photos, output=output, overwrite=True, **OPTIONS | {"seed": 3})
    assert again.complete
    assert [path.read_text() for path in foreign] == ["precious", "precious"]
    assert not (output / "report.html").exists()
    assert not (output / "figures" / "layers-gini.png").exists()


def test_files_that_look_like_parts_are_not_mixed_in(loaded, photos, tmp_path):
    (tmp_path / "run" / "metrics").mkdir(parents=True)
    (tmp_path / "run" / "metrics" / "part-00003.parquet").write_text("not ours")
    with pytest.raises(RunError, match=r"part-00003\.parquet"):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", overwrite=True, **OPTIONS)
    assert (tmp_path / "run" / "metrics" / "part-00003.parquet").read_text() == "not ours"


def test_foreign_run_json(loaded, photos, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"scripts": {}}')
    for overwrite in (False, True):
        with pytest.raises(RunError, match="something else"):
            overfocus.analyze(loaded, photos, output=tmp_path / "run", overwrite=overwrite, **OPTIONS)
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"scripts": {}}


def test_damaged_run_json_can_be_overwritten(loaded, photos, tmp_path):
    overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    (tmp_path / "run" / "run.json").write_text('{"format": 1, ')
    with pytest.raises(RunError, match="cannot be read"):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    assert overfocus.analyze(loaded, photos, output=tmp_path / "run", overwrite=True, **OPTIONS).complete


def test_output_that_cannot_be_written(loaded, photos, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match=r"file.*choose another output"):
            overfocus.analyze(loaded, photos, output=output, **OPTIONS)

    def refuse(self, *_args, **_keywords):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(RunError, match=r"run: the output folder cannot be written \(Permission denied\)"):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)


def test_nothing_measured_yet(tmp_path, loaded, photos, stop_after):
    stop_after(0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    with pytest.raises(RunError, match="holds no results yet"):
        _ = Run(tmp_path / "run").table


@pytest.mark.parametrize("file", ["run.json", "maps/windows.npz"])
def test_end_while_the_run_begins(write_images, make_loaded, tmp_path, monkeypatch, file):
    """The first files are cut off as by kill -9, which leaves temporary ones; the same call begins again."""
    torch.manual_seed(0)
    swin = timm.models.SwinTransformer(img_size=32, patch_size=4, window_size=4, embed_dim=16, depths=(2,), num_heads=(2,))
    loaded, photos = make_loaded(swin), write_images(tmp_path / "photos")
    real = RunFolder._write

    def killed(self, name, write):
        if name == file:
            (self.path / name).parent.mkdir(exist_ok=True)
            (self.path / name).with_name(f".{Path(name).name}.1234.unfinished").touch()
            raise KeyboardInterrupt
        real(self, name, write)

    monkeypatch.setattr(RunFolder, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    monkeypatch.undo()
    run = overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    assert run.complete
    assert (tmp_path / "run" / "maps" / "windows.npz").is_file()
    assert not list((tmp_path / "run").rglob(".*"))


def test_failed_write_leaves_the_old_file(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "run.json").write_bytes(b"old")

    def fail(path):
        with atomic_file(path) as file:
            file.write(b"half")
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(RunError, match=r"run\.json: cannot be written \(Input/output error\)"):
        folder._write("run.json", fail)
    assert (tmp_path / "run.json").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.usefixtures("parts_after_every_shard")
@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "metrics/part-00002.parquet").unlink(),
        lambda run: (run / "predictions/part-00000.parquet").unlink(),
        lambda run: (run / "predictions/part-00004.parquet").write_bytes(b"PAR1"),
        lambda run: (run / "metrics/part-00002.parquet").write_bytes((run / "predictions/part-00002.parquet").read_bytes()),
        lambda run: edit(run, parts=[0, 4]),
        lambda run: edit(run, parts=[0, 2]),
        lambda run: edit(run, parts=[]),
        lambda run: edit(run, skipped=[{"name": "cat/000.png", "reason": "made up", "image": 0, "item": 0}]),
    ],
)
def test_a_complete_run_whose_tables_lack_rows_is_measured_again(loaded, photos, tmp_path, damage):
    whole = overfocus.analyze(loaded, photos, output=tmp_path / "whole", **OPTIONS)
    overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    damage(tmp_path / "run")
    assert_same(overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS), whole)


def edit(run, **changes):
    """Change run.json."""
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | changes))


@pytest.mark.usefixtures("parts_after_every_shard")
def test_done_too_high_goes_on_from_where_the_tables_end(loaded, photos, tmp_path, stop_after, monkeypatch):
    whole = overfocus.analyze(loaded, photos, output=tmp_path / "whole", **OPTIONS)
    stop_after(2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    monkeypatch.undo()
    edit(tmp_path / "run", done=6, status="complete")
    assert_same(overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS), whole)


@pytest.mark.usefixtures("parts_after_every_shard")
def test_a_missing_part_is_told_when_the_table_is_read(loaded, photos, tmp_path):
    overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    (tmp_path / "run/metrics/part-00002.parquet").unlink()
    with pytest.raises(RunError, match="metrics table that begins with image 2 is missing"):
        _ = Run(tmp_path / "run").table


def test_part_removed_while_it_measures(loaded, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "SECONDS_PER_PART", 0.0)
    measure = Subject.measure

    def removing(self, samples, plan):
        for path in (tmp_path / "run/metrics").glob("*"):
            path.unlink()
        return measure(self, samples, plan)

    monkeypatch.setattr(Subject, "measure", removing)
    with pytest.raises(RunError, match="a part of the tables from image 0 on is missing"):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    assert not Run(tmp_path / "run").complete


def test_only_files_of_a_run_are_overwritten(loaded, photos, tmp_path):
    overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    (tmp_path / "run" / "figures").mkdir()
    precious = [tmp_path / "run" / "figures" / name for name in ("my photo.png", "notes.txt", "cat.png")]
    drawn = [tmp_path / "run" / "figures" / name for name in ("layers-gini.png", "image-0.png", "top_overlap-by-layer.png")]
    for path in precious + drawn:
        path.touch()
    overfocus.analyze(loaded, photos, output=tmp_path / "run", overwrite=True, **OPTIONS | {"seed": 3})
    assert all(path.exists() for path in precious)
    assert not any(path.exists() for path in drawn)


def test_runs_of_the_first_version_are_read_but_not_continued(loaded, photos, tmp_path):
    overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    content = json.loads((tmp_path / "run" / "run.json").read_text()) | {"format": 1}
    for name in ("parts", "noise", "measures", "kind"):
        del content[name]
    (tmp_path / "run" / "run.json").write_text(json.dumps(content))
    assert len(Run(tmp_path / "run").table) == 6 * 3 * 2
    with pytest.raises(RunError, match=r"of overfocus .* in format 1, which can be read but not continued"):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("full")]
)
def test_out_of_memory_is_one_line_and_keeps_what_is_measured(loaded, photos, tmp_path, stop_after, monkeypatch, error):
    whole = overfocus.analyze(loaded, photos, output=tmp_path / "whole", **OPTIONS)
    stop_after(2, error)
    with pytest.raises(RunError, match=r"out of memory.* try a smaller batch_size than 6; what is measured is kept") as raised:
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    assert Run(tmp_path / "run").description.done == 4
    assert_same(overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS), whole)


def test_out_of_memory_in_the_first_look(loaded, photos, tmp_path, monkeypatch):
    def full(*_arguments, **_keywords):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(loaded.model, "forward", full)
    with pytest.raises(RunError, match=r"out of memory .* one image at a time does not fit; try a smaller image_size"):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
