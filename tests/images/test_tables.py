"""A CSV file beside images gives their labels."""

import numpy as np
import pytest
from PIL import Image

from overfocus.errors import ImageError
from overfocus.images.sources import find_images


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(tmp_path / f"{number:03d}.png")
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "filename,label\n000.png,cat\n001.png,dog\n002.png,cat\n",
        "id,breed\n000,cat\n001,dog\n002,cat\n",
        "label,image\ncat,000.png\ndog,001.png\ncat,002.png\n",
        "image_id,width,height,species\n000,4,4,cat\n001,4,4,dog\n002,4,4,cat\n",
        "000.png,cat\n001.png,dog\n002.png,cat\n",
        "path;target\n./000.png;cat\nx/../001.png;dog\n002.png;cat\n",
        "file\tclass\r\n000.png\tcat\r\n001.png\tdog\r\n002.png\tcat\r\n",
        '\ufefffile_name,label\n"000.png","cat"\n"001.png","dog"\n"002.png","cat"\n',
    ],
)
def test_headers_of_many_kinds(folder, text):
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    assert [image.label for image in find_images(folder)] == ["cat", "dog", "cat"]
    assert [image.label for image in find_images(folder / "labels.csv")] == ["cat", "dog", "cat"]


def test_images_in_a_folder_beside_the_table(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "a.jpg")
    (tmp_path / "train.csv").write_text("id,target\na,3.0\n")
    (image,) = find_images(tmp_path / "train.csv")
    assert (image.path, image.label) == (tmp_path / "train" / "a.jpg", "3")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("f,label\n000.png,a\n009.png,b\n", r"1 of the 2 images that it names are not there \(first: '009.png'\)"),
        ("f,label\n000.png,a\n000.png,a\n", "names 000.png 2 times"),
        ("f,label\n000.png,a\n./000.png,b\n", "names 000.png 2 times"),
        ("f,a,b\n000.png,1,2\n", "expected a column called label, class or target, got f, a, b"),
        ("f\n000.png\n", "got one column"),
        ("f,label\nx,1\n", "expected a column that names image files"),
        ("", "the file is empty"),
        ('f,label\n"000.png,a\n', "expected a column that names image files"),
    ],
)
def test_a_table_that_does_not_fit_is_told_in_one_line(folder, text, says):
    (folder / "labels.csv").write_text(text)
    with pytest.raises(ImageError, match=says) as told:
        find_images(folder / "labels.csv")
    assert "\n" not in str(told.value)


def test_all_images_of_a_folder_are_to_be_in_its_table(folder):
    (folder / "labels.csv").write_text("f,label\n000.png,a\n001.png,b\n")
    with pytest.raises(ImageError, match=r"1 of 3 images are not in labels.csv \(first: 002.png\)"):
        find_images(folder)
    assert len(find_images(folder / "labels.csv")) == 2


def test_other_tables_are_left_alone_and_two_are_refused(folder):
    (folder / "notes.csv").write_text("temperature,hour\n3,4\n")
    assert [image.label for image in find_images(folder)] == [None] * 3
    for name in ("a.csv", "b.csv"):
        (folder / name).write_text("f,label\n000.png,a\n001.png,b\n002.png,b\n")
    with pytest.raises(ImageError, match=r"a\.csv and b\.csv both name the images"):
        find_images(folder)
