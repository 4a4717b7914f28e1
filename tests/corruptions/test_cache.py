"""Corrupted images on disk: the same pixels, found again, and never the wrong ones."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from overfocus import CorruptionError
from overfocus.corruptions import apply, corrupt, corrupt_cached, open_cache


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
    assert len([*tmp_path.rglob("*.pixels")]) == len(calls) + 2


@pytest.mark.parametrize("damage", ["empty", "short", "long", "one bit", "another image's"])
def test_damaged_files_are_written_anew(image, tmp_path, damage):
    expected = corrupt_cached(image, "contrast", folder=tmp_path)
    (path,) = tmp_path.rglob("*.pixels")
    whole = path.read_bytes()
    corrupt_cached(255 - image, "contrast", folder=tmp_path)
    (other,) = set(tmp_path.rglob("*.pixels")) - {path}
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    contents = {"empty": b"", "short": whole[:-5], "long": whole + b"x", "one bit": bytes(flipped)}
    path.write_bytes(contents.get(damage, other.read_bytes()))
    np.testing.assert_array_equal(corrupt_cached(image, "contrast", folder=tmp_path), expected)
    assert path.read_bytes() == whole


def test_results_may_be_written_to(image, tmp_path):
    for _ in range(2):
        found = corrupt_cached(image, "contrast", folder=tmp_path)
        assert found.flags.writeable
        assert found.flags.c_contiguous


@pytest.mark.parametrize("limit", ["CACHE_BYTES", "SPARE_BYTES"])
def test_a_full_cache_keeps_what_it_has(image, tmp_path, monkeypatch, limit):
    first = corrupt_cached(image, "contrast", folder=tmp_path)
    apply._rooms.clear()
    monkeypatch.setattr(apply, limit, 0 if limit == "CACHE_BYTES" else 2**80)
    for name in ("contrast", "brightness"):
        np.testing.assert_array_equal(corrupt_cached(image, name, folder=tmp_path), corrupt(image, name))
    assert len([*tmp_path.rglob("*.pixels")]) == 1
    monkeypatch.setattr(apply, "corrupt", lambda *_: pytest.fail("corrupted again"))
    np.testing.assert_array_equal(corrupt_cached(image, "contrast", folder=tmp_path), first)


def test_files_stay_below_the_limit(image, tmp_path, monkeypatch):
    size = image.nbytes + 16
    monkeypatch.setattr(apply, "CACHE_BYTES", 3 * size)
    monkeypatch.setattr(apply, "_SUBFOLDERS", 1)
    monkeypatch.setattr(apply, "_path", lambda folder, _, name, severity, *__: folder / "00" / f"{name}{severity}.pixels")
    apply._rooms.clear()
    for severity in (1, 2, 3, 4, 5):
        corrupt_cached(image, "contrast", severity, folder=tmp_path)
    assert len([*tmp_path.rglob("*.pixels")]) == 3


def test_a_disk_that_takes_nothing_stops_nobody(image, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(apply.tempfile, "NamedTemporaryFile", full)
    np.testing.assert_array_equal(corrupt_cached(image, "contrast", folder=tmp_path), corrupt(image, "contrast"))
    assert not [*tmp_path.rglob("*.pixels")]


def _corrupt_all(folder):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    return [corrupt_cached(image, name, severity, folder=folder) for name in ("contrast", "brightness") for severity in (1, 3)]


def test_several_processes_share_a_folder(tmp_path):
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_corrupt_all, [tmp_path] * 3))
    for results in found:
        np.testing.assert_array_equal(results, _corrupt_all(None))
    assert len([*tmp_path.rglob("*.pixels")]) == 4
    assert not [*tmp_path.rglob("*.unfinished")]


def test_refusals_are_those_of_corrupt(image, tmp_path):
    with pytest.raises(CorruptionError, match="unknown corruption"):
        corrupt_cached(image, "rain", folder=tmp_path)
    with pytest.raises(CorruptionError, match="RGB pixels"):
        corrupt_cached(image[..., 0], "fog", folder=tmp_path)
    with pytest.raises(CorruptionError, match="severity"):
        corrupt_cached(image, "fog", 9, folder=tmp_path)
    assert not [*tmp_path.rglob("*.pixels")]


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CorruptionError, match="cannot keep corrupted images"):
        open_cache(tmp_path / "file")
    assert open_cache(None) is None
    assert open_cache(tmp_path / "new" / "folder").is_dir()
