import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from overfocus.datasets import open_evaluation_images, open_images
from overfocus.errors import ImageError

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

NAMED = datasets.ClassLabel(names=["ant", "cat"])
TEXT, WHOLE, REAL = datasets.Value("string"), datasets.Value("int64"), datasets.Value("float32")


def split_of(labels: list[Any] | None, kind: Any) -> Any:
    """As many small grey images as labels, or three without a column of labels."""
    rows = {"image": [Image.new("L", (5, 4), 10 * number) for number in range(len(labels or "123"))]}
    features = {"image": datasets.Image()}
    return datasets.Dataset.from_dict(
        rows if labels is None else rows | {"label": labels},
        features=datasets.Features(features if labels is None else features | {"label": kind}),
    )


def save(folder: Path, kind: Any, **splits: list[Any] | None) -> Path:
    datasets.DatasetDict({name: split_of(labels, kind) for name, labels in splits.items()}).save_to_disk(folder)
    return folder


def test_saved_and_parquet_folders(tmp_path: Path) -> None:
    save(tmp_path / "saved", NAMED, train=[0, 1, 1], test=[0])
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    split_of([0, 1, 1], NAMED).to_parquet(tmp_path / "parquet" / "data" / "Train-00000-of-00001.parquet")
    split_of([0, 1, 1], NAMED).save_to_disk(tmp_path / "unsplit")
    for name in ("saved", "parquet", "unsplit"):
        train = open_images(tmp_path / name, "train")
        assert train is not None
        assert train.class_names == ["ant", "cat"]
        assert train.labels.tolist() == [0, 1, 1]
        assert train.channels == 3
        assert train.image(1).mode == "RGB"
        assert train.image(1).getpixel((0, 0)) == (10, 10, 10)
    validation = open_images(tmp_path / "saved", "validation")
    assert validation is not None
    assert len(validation) == 1
    for name in ("parquet", "unsplit"):
        assert open_images(tmp_path / name, "validation") is None


def test_names_of_splits(tmp_path: Path) -> None:
    folder = save(tmp_path / "upper", NAMED, Training=[0, 1, 1], Testing=[0])
    assert [len(open_images(folder, split) or ()) for split in ("train", "validation")] == [3, 1]
    assert len(open_evaluation_images(save(tmp_path / "one", NAMED, everything=[0, 1]))) == 2
    with pytest.raises(ImageError, match="expected splits named train and validation, got first, second; rename them"):
        open_images(save(tmp_path / "two", NAMED, first=[0, 1], second=[0, 1]), "train")


def test_texts_are_names_of_classes(tmp_path: Path) -> None:
    folder = save(tmp_path / "text", TEXT, train=["dog", "cat", "elk", "cat"], test=["elk", "cat"])
    train, held_out = open_images(folder, "train"), open_images(folder, "validation")
    assert train is not None
    assert held_out is not None
    assert train.class_names == held_out.class_names == ["cat", "dog", "elk"]
    assert (train.labels.tolist(), held_out.labels.tolist()) == ([1, 0, 2, 0], [2, 0])
    assert open_evaluation_images(save(tmp_path / "test", TEXT, test=["b", "a"])).class_names == ["a", "b"]


def test_whole_numbers_are_classes(tmp_path: Path) -> None:
    for name, kind in (("whole", WHOLE), ("real", REAL)):
        images = open_images(save(tmp_path / name, kind, train=[2, 0, 0]), "train")
        assert images is not None
        assert (images.labels.tolist(), images.class_names) == ([2, 0, 0], ["0", "1", "2"])


@pytest.mark.parametrize(
    ("kind", "labels", "words"),
    [
        (TEXT, ["ant", None, "cat"], "expected a class in the column label for each image, got None for 1 of 3"),
        (NAMED, [None, None], "got None for 2 of 2, which usually marks a split without labels"),
        (NAMED, [-1, -1, 1], "expected classes from 0 in the column label, got -1 for 2 of 3 images, which usually marks"),
        (WHOLE, [-1], "got -1 for 1 of 1 images"),
        (REAL, [0, 0.5, 1.5], "expected whole numbers of classes, 0, 1, …, in the column label, got 0.5 (such are 2 of 3)"),
        (REAL, [0, math.nan], "got nan (such are 1 of 2)"),
        (datasets.Value("binary"), [b"a", b"b"], "expected names or numbers of classes in the column label, got binary"),
        (None, None, "expected a column of images and one of classes (a ClassLabel, or named label), got image"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, kind: Any, labels: list[Any] | None, words: str) -> None:
    folder = save(tmp_path / "data", kind, train=labels)
    with pytest.raises(ImageError, match=re.escape(words)) as caught:
        open_images(folder, "train")
    assert "\n" not in str(caught.value)
    unlabelled = open_images(folder, "train", labelled=False)
    assert unlabelled is not None
    assert (unlabelled.class_names, unlabelled.labels.tolist()) == ([], [0] * len(labels or "123"))


def test_the_part_to_validate_with_has_the_classes_trained(tmp_path: Path) -> None:
    folder = save(tmp_path / "strange", TEXT, train=["dog", "cat"], test=["cat", "elk"])
    with pytest.raises(
        ImageError, match=re.escape("(split test): has the class 'elk', which the training split does not have (")
    ):
        open_images(folder, "validation")
    folder = save(tmp_path / "unlabelled", NAMED, train=[0, 1], test=[-1])
    assert open_images(folder, "train") is not None
    with pytest.raises(ImageError, match=re.escape("(split test): expected classes from 0")):
        open_evaluation_images(folder)


def test_folders_that_hold_no_images(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"label": [0, 1]}).save_to_disk(tmp_path)
    for labelled in (True, False):
        with pytest.raises(ImageError, match=r"expected a column of images.*, got label"):
            open_images(tmp_path, "train", labelled=labelled)
