"""A sample depends on its image, the variants and the seed; it can be prepared in any process."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from overfocus import RunError, corrupt
from overfocus.errors import out_of_memory_as
from overfocus.images import sources
from overfocus.images.sources import find_images
from overfocus.sweep.reading import ImageReader, InputSize, Unit, load_units, partners
from overfocus.variants import CLEAN_VARIANT, CONTROL_VARIANT, Variant

VARIANTS = [CLEAN_VARIANT, Variant("glass_blur", 3), Variant("impulse_noise", 2)]
ALL = range(3)


@pytest.fixture
def reader(loaded, photos):
    """Six images with two corruptions each."""
    return ImageReader(find_images(photos), VARIANTS, loaded.preprocess, seed=4)


def _pixels(sample):
    """The images at the only input size."""
    (images,) = sample.pixels.values()
    return images


def test_images_are_corrupted_at_the_models_input_size(reader, loaded, photos):
    sample = reader(0, ALL)
    clean = loaded.preprocess.resize(Image.open(photos / "cat" / "000.png"))
    assert sample.size == (48, 40)
    np.testing.assert_array_equal(_pixels(sample)[0], clean)
    np.testing.assert_array_equal(_pixels(sample)[1], corrupt(clean, "glass_blur", 3, seed=4))
    np.testing.assert_array_equal(_pixels(sample)[2], corrupt(clean, "impulse_noise", 2, seed=4))
    np.testing.assert_array_equal(_pixels(reader(0, range(1, 2)))[0], _pixels(sample)[1])


def test_other_models_get_the_same_corrupted_images_at_their_size(loaded, photos):
    other = InputSize(48, 40, "bilinear")
    same = InputSize.of(loaded.preprocess)
    sample = ImageReader(find_images(photos), VARIANTS, loaded.preprocess, seed=4, others=(other,))(0, ALL)
    assert list(sample.pixels) == [same, other]
    for own, resized in zip(sample.pixels[same], sample.pixels[other], strict=True):
        np.testing.assert_array_equal(resized, Image.fromarray(own).resize((40, 48), Image.Resampling.BILINEAR))


def test_reader_can_be_sent_to_a_new_process(reader):
    """Systems that do not fork pickle it."""
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(_pixels(copy(5, ALL)), _pixels(reader(5, ALL)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 4, 6])
def test_units_come_in_order(reader, workers, start):
    units = [Unit((item, item + 1), piece) for item in range(start, 6, 2) for piece in (range(2), range(2, 3))]
    found = list(load_units(reader, units, VARIANTS, workers=workers, ahead=2))
    assert [[sample.item for sample in samples] for samples in found] == [list(unit.items) for unit in units]
    for unit, samples in zip(units, found, strict=True):
        for sample in samples:
            np.testing.assert_array_equal(_pixels(sample), _pixels(reader(sample.item, unit.places)))


def test_killed_worker_is_told_in_one_line(reader, monkeypatch):
    import signal

    monkeypatch.setattr(sources, "read_image", lambda *_arguments: os.kill(os.getpid(), signal.SIGKILL))
    with (
        pytest.raises(RunError, match=r"a process that prepares images ended \(DataLoader worker.*try fewer workers"),
        out_of_memory_as(RunError, "a smaller batch"),
    ):
        next(load_units(reader, [Unit((0,), ALL)], VARIANTS, workers=1, ahead=1))


@given(images=st.integers(2, 300), seed=st.integers(-5, 10**12))
def test_every_image_has_another_as_its_partner_and_is_one(images, seed):
    found = partners(images, seed)
    assert sorted(found) == list(range(images))
    assert not (found == np.arange(images)).any()
    np.testing.assert_array_equal(found, partners(images, seed))


def test_partners_depend_on_the_seed_and_are_not_the_neighbours():
    assert partners(100, 0).tolist() != partners(100, 1).tolist()
    steps = (partners(1000, 0) - np.arange(1000)) % 1000
    assert 0.4 < (steps < 500).mean() < 0.6


def test_the_control_shows_the_partner_or_the_next_that_can_be_read(loaded, photos):
    variants = [CLEAN_VARIANT, CONTROL_VARIANT]
    reader = ImageReader(find_images(photos), variants, loaded.preprocess, seed=4)
    cycle = partners(6, 4)
    first, second = int(cycle[2]), int(cycle[cycle[2]])
    np.testing.assert_array_equal(_pixels(reader(2, range(2)))[1], _pixels(reader(first, range(1)))[0])
    expected = _pixels(reader(second, range(1)))[0]
    reader.sources[first].path.write_text("no image")
    np.testing.assert_array_equal(_pixels(reader(2, range(2)))[1], expected)
    for source in reader.sources:
        if source != reader.sources[2]:
            source.path.write_text("no image")
    assert not reader(2, range(2)).control


USED_OPENCV = """
import cv2, numpy as np
from overfocus.images.sources import find_images
from overfocus.preprocessing import Preprocess
from overfocus.sweep.reading import ImageReader, Unit, load_units
from overfocus.variants import CLEAN_VARIANT, Variant

cv2.setNumThreads(4)
for _ in range(5):
    cv2.GaussianBlur(cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (1500, 1500)), (9, 9), 3)
variants = [CLEAN_VARIANT, Variant("fog", 3)]
reader = ImageReader(find_images()[:2], variants, Preprocess((3, 64, 64)))
units = [Unit((item,), range(2)) for item in range(2)]
print(len(list(load_units(reader, units, variants, workers=1, ahead=1))), cv2.getNumThreads())
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
