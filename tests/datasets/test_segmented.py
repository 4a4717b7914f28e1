import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from overfocus.datasets.masks import CITYSCAPES, IGNORED, class_colours
from overfocus.datasets.segmented import is_segmented, open_segmented_images, open_segmented_portions
from overfocus.errors import ImageError

Array = np.ndarray[Any, Any]


def write(path: Path, content: Array | Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(path, **options)
    return path


def image(height: int = 6, width: int = 8) -> Array:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3)).astype(np.uint8)


def mask_of(*numbers: int) -> Array:
    """A 6×8 mask whose rows hold the numbers in turn."""
    return np.resize(np.array(numbers, np.uint8), 6)[:, None].repeat(8, 1)


def write_pair(folder: Path, name: str, mask: Array, part: str = "") -> None:
    write(folder / "images" / part / f"{name}.png", image())
    write(folder / "masks" / part / f"{name}.png", mask)


def write_cityscapes(folder: Path, ending: str = "labelTrainIds", number: int = 11) -> None:
    for split, city in (("train", "aachen"), ("val", "munster")):
        stem = f"{city}_000000_000019"
        write(folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", image())
        write(folder / "gtFine" / split / city / f"{stem}_gtFine_{ending}.png", mask_of(0, number, 255))
        write(folder / "gtFine" / split / city / f"{stem}_gtFine_color.png", image())


def test_images_and_masks_with_numbered_classes(tmp_path: Path) -> None:
    write_pair(tmp_path, "b", mask_of(0, 2, 255))
    write_pair(tmp_path, "a/c", mask_of(1, 0))
    images = open_segmented_images(tmp_path, "train")
    assert images is not None
    assert is_segmented(tmp_path)
    assert images.class_names == ["0", "1", "2"]
    assert [images.name(index) for index in range(len(images))] == ["b.png", "a/c.png"]
    assert np.array_equal(np.asarray(images.image(0)), image())
    assert np.array_equal(images.mask(0), mask_of(0, 2, IGNORED))
    assert images.mask(1).dtype == np.uint8
    assert images.colours.shape == (3, 3)
    assert open_segmented_images(tmp_path, "validation") is None
    (portion,) = open_segmented_portions(tmp_path)
    assert (portion.corruption, portion.severity, portion.layout, len(portion.images)) == ("clean", 0, "images", 2)


@pytest.mark.parametrize("inside", [True, False])
def test_splits_share_their_classes(tmp_path: Path, inside: bool) -> None:
    for split, number in (("train", 1), ("val", 3)):
        first, second = ("images", split) if inside else (split, "images")
        write(tmp_path / first / second / "x.png", image())
        first, second = ("masks", split) if inside else (split, "masks")
        write(tmp_path / first / second / "x.png", mask_of(0, number))
    train, validation = open_segmented_images(tmp_path, "train"), open_segmented_images(tmp_path, "validation")
    assert train is not None
    assert validation is not None
    assert train.class_names == validation.class_names == ["0", "1", "2", "3"]
    assert np.array_equal(validation.mask(0), mask_of(0, 3))


def test_classes_are_named_by_a_file_or_the_caller(tmp_path: Path) -> None:
    write_pair(tmp_path, "x", mask_of(0, 1))
    (tmp_path / "classes.txt").write_text("background\nbird\n\nfish\n")
    named, given = open_segmented_images(tmp_path, "train"), open_segmented_images(tmp_path, "train", class_names=["a", "b"])
    assert named is not None
    assert given is not None
    assert named.class_names == ["background", "bird", "fish"]
    assert given.class_names == ["a", "b"]


def test_palette_masks_are_read_by_index(tmp_path: Path) -> None:
    palette = Image.fromarray(mask_of(0, 1, 2), "L").convert("P")
    palette.putdata(mask_of(0, 1, 2).ravel().tolist())
    palette.putpalette([200, 9, 9, 3, 200, 3, 7, 7, 255])
    write(tmp_path / "images" / "x.png", image())
    write(tmp_path / "masks" / "x.png", palette)
    write(tmp_path / "images" / "y.png", image())
    write(tmp_path / "masks" / "y.png", Image.fromarray(mask_of(0, 1) > 0))
    write(tmp_path / "images" / "z.png", image())
    write(tmp_path / "masks" / "z.png", mask_of(0, 2).astype(np.uint16))
    images = open_segmented_images(tmp_path, "train")
    assert images is not None
    for index, numbers in enumerate([(0, 1, 2), (0, 1), (0, 2)]):
        assert np.array_equal(images.mask(index), mask_of(*numbers))


def test_upright_images_fit_their_masks(tmp_path: Path) -> None:
    turned = Image.fromarray(image(8, 6))
    exif = turned.getexif()
    exif[0x0112] = 6
    write(tmp_path / "images" / "x.jpg", turned, exif=exif)
    write(tmp_path / "masks" / "x.png", mask_of(0, 1))
    images = open_segmented_images(tmp_path, "train")
    assert images is not None
    assert images.image(0).size == (8, 6)
    assert images.mask(0).shape == (6, 8)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (mask_of(0, 1)[:4], "its image's 8×6 pixels, got 8×4"),
        (mask_of(0, 7, 9), "holds 7, 9, not among the 2 classes (0 … 1) nor 255"),
        (image(), "expected a class number for each pixel (a grey or palette PNG), got colours (RGB)"),
        (mask_of(0, 1).astype(np.uint16) * 700, "numbers from 0 to 255, got 0 … 700"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, mask: Array, words: str) -> None:
    write_pair(tmp_path, "x", mask)
    images = open_segmented_images(tmp_path, "train", class_names=["a", "b"])
    assert images is not None
    with pytest.raises(ImageError, match=re.escape(words)):
        images.mask(0)


def test_masks_that_cannot_be_read(tmp_path: Path) -> None:
    write_pair(tmp_path, "x", mask_of(0, 1))
    (tmp_path / "masks" / "x.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="expected a mask, reading it failed") as caught:
        open_segmented_images(tmp_path, "train")
    assert "\n" not in str(caught.value)
    (tmp_path / "masks" / "x.png").unlink()
    write(tmp_path / "masks" / "x.jpg", mask_of(0, 1))
    with pytest.raises(ImageError, match="JPEG changes class numbers"):
        open_segmented_images(tmp_path, "train")


def test_masks_without_classes(tmp_path: Path) -> None:
    write_pair(tmp_path, "x", mask_of(0, 255))
    with pytest.raises(ImageError, match="hold no class but 0"):
        open_segmented_images(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("background\nbird\n")
    with pytest.raises(ImageError, match="a foreground of 255 has to become 1"):
        open_segmented_images(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("one\n")
    with pytest.raises(ImageError, match="expected from 2 to 254 classes, got 1"):
        open_segmented_images(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("one\none\n")
    with pytest.raises(ImageError, match="each once"):
        open_segmented_images(tmp_path, "train")


def test_missing_masks(tmp_path: Path) -> None:
    for name in "xyz":
        write_pair(tmp_path, name, mask_of(0, 1))
    (tmp_path / "masks" / "y.png").unlink()
    with pytest.raises(ImageError, match=re.escape("no mask for 1 of 3 images (first: y.png)")):
        open_segmented_images(tmp_path, "train")


def test_folders_that_hold_no_segmentation(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no such folder"):
        open_segmented_images(tmp_path / "none", "train")
    with pytest.raises(ImageError, match="images/ beside masks/"):
        open_segmented_images(tmp_path, "train")
    with pytest.raises(ValueError, match="got 'dev'"):
        open_segmented_images(tmp_path, "dev")
    (tmp_path / "images").mkdir()
    (tmp_path / "leftImg8bit" / "val").mkdir(parents=True)
    assert not is_segmented(tmp_path)
    assert not is_segmented(tmp_path / "none")


@pytest.mark.parametrize(("ending", "number"), [("labelTrainIds", 11), ("labelIds", 24)])
def test_cityscapes(tmp_path: Path, ending: str, number: int) -> None:
    write_cityscapes(tmp_path, ending, number)
    images = open_segmented_images(tmp_path, "validation")
    assert images is not None
    assert len(images) == 1
    assert images.class_names[11] == "person"
    assert images.colours[11].tolist() == [220, 20, 60]
    assert images.name(0) == "munster/munster_000000_000019_leftImg8bit.png"
    unlabelled = 0 if ending == "labelTrainIds" else IGNORED
    assert np.array_equal(images.mask(0), mask_of(unlabelled, 11, IGNORED))
    (portion,) = open_segmented_portions(tmp_path)
    assert (portion.layout, portion.images.name(0)) == ("Cityscapes", images.name(0))


def test_train_ids_come_before_label_ids(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, "labelIds", 24)
    write_cityscapes(tmp_path, "labelTrainIds", 13)
    images = open_segmented_images(tmp_path, "train")
    assert images is not None
    assert np.array_equal(images.mask(0), mask_of(0, 13, IGNORED))


def test_label_ids_of_cityscapes_as_published() -> None:
    # the table of cityscapesscripts/helpers/labels.py, by train id
    published = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert [label_id for label_id, _ in CITYSCAPES.values()] == published


def test_cityscapes_that_is_incomplete(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, "labelIds", 40)
    images = open_segmented_images(tmp_path, "train")
    assert images is not None
    with pytest.raises(ImageError, match="holds 40, which is not a Cityscapes label id"):
        images.mask(0)
    with pytest.raises(ImageError, match="19 classes of Cityscapes, got names for 2"):
        open_segmented_images(tmp_path, "train", class_names=["a", "b"])
    next((tmp_path / "gtFine" / "train").rglob("*labelIds.png")).unlink()
    with pytest.raises(ImageError, match=r"1 of 1 images have no \*_labelTrainIds.png"):
        open_segmented_images(tmp_path, "train")


@pytest.mark.parametrize("nesting", ["{0}", "leftImg8bit/{0}", "{0}/leftImg8bit/val", "{0}/val"])
@pytest.mark.parametrize("labels", ["", "clean", ".."])
def test_corrupted_cityscapes(tmp_path: Path, nesting: str, labels: str) -> None:
    root = tmp_path / "c"
    stem = "munster_000000_000019"
    for part in ("fog/2", "gaussian_noise/1"):
        write(root / nesting.format(part) / "munster" / f"{stem}_leftImg8bit.png", image())
    write(root / labels / "gtFine" / "val" / "munster" / f"{stem}_gtFine_labelTrainIds.png", mask_of(3, 4))
    portions = open_segmented_portions(root)
    assert is_segmented(root)
    assert [(portion.corruption, portion.severity, portion.layout) for portion in portions] == [
        ("gaussian_noise", 1, "Cityscapes-C"),
        ("fog", 2, "Cityscapes-C"),
    ]
    assert np.array_equal(portions[0].images.mask(0), mask_of(3, 4))
    assert open_segmented_images(root, "train") is None


def test_corrupted_beside_clean_cityscapes(tmp_path: Path) -> None:
    write_cityscapes(tmp_path)
    for split, city in (("train", "aachen"), ("val", "munster")):
        write(tmp_path / "snow" / "3" / "leftImg8bit" / split / city / f"{city}_000000_000019_leftImg8bit.png", image())
    portions = open_segmented_portions(tmp_path)
    assert [(portion.corruption, portion.severity, len(portion.images)) for portion in portions] == [
        ("clean", 0, 1),
        ("snow", 3, 1),
    ]


def test_acdc(tmp_path: Path) -> None:
    for condition, split in (("fog", "train"), ("fog", "val"), ("night", "val"), ("rain", "train")):
        stem = f"{condition}_{split}_frame_000041"
        write(tmp_path / "rgb_anon" / condition / split / "GOPR0475" / f"{stem}_rgb_anon.png", image())
        write(tmp_path / "gt" / condition / split / "GOPR0475" / f"{stem}_gt_labelTrainIds.png", mask_of(10, 255))
    train, validation = open_segmented_images(tmp_path, "train"), open_segmented_images(tmp_path, "validation")
    assert train is not None
    assert validation is not None
    assert [train.name(index).split("/")[0] for index in range(len(train))] == ["fog", "rain"]
    assert [validation.name(index).split("/")[0] for index in range(len(validation))] == ["fog", "night"]
    assert np.array_equal(train.mask(1), mask_of(10, 255))
    portions = open_segmented_portions(tmp_path)
    assert [(portion.corruption, portion.severity, portion.layout) for portion in portions] == [
        ("ACDC fog", 0, "ACDC"),
        ("ACDC night", 0, "ACDC"),
        ("ACDC rain", 0, "ACDC"),
    ]


def test_colours_differ() -> None:
    many = class_colours([str(number) for number in range(60)])
    assert many.shape == (60, 3)
    assert len(np.unique(many, axis=0)) == 60
    assert np.array_equal(class_colours(["a", "b"]), many[:2])
    assert class_colours(["car", "road"]).tolist() == [[0, 0, 142], [128, 64, 128]]
