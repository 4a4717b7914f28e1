"""A group depends on its image, the variants and the seed; it can be prepared in any process."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from overfocus import RunError, corrupt
from overfocus.analysis.groups import GroupDataset, GroupLoader
from overfocus.analysis.pixels import InputSize
from overfocus.images import sources
from overfocus.images.sources import find_images

VARIANTS = [("clean", 0), ("glass_blur", 3), ("impulse_noise", 2)]


@pytest.fixture
def dataset(loaded, photos):
    """Six pictures with two corruptions each."""
    return GroupDataset(find_images(photos), VARIANTS, loaded.preprocess, seed=4)


def _pictures(group):
    """The pictures at the only input size."""
    (pictures,) = group.pictures.values()
    return pictures


def test_pictures_are_corrupted_at_the_models_input_size(dataset, loaded, photos):
    group = dataset[0]
    clean = loaded.preprocess.resize(Image.open(photos / "cat" / "000.png"))
    assert group.size == (48, 40)
    np.testing.assert_array_equal(_pictures(group)[0], clean)
    np.testing.assert_array_equal(_pictures(group)[1], corrupt(clean, "glass_blur", 3, seed=4))
    np.testing.assert_array_equal(_pictures(group)[2], corrupt(clean, "impulse_noise", 2, seed=4))


def test_other_models_get_the_same_corrupted_pictures_at_their_size(loaded, photos):
    other = InputSize(48, 40, "bilinear")
    same = InputSize.of(loaded.preprocess)
    group = GroupDataset(find_images(photos), VARIANTS, loaded.preprocess, seed=4, others=[other])[0]
    assert list(group.pictures) == [same, other]
    for own, resized in zip(group.pictures[same], group.pictures[other], strict=True):
        np.testing.assert_array_equal(resized, Image.fromarray(own).resize((40, 48), Image.Resampling.BILINEAR))


def test_dataset_can_be_sent_to_a_new_process(dataset):
    """Systems that do not fork pickle it."""
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(_pictures(copy[5]), _pictures(dataset[5]))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("start", [0, 4, 6])
def test_groups_come_in_order_from_where_the_run_stopped(dataset, workers, start):
    with GroupLoader(dataset, start, workers=workers, together=2) as loader:
        found = list(loader)
    assert [group.image for group in found] == list(range(start, 6))
    for group in found:
        np.testing.assert_array_equal(_pictures(group), _pictures(dataset[group.image]))


def test_killed_worker_is_told_in_one_line(dataset, monkeypatch):
    import signal

    monkeypatch.setattr(sources, "read_image", lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL))
    with (
        GroupLoader(dataset, 0, workers=1, together=1) as loader,
        pytest.raises(RunError, match=r"a process that prepares images ended \(DataLoader worker.*try fewer workers"),
    ):
        next(loader)


USED_OPENCV = """
import cv2, numpy as np
from overfocus.analysis.groups import GroupDataset, GroupLoader
from overfocus.analysis.pixels import InputSize
from overfocus.images.sources import find_images
from overfocus.preprocessing import Preprocess

cv2.setNumThreads(4)
for _ in range(5):
    cv2.GaussianBlur(cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (1500, 1500)), (9, 9), 3)
dataset = GroupDataset(find_images()[:2], [("clean", 0), ("fog", 3)], Preprocess((3, 64, 64)), seed=0)
with GroupLoader(dataset, 0, workers=1, together=1) as loader:
    print(len(list(loader)), cv2.getNumThreads())
"""


def test_workers_start_where_opencv_has_threads_already():
    """A copy of the process has no such threads, and waited for them for ever."""
    result = subprocess.run(
        [sys.executable, "-c", USED_OPENCV],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.stdout.split() == ["2", "4"], result.stderr
