"""Runs are matched by the names of their images and restricted to what all have."""

import numpy as np

from overfocus.run import Run
from overfocus_reports.shared_run import image_keys, shared_runs


def test_runs_are_matched_by_the_names_of_images(tmp_path, synthetic_run):
    one = Run(synthetic_run(tmp_path / "one", images=3, layers=1, names=("x.png", "y.png", "z.png")))
    two = Run(synthetic_run(tmp_path / "two", images=3, layers=1, names=("z.png", "x.png", "w.png"), severities=(3,)))
    first, second = shared_runs([one, two])
    assert [entry.name for entry in first.images] == [entry.name for entry in second.images] == ["x.png", "z.png"]
    assert [entry.image for entry in second.images] == [0, 2]
    np.testing.assert_array_equal(second.maps(0).pictures[0], two.maps(1).pictures[0])
    np.testing.assert_array_equal(second.received(2, "fog", 3)[0], two.received(0, "fog", 3)[0])
    assert sorted(set(zip(first.table["corruption"], first.table["severity"], strict=True))) == [
        ("clean", 0),
        ("fog", 3),
        ("gaussian_noise", 3),
        ("other image", 0),
    ]
    ours = second.predictions[second.predictions["image"] == 2]
    assert set(ours["name"]) == {"z.png"}


def test_images_of_one_name_are_counted(make_run):
    run = make_run(images=3, layers=1, names=("x.png", "x.png", "y.png"))
    assert image_keys(run) == {("x.png", None, 0): 0, ("x.png", None, 1): 1, ("y.png", None, 0): 2}


def test_a_single_run_stays_itself(run):
    assert shared_runs([run]) == [run]
