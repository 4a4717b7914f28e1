import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from overfocus.datasets import open_evaluation_images, open_images
from overfocus.datasets.formats import read_idx
from overfocus.errors import ImageError


def write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_class_folders(folder: Path, counts: dict[str, int]) -> None:
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 6), (40 * number, index, 0)).save(folder / name / f"{index}.png")


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "digits"
    folder.mkdir()
    random = np.random.default_rng(0)
    for prefix, count, ending in (("train", 12, ".gz"), ("t10k", 5, "")):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{ending}", random.integers(0, 256, (count, 7, 9), np.uint8))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{ending}", np.arange(count, dtype=np.uint8) % 3)
    return folder


def test_idx_files(idx_folder: Path) -> None:
    train, validation = open_images(idx_folder, "train"), open_images(idx_folder, "validation")
    assert train is not None
    assert validation is not None
    assert (len(train), len(validation), train.channels) == (12, 5, 1)
    assert train.class_names == ["0", "1", "2"]
    assert train.labels.tolist() == [index % 3 for index in range(12)]
    expected = np.random.default_rng(0).integers(0, 256, (12, 7, 9), np.uint8)
    assert np.array_equal(np.asarray(train.image(4)), expected[4])
    assert train.image(0).mode == "L"
    assert train.name(4) == "train-00004"


def test_idx_files_in_colour(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", pixels)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(4, dtype=np.uint8))
    images = open_images(tmp_path, "train")
    assert images is not None
    assert (images.channels, images.image(1).mode) == (3, "RGB")
    assert np.array_equal(np.asarray(images.image(1)), pixels[1])


@pytest.mark.parametrize("colours", [1, 2, 4])
def test_idx_files_with_another_number_of_colours(tmp_path: Path, colours: int) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((4, 5, 6, colours), np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(4, dtype=np.uint8))
    with pytest.raises(ImageError, match=re.escape(f"a last axis of 3 colours (RGB), got (4, 5, 6, {colours})")):
        open_images(tmp_path, "train")


def test_classes_of_fashion_mnist_are_named(idx_folder: Path) -> None:
    renamed = idx_folder.rename(idx_folder.with_name("FashionMNIST"))
    images = open_images(renamed, "train")
    assert images is not None
    assert images.class_names[0] == "T-shirt"
    assert len(images.class_names) == 10


def test_class_folders_with_splits(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "train", {"cat": 3, "ant": 2})
    write_class_folders(tmp_path / "val", {"cat": 1, "ant": 1})
    train, validation = open_images(tmp_path, "train"), open_images(tmp_path, "validation")
    assert train is not None
    assert validation is not None
    assert train.class_names == ["ant", "cat"]
    assert train.labels.tolist() == [0, 0, 1, 1, 1]
    assert train.name(2) == "cat/0.png"
    assert train.image(2).getpixel((0, 0)) == (0, 0, 0)
    assert train.channels == 3
    assert len(validation) == 2
    assert len(open_evaluation_images(tmp_path)) == 2


def test_class_folders_without_splits_are_for_training(tmp_path: Path) -> None:
    write_class_folders(tmp_path, {"cat": 3, "ant": 2})
    assert open_images(tmp_path, "validation") is None
    assert len(open_evaluation_images(tmp_path)) == 5


def test_images_beside_the_folders_are_left_out_with_a_note(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_class_folders(tmp_path / part, {"cat": 2, "ant": 1})
    for number, name in enumerate(("a.png", "b.JPG", ".hidden.png", "notes.txt", "train/c.png")):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / name, "PNG")
    (tmp_path / "folder.png").mkdir()
    train, validation = open_images(tmp_path, "train"), open_images(tmp_path, "validation")
    assert train is not None
    assert validation is not None
    assert (len(train), len(validation)) == (3, 3)
    beside = f"{tmp_path}: 2 images beside its folders are left out (a.png, b.JPG); move them into one to use them"
    inside = f"{tmp_path / 'train'}: 1 image beside its folders is left out (c.png); move it into one to use it"
    assert list(train.notes) == [beside, inside]
    assert list(validation.notes) == [beside]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"cat": 2, "ant": 0}, "class folder ant"),
        ({"cat": 2}, "at least two, got cat alone; put the images into folders named after their classes"),
        ({}, "at least two, got none"),
    ],
)
def test_class_folders_that_do_not_suffice(tmp_path: Path, counts: dict[str, int], words: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_class_folders(folder, counts)
    with pytest.raises(ImageError, match=words):
        open_images(folder, "train")


def test_data_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such folder"):
        open_images(tmp_path / "none", "train")
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="it is a file"):
        open_images(tmp_path / "file", "train")
    with pytest.raises(ValueError, match=re.escape("train, validation, got 'dev'")):
        open_images(tmp_path, "dev")


def test_damaged_idx_files(idx_folder: Path) -> None:
    labels = idx_folder / "train-labels-idx1-ubyte.gz"
    write_idx(labels, np.zeros(11, np.uint8))
    with pytest.raises(ImageError, match="a label for each of 12 images, got 11"):
        open_images(idx_folder, "train")
    labels.unlink()
    with pytest.raises(ImageError, match="expected its labels beside it"):
        open_images(idx_folder, "train")
    images = idx_folder / "t10k-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(ImageError, match=re.escape("expected 315 values of shape (5, 7, 9), got 314")):
        read_idx(images)
    images.write_bytes(b"\x89PNG")
    with pytest.raises(ImageError, match="begins with 89504e47"):
        read_idx(images)
    cut = idx_folder / "cut.gz"
    cut.write_bytes(gzip.compress(bytes(100))[:-9])
    with pytest.raises(ImageError, match="reading it failed"):
        read_idx(cut)
