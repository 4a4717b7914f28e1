"""Pictures with a class for each pixel, whatever form the data set lies in on the disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from overfocus.datasets.cityscapes import (
    CITYSCAPES,
    CONDITIONS,
    clean_cityscapes,
    corrupted_cityscapes,
    is_acdc,
    is_cityscapes,
    is_corrupted_cityscapes,
    open_acdc,
    open_cityscapes,
)
from overfocus.datasets.mask_folders import CLASSES, is_mask_folders, open_mask_folders
from overfocus.datasets.masks import IGNORED
from overfocus.datasets.splits import SPLITS
from overfocus.errors import ImageError

__all__ = [
    "IGNORED",
    "SegmentedImages",
    "SegmentedPortion",
    "is_segmented",
    "open_segmented_images",
    "open_segmented_portions",
]


class SegmentedImages(Protocol):
    """Pictures with a mask each."""

    class_names: list[str]
    colours: UInt8[np.ndarray, "classes 3"]
    channels: int
    """Of what `image` gives: 3 for "RGB", 1 for "L"."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """One picture at its full size, in mode "RGB" or "L".

        Raises:
            ImageError: it cannot be read.
        """
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of that picture, told from its header.

        Raises:
            ImageError: it cannot be read.
        """
        ...

    def mask(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """The class of each pixel of that picture; `IGNORED` where none counts.

        Raises:
            ImageError: it cannot be read, has another size than the picture, or holds a number that is no class.
        """
        ...

    def path(self, index: int) -> Path:
        """The file of a picture."""
        ...

    def name(self, index: int) -> str:
        """What the picture is called in tables."""
        ...


@dataclass(frozen=True)
class SegmentedPortion:
    """Pictures that share a corruption and severity: ("clean", 0) for those that nothing was done to."""

    corruption: str
    """One of overfocus's corruptions, "clean", or "ACDC fog", "ACDC night", … with severity 0: real weather."""
    severity: int
    images: SegmentedImages
    layout: str
    """Of the data set: "Cityscapes", "Cityscapes-C", "ACDC" or "images"."""


def is_segmented(source: str | Path) -> bool:
    """Whether a folder holds pictures and masks that this module opens."""
    folder = Path(source)
    return folder.is_dir() and (
        is_cityscapes(folder) or is_acdc(folder) or is_corrupted_cityscapes(folder) or is_mask_folders(folder)
    )


def open_segmented_images(source: str | Path, split: str, *, class_names: Sequence[str] | None = None) -> SegmentedImages | None:
    """The pictures of a split, "train" or "validation"; None where the data set has no part of that kind.

    - Cityscapes: `leftImg8bit/` beside `gtFine/`, with `*_gtFine_labelTrainIds.png` or `*_gtFine_labelIds.png`.
    - ACDC: `rgb_anon/` beside `gt/`; names start with the condition.
    - `images/` beside `masks/`, or `images/train`, `masks/train`, `images/val` …, or `train/images`, `train/masks` …: for each
      picture a mask of the same name, grey or palette PNG with the number of a class for each pixel, 255 where it does not
      count. The classes are named in `classes.txt`, one a line, or by `class_names`, or numbered as in the masks.

    Raises:
        ImageError: there is nothing of these, or a picture has no mask.
    """
    if split not in SPLITS:
        raise ValueError(f"expected one of the splits {', '.join(SPLITS)}, got {split!r}")
    folder = _folder(source)
    if is_cityscapes(folder) or is_acdc(folder):
        _require_cityscapes_classes(folder, class_names)
        return open_cityscapes(folder, split) if is_cityscapes(folder) else open_acdc(folder, split)
    if is_mask_folders(folder):
        return open_mask_folders(folder, split, class_names)
    if is_corrupted_cityscapes(folder):
        clean = clean_cityscapes(folder)
        return None if clean is None else open_cityscapes(clean, split)
    raise ImageError(
        f"{folder}: expected pictures with masks: images/ beside masks/ (with {CLASSES}), Cityscapes (leftImg8bit/ and gtFine/) "
        "or ACDC (rgb_anon/ and gt/)"
    )


def open_segmented_portions(source: str | Path, *, class_names: Sequence[str] | None = None) -> list[SegmentedPortion]:
    """The parts of a data set to evaluate with: the validation split where there is one, else all of it.

    Of ACDC each condition is a part. A Cityscapes-C tree gives one for every corruption and severity, and the clean pictures
    where they are there; `overfocus.datasets.cityscapes.corrupted_cityscapes` says how it may be nested.

    Raises:
        ImageError: as `open_segmented_images`.
    """
    folder = _folder(source)
    if is_acdc(folder):
        _require_cityscapes_classes(folder, class_names)
        opened = [
            (condition, open_acdc(folder, "validation", [condition]) or open_acdc(folder, "train", [condition]))
            for condition in CONDITIONS
        ]
        found = [SegmentedPortion(f"ACDC {condition}", 0, images, "ACDC") for condition, images in opened if images is not None]
        if not found:
            raise ImageError(f"{folder}: expected rgb_anon/{{{','.join(CONDITIONS)}}}/{{train,val}}, got none of them")
        return found
    if is_corrupted_cityscapes(folder):
        _require_cityscapes_classes(folder, class_names)
        clean = clean_cityscapes(folder)
        validation = None if clean is None else open_cityscapes(clean, "validation")
        parts = [] if validation is None else [SegmentedPortion("clean", 0, validation, "Cityscapes-C")]
        return parts + [SegmentedPortion(*part, "Cityscapes-C") for part in corrupted_cityscapes(folder)]
    images = open_segmented_images(folder, "validation", class_names=class_names)
    images = images or open_segmented_images(folder, "train", class_names=class_names)
    assert images is not None  # a data set without splits is one for training
    return [SegmentedPortion("clean", 0, images, "Cityscapes" if is_cityscapes(folder) else "images")]


def _folder(source: str | Path) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        problem = "it is a file" if folder.exists() else "there is no such folder"
        raise ImageError(f"{folder}: expected a folder of pictures and masks, but {problem}")
    return folder


def _require_cityscapes_classes(folder: Path, class_names: Sequence[str] | None) -> None:
    if class_names is not None and len(class_names) != len(CITYSCAPES):
        raise ImageError(f"{folder}: has the {len(CITYSCAPES)} classes of Cityscapes, got names for {len(class_names)}")
