"""Runs of unusual shape; each is drawn in whole, so that most of these are slow."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from overfocus.errors import RunError
from overfocus_reports import draw_report


def test_import_stays_light():
    code = "import sys, overfocus_reports; print([m for m in ('matplotlib', 'torch', 'pandas', 'jinja2') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_unknown_name_is_an_attribute_error():
    import overfocus_reports

    with pytest.raises(AttributeError, match="no attribute 'summarize'"):
        _ = overfocus_reports.summarize


def test_folder_that_cannot_be_written(make_run):
    run = make_run(images=1, layers=1)
    (run.path / "figures").write_text("in the way")
    with pytest.raises(RunError, match="the report cannot be written there"):
        draw_report(run)


def test_run_without_results(make_run):
    run = make_run(images=1, layers=1)
    for part in (run.path / "metrics").iterdir():
        part.unlink()
    with pytest.raises(RunError, match="no results yet"):
        draw_report(run)


@pytest.mark.slow
def test_clean_images_alone(make_run):
    page = draw_report(make_run(corruptions=(), severities=(), layers=1, images=1)).read_text()
    assert "No corruption was applied" in page
    assert 'id="stability"' not in page
    assert 'id="pick-severity"' not in page


@pytest.mark.slow
def test_features_without_classes_or_pictures(make_run):
    page = draw_report(make_run(class_names=None, displayed=0, layers=2)).read_text()
    assert "This run kept no pictures." in page
    assert "Output cosine" in page


@pytest.mark.slow
def test_layers_without_a_grid(make_run):
    run = make_run(layers=2)
    run.description = changed_layer(run.description, 1, {"grid": None, "key_grid": None, "image_grid": None})
    received = run.received
    run.received = lambda *where: [received(*where)[0], None]
    draw_report(run)


@pytest.mark.slow
def test_undefined_values_are_counted_on_the_page(make_run):
    run = make_run(layers=2)
    run.table.loc[run.table.index[:3], "gini"] = np.nan
    assert "3 of 60 values are undefined" in draw_report(run).read_text()


@pytest.mark.slow
def test_size_follows_the_room_given(make_run):
    run = make_run(images=8, displayed=8, layers=12, side=14, pixels=224, corruptions=("fog", "snow"), severities=(1, 2, 3, 4, 5))
    large = draw_report(run).stat().st_size
    small = draw_report(run, megabytes=1.5).stat().st_size
    assert small <= 1.5e6 < large <= 3.0e6


@pytest.mark.slow
def test_unfinished_run_says_so(make_run):
    run = make_run(overrides={"status": "running"})
    assert "unfinished run" in draw_report(run).read_text()


def test_a_run_without_attention(make_run):
    run = make_run(images=1, layers=1)
    run.description = replace(run.description, kind="evaluation")
    with pytest.raises(RunError, match="measured predictions only"):
        draw_report(run)


def changed_layer(description, number, changes):
    """The description of a run with another layer."""
    layers = list(description.layers)
    layers[number] = replace(layers[number], **changes)
    return replace(description, layers=layers)
