"""`open_images`: the labelled pictures of a data set, whatever form it lies in on the disk."""

from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int
from PIL import Image

from overfocus.datasets.class_folders import ClassFolders
from overfocus.datasets.hub import is_hub_folder, open_hub_split
from overfocus.datasets.idx import is_idx_folder, open_idx_split
from overfocus.datasets.picture_files import UnlabelledImages
from overfocus.datasets.splits import SPLITS, refuse_unrecognised_splits, split_folders, subfolders
from overfocus.errors import ImageError


class LabelledImages(Protocol):
    """Pictures with a class each."""

    class_names: list[str]
    labels: Int[np.ndarray, "images"]
    """Class of each picture, from 0."""
    channels: int
    """Of what `image` gives: 1 for "L", as grey IDX files are read, 3 for "RGB", as all else is, grey pictures too."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """One picture, in mode "RGB" or "L".

        Raises:
            ImageError: it cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """What the picture is called in tables."""
        ...


def open_images(source: str | Path, split: str, *, labelled: bool = True) -> LabelledImages | None:
    """The pictures of a split, "train" or "validation"; None where the data set has no part of that kind.

    - A folder of class folders: each folder in it is a class, pictures may lie deeper. Where it holds `train` beside `val` or
      `test`, or another of the names in `SPLITS`, or nothing but one of these, they are its splits; otherwise all of it is for
      training.
    - IDX files, gzipped or not: a folder with `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same of `t10k-`.
    - Without `labelled`, any folder of pictures, with `train` and `val` in it or not.
    - A folder that Hugging Face `datasets` wrote (`save_to_disk`) or reads (parquet files); needs that package.

    Raises:
        ImageError: there is nothing of these, a class folder is empty, labels and pictures differ in number, or a label is none.
    """
    if split not in SPLITS:
        raise ValueError(f"expected one of the splits {', '.join(SPLITS)}, got {split!r}")
    folder = Path(source)
    if not folder.is_dir():
        problem = "it is a file" if folder.exists() else "there is no such folder"
        raise ImageError(f"{folder}: expected a folder of class folders, IDX files or a Hugging Face data set, but {problem}")
    if is_idx_folder(folder):
        return open_idx_split(folder, split)
    if is_hub_folder(folder):
        return open_hub_split(folder, split, labelled=labelled)
    parts = {part: split_folders(folder, part) for part in SPLITS}
    pictures = ClassFolders if labelled else UnlabelledImages
    one_alone = labelled and any(parts.values()) and len(subfolders(folder)) == 1
    if all(parts.values()) or one_alone:
        return pictures(parts[split][0]) if parts[split] else None
    if labelled:
        refuse_unrecognised_splits(folder)
    return pictures(folder) if split == "train" else None


def open_evaluation_images(source: str | Path, *, labelled: bool = True) -> LabelledImages:
    """The pictures to evaluate with: the validation split where the data set has one, else all of it.

    Raises:
        ImageError: as `open_images`.
    """
    images = open_images(source, "validation", labelled=labelled) or open_images(source, "train", labelled=labelled)
    assert images is not None  # a data set without splits is one for training
    return images
