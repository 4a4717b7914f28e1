"""Folders, files, text lists and the bundled samples become lists of images with names and labels."""

import pytest
from PIL import Image

from overfocus import ImageError
from overfocus.images.sources import find_images


@pytest.fixture
def folder(tmp_path):
    """Two classes, one of them nested, an image at the top, and files that are no images."""
    for name in ["top.png", "dog/b.JPG", "dog/a.png", "cat/deep/c.jpeg", "dog/.hidden.png", "__MACOSX/a.png", ".git/x.png"]:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    (tmp_path / "set" / "notes.md").write_text("no image")
    return tmp_path / "set"


def test_folder_is_searched_recursively_and_sub_folders_are_labels(folder):
    found = [(image.name, image.label) for image in find_images(folder)]
    assert found == [("top.png", None), ("cat/deep/c.jpeg", "cat"), ("dog/a.png", "dog"), ("dog/b.JPG", "dog")]
    assert all(image.path.is_absolute() and image.path.is_file() for image in find_images(str(folder)))


def test_links_are_followed_once(folder):
    (folder / "dog" / "loop").symlink_to(folder)
    (folder / "bird").symlink_to(folder / "cat")
    names = [image.name for image in find_images(folder)]
    assert len(names) == len(set(names)) == 4


def test_files_and_folders_mixed(folder):
    found = find_images([folder / "top.png", folder / "dog"])
    assert [(image.name, image.label) for image in found] == [("top.png", None), ("a.png", None), ("b.JPG", None)]


def test_text_list(folder):
    (folder / "a b.png").write_bytes((folder / "top.png").read_bytes())
    lines = [
        "# comment",
        "",
        "dog/a.png\tdog",
        "top.png",
        "cat/deep/c.jpeg 281",
        "a b.png",
        "missing one.png",
        f"{folder}/dog/b.JPG",
    ]
    (folder / "list.txt").write_text("\n".join(lines))
    found = [(image.name, image.label) for image in find_images(folder / "list.txt")]
    assert found == [
        ("dog/a.png", "dog"),
        ("top.png", None),
        ("cat/deep/c.jpeg", "281"),
        ("a b.png", None),
        ("missing one.png", None),
        (f"{folder}/dog/b.JPG", None),
    ]
    assert find_images(folder / "list.txt")[0].path == folder / "dog/a.png"


def test_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"empty: no images in this folder or below it; expected files that end in .*\.jpg"):
        find_images(tmp_path / "empty")


def test_nothing_found(tmp_path):
    (tmp_path / "list.txt").write_text("# nothing\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x9f")
    for source, words in [
        (tmp_path / "missing", "no such file"),
        (tmp_path / "list.txt", "the list is empty"),
        (tmp_path / "binary.txt", "expected a text file with one image per line in UTF-8"),
        ([], "empty list"),
    ]:
        with pytest.raises(ImageError, match=words):
            find_images(source)


def test_bundled_samples_suit_the_model():
    grey = find_images(None, (1, 32, 32))
    assert len(grey) == 32
    assert {image.label for image in grey} >= {"Trouser", "Sneaker"}
    photographs = find_images(None, (3, 224, 224))
    assert len(photographs) >= 5
    assert all(image.label is None for image in photographs)
