"""`open_images`: the labelled images of a data set, in any of the forms it may have on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int
from PIL import Image

from overfocus.datasets.formats import (
    SPLITS,
    is_hub_folder,
    is_idx_folder,
    open_hub_split,
    open_idx_split,
    refuse_unrecognised_splits,
    split_folders,
    subfolders,
)
from overfocus.errors import ImageError
from overfocus.images.sources import EXTENSIONS, ImageSource, find_images
from overfocus.text import printable, some


class ImageFiles:
    """Read from the disk image by image."""

    channels = 3
    numbering: list[str] | None = None
    notes: Sequence[str] = ()

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = list(sources)

    def __len__(self) -> int:
        return len(self._sources)

    def image(self, index: int) -> Image.Image:
        """One image as RGB.

        Raises:
            ImageError: it cannot be read.
        """
        return self._sources[index].read()

    def name(self, index: int) -> str:
        """Path below the folder."""
        return self._sources[index].name


class LabelledFiles(ImageFiles):
    """Images whose labels are in a CSV file, or that are in memory; images without a label have the class −1."""

    def __init__(self, sources: Sequence[ImageSource], numbering: Sequence[str] | None = None) -> None:
        super().__init__(sources)
        self.numbering = None if numbering is None else list(numbering)
        there = {source.label for source in sources if source.label is not None}
        self.class_names = [*(numbering or ()), *sorted(there - set(numbering or ()))]
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self.labels = np.array([numbers.get(source.label or "", -1) for source in sources], np.int64)
        self.hashes = {source.name: source.sha256 for source in sources if source.sha256 is not None}


class UnlabelledImages(ImageFiles):
    """All images in a folder and the folders in it; there are no classes, and all labels are 0.

    Raises:
        ImageError: there is no image.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(find_images(folder))
        self.class_names: list[str] = []
        self.labels = np.zeros(len(self), np.int64)


class ClassFolders(ImageFiles):
    """The classes are the sub-folders in the order of their names.

    Raises:
        ImageError: there are fewer than two class folders, or one holds no image.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.class_names = subfolders(folder)
        if len(self.class_names) < 2:
            there = f"{self.class_names[0]} alone" if self.class_names else "none"
            raise ImageError(
                f"{folder}: expected a folder for each class, at least two, got {there}; "
                "put the images into folders named after their classes, and give the folder of these (or of train/ and val/)"
            )
        found = find_images(folder)
        sources = [source for source in found if source.label is not None]
        self.notes = _left_out(folder, [source.name for source in found if source.label is None])
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self.labels = np.array([numbers[str(source.label)] for source in sources], np.int64)
        counts = np.bincount(self.labels, minlength=len(numbers))
        if empty := [name for name, count in zip(self.class_names, counts, strict=True) if not count]:
            which = ", ".join(empty[:5]) + (" …" if len(empty) > 5 else "")
            raise ImageError(
                f"{folder}: no images ({', '.join(EXTENSIONS)}) in the class folder {which}; add some or remove the folder"
            )
        super().__init__(sources)


def _left_out(folder: Path, names: Sequence[str]) -> list[str]:
    """A note on images that lie beside the folders of classes or splits, if there are any."""
    if not names:
        return []
    which, one = some([printable(name, 80) for name in names]), len(names) == 1
    there, them = ("1 image beside its folders is", "it") if one else (f"{len(names)} images beside its folders are", "them")
    return [f"{printable(folder)}: {there} left out ({which}); move {them} into one to use {them}"]


class LabelledImages(Protocol):
    """Images with a class each."""

    class_names: list[str]
    labels: Int[np.ndarray, "images"]
    """Class of each image, from 0."""
    numbering: list[str] | None
    """The names of the classes, where the data set itself numbers them; None where their order is that of folders or texts."""
    notes: Sequence[str]
    """What a user should know of them, in one line each."""
    channels: int
    """Of what `image` gives: 1 for "L", as grey IDX files are read, 3 for "RGB", as all else is, grey images too."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """One image, in mode "RGB" or "L".

        Raises:
            ImageError: it cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """What the image is called in tables."""
        ...


def open_images(source: str | Path, split: str, *, labelled: bool = True) -> LabelledImages | None:
    """The images of a split, "train" or "validation"; None where the data set has no part of that kind.

    - A folder of class folders: each folder in it is a class, images may lie deeper. Where it holds `train` beside `val` or
      `test`, or another of the names in `SPLITS`, or nothing but one of these, they are its splits; otherwise all of it is for
      training.
    - A CSV file with the names and labels of images, or a folder of images with such a file in it: all of it is for training.
    - IDX files, gzipped or not: a folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same of `t10k-`.
    - Without `labelled`, any folder of images, with `train` and `val` in it or not.
    - A folder that Hugging Face `datasets` wrote (`save_to_disk`) or reads (parquet files); needs that package.

    Raises:
        ImageError: there is nothing of these, a class folder is empty, labels and images differ in number, or a label is invalid.
    """
    if split not in SPLITS:
        raise ValueError(f"expected one of the splits {', '.join(SPLITS)}, got {split!r}")
    folder = Path(source)
    if folder.suffix.lower() == ".csv" and folder.is_file():
        return LabelledFiles(find_images(folder)) if split == "train" else None
    if not folder.is_dir():
        problem = "it is a file" if folder.exists() else "there is no such folder"
        raise ImageError(
            f"{folder}: expected a folder of class folders, IDX files or a Hugging Face data set, or a CSV file of labels, but "
            f"{problem}"
        )
    if is_idx_folder(folder):
        return open_idx_split(folder, split)
    if is_hub_folder(folder):
        return open_hub_split(folder, split, labelled=labelled)
    parts = {part: split_folders(folder, part) for part in SPLITS}
    images = ClassFolders if labelled else UnlabelledImages
    one_alone = labelled and any(parts.values()) and len(subfolders(folder)) == 1
    if all(parts.values()) or one_alone:
        if not parts[split]:
            return None
        chosen = images(parts[split][0])
        beside = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file())
        chosen.notes = [*_left_out(folder, [name for name in beside if not name.startswith(".")]), *chosen.notes]
        return chosen
    if labelled and not subfolders(folder) and any(folder.glob("*.[cC][sS][vV]")):
        found = find_images(folder)
        if any(source.label is not None for source in found):
            return LabelledFiles(found) if split == "train" else None
    if labelled:
        refuse_unrecognised_splits(folder)
    return images(folder) if split == "train" else None


def open_evaluation_images(source: str | Path, *, labelled: bool = True) -> LabelledImages:
    """The images to evaluate with: the validation split where the data set has one, else all of it.

    Raises:
        ImageError: as `open_images`.
    """
    images = open_images(source, "validation", labelled=labelled) or open_images(source, "train", labelled=labelled)
    assert images is not None  # a data set without splits is one for training
    return images
