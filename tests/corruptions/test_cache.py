"""Corrupted images on disk: the same pixels, found again, and never the wrong ones."""

import numpy as np
import pytest

from overfocus import CorruptionError
from overfocus.corruptions import apply, corrupt, corrupt_cached


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)


def test_second_call_reads_what_the_first_wrote(image, tmp_path, monkeypatch):
    first = corrupt_cached(image, "fog", 2, 3, folder=tmp_path)
    np.testing.assert_array_equal(first, corrupt(image, "fog", 2, 3))

    def never(*_):
        raise AssertionError("corrupted again")

    monkeypatch.setattr(apply, "corrupt", never)
    np.testing.assert_array_equal(corrupt_cached(image, "fog", 2, 3, folder=tmp_path), first)
    np.testing.assert_array_equal(corrupt_cached(image, "fog", 2, 3, "cifar-c", folder=tmp_path), first)  # None chose this set


def test_each_argument_has_a_file_of_its_own(image, tmp_path):
    calls = [("fog", 2, 3, None), ("contrast", 2, 3, None), ("fog", 3, 3, None), ("fog", 2, 4, None), ("fog", 2, 3, "imagenet-c")]
    for call in calls:
        np.testing.assert_array_equal(corrupt_cached(image, *call, folder=tmp_path), corrupt(image, *call))
    corrupt_cached(image ^ 1, *calls[0], folder=tmp_path)
    corrupt_cached(image.reshape(50, 40, 3), *calls[0], folder=tmp_path)
    assert len([*tmp_path.rglob("*.npy")]) == len(calls) + 2


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"x" * 6100, "short"])
def test_damaged_files_are_written_anew(image, tmp_path, damage):
    expected = corrupt_cached(image, "contrast", folder=tmp_path)
    (path,) = tmp_path.rglob("*.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] if damage == "short" else damage)
    np.testing.assert_array_equal(corrupt_cached(image, "contrast", folder=tmp_path), expected)
    assert path.read_bytes() == whole


def test_pickled_objects_are_not_read(image, tmp_path):
    expected = corrupt_cached(image, "contrast", folder=tmp_path)
    (path,) = tmp_path.rglob("*.npy")
    np.save(path, np.array([{}] * 1500, object), allow_pickle=True)
    np.testing.assert_array_equal(corrupt_cached(image, "contrast", folder=tmp_path), expected)


def test_refusals_are_those_of_corrupt(image, tmp_path):
    with pytest.raises(CorruptionError, match="unknown corruption"):
        corrupt_cached(image, "rain", folder=tmp_path)
    with pytest.raises(CorruptionError, match="RGB pixels"):
        corrupt_cached(image[..., 0], "fog", folder=tmp_path)
    with pytest.raises(CorruptionError, match="severity"):
        corrupt_cached(image, "fog", 9, folder=tmp_path)
    assert not [*tmp_path.rglob("*.npy")]


def test_folder_that_cannot_be_written(image, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CorruptionError, match="cannot keep corrupted images"):
        corrupt_cached(image, "contrast", folder=tmp_path / "file")
