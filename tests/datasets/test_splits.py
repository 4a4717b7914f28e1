import re
from pathlib import Path

import pytest
from PIL import Image

from overfocus.datasets import open_evaluation_images, open_images, open_segmented_images
from overfocus.datasets.formats import SPLITS, split_names
from overfocus.errors import ImageError


def write_classes(folder: Path, *names: str, count: int = 1) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (4, 4)).save(folder / name / f"{number}.png")


def test_no_name_means_both_splits() -> None:
    assert not set(SPLITS["train"]) & set(SPLITS["validation"])
    assert split_names(["test", "Train", "VALID", "bus"], "validation") == ["VALID", "test"]
    assert split_names(["test", "Train", "VALID", "bus"], "train") == ["Train"]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [("Training", "Testing"), ("TRAIN", "Val"), ("train", "Valid"), ("Train", "dev"), ("training_set", "test_set")],
)
def test_folders_of_splits_have_various_names(tmp_path: Path, train: str, held_out: str) -> None:
    write_classes(tmp_path / train, "ant", "cat", count=3)
    write_classes(tmp_path / held_out, "ant", "cat")
    for labelled, names in ((True, ["ant", "cat"]), (False, [])):
        images, validation = (open_images(tmp_path, split, labelled=labelled) for split in SPLITS)
        assert images is not None
        assert validation is not None
        assert (images.class_names, len(images), len(validation)) == (names, 6, 2)


def test_validation_comes_before_test(tmp_path: Path) -> None:
    for number, name in enumerate(("Test", "Train", "Validation"), start=1):
        write_classes(tmp_path / name, "ant", "cat", count=number)
    assert len(open_evaluation_images(tmp_path)) == 6


def test_a_split_alone_is_that_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "one" / "train", "ant", "cat")
    write_classes(tmp_path / "other" / "val", "ant", "cat")
    images, held_out = open_images(tmp_path / "one", "train"), open_images(tmp_path / "other", "validation")
    assert images is not None
    assert held_out is not None
    assert images.class_names == held_out.class_names == open_evaluation_images(tmp_path / "one").class_names == ["ant", "cat"]
    assert open_images(tmp_path / "one", "validation") is None
    assert open_images(tmp_path / "other", "train") is None
    unlabelled = open_images(tmp_path / "other", "train", labelled=False)  # any folder of images
    assert unlabelled is not None
    assert len(unlabelled) == 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_classes(tmp_path, "bus", "train")
    write_classes(tmp_path / "train", "day", "night")
    write_classes(tmp_path / "carnival", "day")
    images = open_images(tmp_path, "train")
    assert images is not None
    assert images.class_names == ["bus", "carnival", "train"]


def test_splits_under_unknown_names_are_no_classes(tmp_path: Path) -> None:
    for name in ("seg_train", "seg_test"):
        write_classes(tmp_path / name, "ant", "bee", "cat", "dog")
    with pytest.raises(ImageError, match=re.escape("seg_train and seg_test with the same folders in them (ant, bee, cat …)")):
        open_images(tmp_path, "train")
    assert open_images(tmp_path, "train", labelled=False) is not None


@pytest.mark.parametrize("inside", [True, False])
def test_folders_of_masks_have_various_names_too(tmp_path: Path, inside: bool) -> None:
    for split, number in (("Training", 1), ("TEST", 2)):
        for kind in ("images", "masks"):
            folder = tmp_path / kind / split if inside else tmp_path / split / kind
            folder.mkdir(parents=True)
            Image.new("RGB" if kind == "images" else "L", (4, 4), number if kind == "masks" else 0).save(folder / "x.png")
    train, held_out = (open_segmented_images(tmp_path, split) for split in SPLITS)
    assert train is not None
    assert held_out is not None
    assert (int(train.mask(0).max()), int(held_out.mask(0).max())) == (1, 2)
