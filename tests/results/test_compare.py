"""Checkpoints and runs compared: one stream of images, the numbers of single runs, interruption, folders that come back."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import overfocus
from overfocus import Run, RunError
from overfocus.results.comparison import Comparison, is_comparison, read_comparison
from overfocus.run import folder_names
from overfocus.sweep.sweep import Subject

FEW = {"corruptions": ["gaussian_noise"], "severities": [2], "workers": 0, "progress": False, "resamples": 200}


def _compare(models, photos, output, **options):
    return overfocus.compare(models, images=photos, output=output, **FEW | options)


@pytest.fixture
def models(make_loaded):
    """Two models of equal and one of another input size and depth."""
    return [make_loaded("a"), make_loaded("b", seed=1), make_loaded("c", seed=2, size=48, depth=3)]


def test_numbers_are_those_of_single_analyses(models, photos, tmp_path):
    comparison = _compare(models[:2], photos, tmp_path / "out")
    assert comparison.path == tmp_path / "out"
    for loaded, run in zip(models, comparison.runs, strict=False):
        alone = overfocus.analyze(
            loaded, photos, ["gaussian_noise"], [2], tmp_path / f"alone-{loaded.name}", workers=0, progress=False
        )
        pd.testing.assert_frame_equal(run.table, alone.table)
        pd.testing.assert_frame_equal(run.predictions, alone.predictions)
        assert run.complete
    again = overfocus.compare([run.path for run in comparison.runs], output=tmp_path / "saved", resamples=200)
    pd.testing.assert_frame_equal(again.table, comparison.table)


def test_other_input_sizes_see_the_same_corrupted_pixels_resized(models, photos, tmp_path):
    comparison = _compare(models, photos, tmp_path / "out")
    first, _, last = comparison.runs
    shown = first.displayed[0]
    ours, theirs = first.maps(shown).pixels, last.maps(shown).pixels
    assert theirs.shape[1:3] == (48, 48)
    for own, resized in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(resized, Image.fromarray(own).resize((48, 48), Image.Resampling.BICUBIC))
    assert last.description.pixels == first.description.pixels
    assert last.description.pixels.height == 32
    assert comparison.notes[0] == "c takes 48×48 pixels: images were corrupted at 32×32 and resized for it"
    alone = overfocus.analyze(models[2], photos, ["gaussian_noise"], [2], tmp_path / "alone", workers=0, progress=False)
    with pytest.raises(RunError, match="c was measured on other pixels"):
        overfocus.compare([first, alone], output=tmp_path / "saved")


def test_images_are_corrupted_once_for_all_models(models, photos, tmp_path, monkeypatch):
    from overfocus.sweep import reading

    calls = []
    original = reading.corrupt_cached
    monkeypatch.setattr(
        reading, "corrupt_cached", lambda *args, **options: (calls.append(args[1]), original(*args, **options))[1]
    )
    _compare(models, photos, tmp_path / "out")
    assert len(calls) == 12


@pytest.mark.parametrize("stop", [7, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2, 4, 8))])
def test_interrupted_anywhere_it_goes_on_to_the_same_tables(models, photos, tmp_path, monkeypatch, stop):
    """Twelve images in shards of two, in rounds of four shards for each of three models."""
    whole = _compare(models, photos, tmp_path / "whole", batch_size=4)
    measure, calls = Subject.measure, iter(range(1000))

    def stopping(self, samples, plan):
        if next(calls) == stop:
            raise KeyboardInterrupt
        return measure(self, samples, plan)

    with monkeypatch.context() as patched:
        patched.setattr(Subject, "measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            _compare(models, photos, tmp_path / "parts", batch_size=4)
    assert not Run(tmp_path / "parts" / "runs" / "c").complete
    parts = _compare(models, photos, tmp_path / "parts", batch_size=4)
    for run, other in zip(whole.runs, parts.runs, strict=True):
        pd.testing.assert_frame_equal(run.table, other.table)
        pd.testing.assert_frame_equal(run.predictions, other.predictions)
    pd.testing.assert_frame_equal(whole.table, parts.table)


def test_a_finished_comparison_measures_nothing_again(models, photos, tmp_path, monkeypatch):
    first = _compare(models[:2], photos, tmp_path / "out")
    monkeypatch.setattr(Subject, "measure", None)
    pd.testing.assert_frame_equal(_compare(models[:2], photos, tmp_path / "out").table, first.table)


def test_a_bad_image_is_left_out_of_every_run(models, photos, tmp_path):
    (photos / "cat" / "001.png").write_text("no image")
    comparison = _compare(models, photos, tmp_path / "out")
    assert len(comparison.images) == 11
    assert [len(run.skipped) for run in comparison.runs] == [1, 1, 1]


def test_bad_input(models, photos, tmp_path, make_loaded):
    output = tmp_path / "out"
    with pytest.raises(RunError, match="expected at least two checkpoints or run folders, a baseline and another; got one"):
        overfocus.compare(models[:1], images=photos, output=output)
    with pytest.raises(RunError, match="sources must be a list of texts"):
        overfocus.compare("run/", output=output)
    run = _compare(models[:2], photos, output).runs[0]
    with pytest.raises(RunError, match="expected checkpoints only or run folders only, got both"):
        overfocus.compare([run, models[1]], images=photos, output=tmp_path / "mixed")
    with pytest.raises(RunError, match="images are measured for checkpoints; saved runs are compared on the images that they"):
        overfocus.compare([run, run], images=photos, output=tmp_path / "saved")
    with pytest.raises(RunError, match=r"photos: holds other files \(cat, dog\); choose another output"):
        _compare(models[:2], photos, photos)
    with pytest.raises(RunError, match="holds another run"):
        _compare([make_loaded("a", seed=5), models[1]], photos, output)
    with pytest.raises(RunError, match="expected one architecture for all checkpoints or one for each of 2, got 3"):
        _compare(models[:2], photos, tmp_path / "many", model=["a", "b", "c"])
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(RunError, match="but this is a file; choose another output"):
        _compare(models[:2], photos, file)


def test_names_of_folders():
    assert folder_names(["vit", "vit (2)", "a/b c"]) == ["vit", "vit_(2)", "a_b_c"]
    assert folder_names(["..", "a:b", "a?b"]) == ["0_model", "1_a_b", "2_a_b"]


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


def test_one_rule_for_the_folder_of_a_comparison(write_run, tmp_path):
    """The same settings continue, others are refused, and only what a comparison wrote is deleted."""
    folder = tmp_path / "comparison"
    runs = [write_run(name, seed=seed) for seed, name in enumerate(("a", "b"))]
    asked = {"output": folder, "resamples": 20}
    overfocus.compare(runs, **asked)
    (folder / "figures").mkdir(exist_ok=True)
    for name in ("figures/my photo.png", "figures/image-3.png"):
        (folder / name).write_bytes(b"x")
    overfocus.compare(runs, **asked)
    with pytest.raises(RunError, match=r"holds another comparison \(resamples 20 there, 30 asked for\)"):
        overfocus.compare(runs, **asked | {"resamples": 30})
    with pytest.raises(RunError, match=r"holds another comparison \(severities None there, "):
        overfocus.compare(runs, severities=[2], **asked)
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"holds other files \(thesis\.tex\)"):
        overfocus.compare(runs, **asked)
    overfocus.compare(runs, overwrite=True, **asked | {"resamples": 30})
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["my photo.png"]
    assert (folder / "thesis.tex").read_text() == "mine"
