from pathlib import Path

import pytest
import timm.data.imagenet_info
from PIL import Image

from overfocus.errors import ImageError, RunError
from overfocus.evaluation.layouts import add_clean_images, choose_portions, open_evaluation_data

IMAGENET = ["n01440764", "n01443537"]


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / name / "0.png")
    return folder


def tree(folder: Path, *corruptions: str) -> Path:
    return write(folder, *(f"{name}/{level}/{label}" for name in corruptions for level in (1, 2) for label in IMAGENET))


def test_imagenet_c_with_and_without_groups(tmp_path: Path) -> None:
    for folder in (tree(tmp_path / "flat", "fog", "snow"), tree(tmp_path / "groups", "weather/fog", "weather/snow")):
        data = open_evaluation_data(folder)
        assert data.layout == "ImageNet-C"
        assert [(portion.corruption, portion.severity) for portion in data.portions] == [
            ("snow", 1), ("snow", 2), ("fog", 1), ("fog", 2),
        ]  # fmt: skip
        assert all(portion.images.class_names == IMAGENET for portion in data.portions)
        assert data.corrupted


def test_other_trees_are_called_what_they_are(tmp_path: Path) -> None:
    assert open_evaluation_data(tree(tmp_path / "bar", "sparkles", "perlin_noise")).layout == "ImageNet-C-bar"
    assert open_evaluation_data(tree(tmp_path / "own", "sparkles", "coffee_stains")).layout == "tree of corruptions"
    for other in ("cat", "n99999999"):
        mine = write(tree(tmp_path / other, "fog", "snow"), f"fog/1/{other}")
        assert open_evaluation_data(mine).layout == "tree of corruptions"


def test_portions_of_a_tree_can_be_chosen(tmp_path: Path) -> None:
    data = open_evaluation_data(tree(tmp_path / "tree", "fog", "snow"))
    assert [(p.corruption, p.severity) for p in choose_portions(data, ["fog"], [2]).portions] == [("fog", 2)]
    with pytest.raises(ImageError, match="the tree has no frost; it has fog, snow"):
        choose_portions(data, ["frost"], None)
    with pytest.raises(ImageError, match="the tree has no severity 5; it has 1, 2"):
        choose_portions(data, None, [5])


def test_clean_images_come_before_those_of_the_tree(tmp_path: Path) -> None:
    data = open_evaluation_data(tree(tmp_path / "tree", "fog"))
    clean = write(tmp_path / "val", *IMAGENET)
    found = add_clean_images(data, clean)
    assert [(portion.corruption, portion.severity) for portion in found.portions] == [("clean", 0), ("fog", 1), ("fog", 2)]
    assert found.layout == "ImageNet-C"


def test_clean_images_have_the_classes_of_the_tree(tmp_path: Path) -> None:
    data = open_evaluation_data(tree(tmp_path / "tree", "fog"))
    with pytest.raises(ImageError, match="expected the classes of the tree, but cat is not in fog/1; give the clean images"):
        add_clean_images(data, write(tmp_path / "more", *IMAGENET, "cat"))
    write(tmp_path / "tree", "fog/2/n01484850")
    with pytest.raises(ImageError, match="but n01484850 is only in fog/2;"):
        add_clean_images(open_evaluation_data(tmp_path / "tree"), write(tmp_path / "val", *IMAGENET))
    with pytest.raises(RunError, match="clean images go with a tree corruption/severity/class, which the data are not"):
        add_clean_images(open_evaluation_data(tmp_path / "val"), tmp_path / "val")


def test_classes_that_are_numbers_are_no_severities(tmp_path: Path) -> None:
    data = open_evaluation_data(write(tmp_path, "1", "2", "3"))
    assert (data.layout, data.corrupted) == ("images", False)


@pytest.mark.parametrize(("letter", "identifiers"), [("A", ("n01498041", "n01531178")), ("R", ("n01443537", "n01484850"))])
def test_imagenet_a_and_r_by_the_folders_name(tmp_path: Path, letter: str, identifiers: tuple[str, str]) -> None:
    data = open_evaluation_data(write(tmp_path / f"imagenet-{letter.lower()}", *identifiers))
    assert data.layout == f"ImageNet-{letter}"
    assert data.synsets is not None
    assert len(data.synsets) == 200
    assert set(data.synsets) < set(timm.data.imagenet_info.ImageNetInfo("imagenet-1k").label_names())
    assert open_evaluation_data(write(tmp_path / "mine", *identifiers)).layout == "images"
