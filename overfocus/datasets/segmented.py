"""Images with a class for each pixel, in any of the forms a data set may have on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from overfocus.datasets.formats import SPLITS, split_folders
from overfocus.datasets.masks import (
    CITYSCAPES,
    CONDITIONS,
    IGNORED,
    ImageMask,
    ImageMasks,
    clean_cityscapes,
    corrupted_cityscapes,
    find_files,
    is_acdc,
    is_cityscapes,
    is_corrupted_cityscapes,
    open_acdc,
    open_cityscapes,
    read_mask,
)
from overfocus.errors import ImageError
from overfocus.files import read_text
from overfocus.images.sources import ImageSource

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel


CLASSES = "classes.txt"
"""Names of the classes, one a line, in the order of their numbers."""


def is_mask_folders(folder: Path) -> bool:
    """Whether a folder holds images with masks."""
    return next(_places(folder), None) is not None


def open_mask_folders(folder: Path, split: str, class_names: Sequence[str] | None = None) -> ImageMasks | None:
    """The images of a split; None if there is none of that kind. Without splits all are for training.

    Raises:
        ImageError: an image has no mask, or the classes are not known.
    """
    splits = dict(_places(folder))
    place = splits.get(split, splits.get("all") if split == "train" else None)
    if place is None:
        return None
    names = class_names or _listed(folder) or _numbered(list(splits.values()))
    opened = ImageMasks(_pair(*place), names)
    if _hold_zero_and_ignored([entry.mask for pair in splits.values() for entry in _pair(*pair)]):
        raise ImageError(_nothing_shown(place[1]))
    return opened


def _places(folder: Path) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """Split ("all" where there are none) and the two folders of each part that is there."""
    split_there = False
    for split in SPLITS:
        inside = [(path, folder / "masks" / path.name) for path in split_folders(folder / "images", split)]
        around = [(path / "images", path / "masks") for path in split_folders(folder, split)]
        found = next((pair for pair in inside + around if all(path.is_dir() for path in pair)), None)
        if found is not None:
            split_there = True
            yield split, found
    if not split_there and (folder / "images").is_dir() and (folder / "masks").is_dir():
        yield "all", (folder / "images", folder / "masks")


def _pair(images: Path, masks: Path) -> list[ImageMask]:
    there = {_name_below(path, masks): path for path in find_files(masks)}
    files = {path: _name_below(path, images) for path in find_files(images)}
    if missing := [path.relative_to(images.absolute()) for path, name in files.items() if name not in there]:
        raise ImageError(
            f"{masks}: no mask for {len(missing)} of {len(files)} images (first: {missing[0]}); "
            "expected one of the same name, such as PNG, for each"
        )
    root = images.absolute()
    return [ImageMask(path, there[name], path.relative_to(root).as_posix()) for path, name in files.items()]


def _name_below(path: Path, folder: Path) -> str:
    """The path below a folder, without the file's ending."""
    return path.relative_to(folder.absolute()).with_suffix("").as_posix()


def _listed(folder: Path) -> list[str] | None:
    path = folder / CLASSES
    if not path.is_file():
        return None
    text = read_text(path, "a text file with one class name per line", ImageError)
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(set(names)) != len(names):
        raise ImageError(f"{path}: expected one class name per line, each once, got one twice")
    return names


def _numbered(places: list[tuple[Path, Path]]) -> list[str]:
    """The numbers up to the largest in any mask of any split."""
    largest = 0
    for images, masks in places:
        for entry in _pair(images, masks):
            numbers = read_mask(entry.mask)
            largest = max(largest, int(numbers[numbers != IGNORED].max(initial=0)))
    if largest == 0:
        raise ImageError(_nothing_shown(places[0][1]))
    return [str(number) for number in np.arange(largest + 1)]


def _hold_zero_and_ignored(masks: list[Path]) -> bool:
    """Whether all masks hold 0 and `IGNORED` alone, and both: usual in images of a foreground, and nothing to learn from.

    One that cannot be read may hold others, and is reported when its turn comes.
    """
    ignored = False
    for mask in masks:
        try:
            numbers = read_mask(mask)
        except ImageError:
            return False
        if ((numbers != 0) & (numbers != IGNORED)).any():
            return False
        ignored |= bool((numbers == IGNORED).any())
    return ignored


def _nothing_shown(masks: Path) -> str:
    return (
        f"{masks}: the masks hold no class but 0 ({IGNORED} is ignored); expected the numbers 0, 1, … of the classes, "
        f"so that a foreground of {IGNORED} has to become 1"
    )


class SegmentedImages(Protocol):
    """Images with a mask each."""

    class_names: list[str]
    colours: UInt8[np.ndarray, "classes 3"]
    channels: int
    """Of what `image` gives: 3 for "RGB", 1 for "L"."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """One image at its full size, in mode "RGB" or "L".

        Raises:
            ImageError: it cannot be read.
        """
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of that image, read from its header.

        Raises:
            ImageError: it cannot be read.
        """
        ...

    def mask(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """The class of each pixel of that image; `IGNORED` where none counts.

        Raises:
            ImageError: it cannot be read, has another size than the image, or holds a number that is no class.
        """
        ...

    def path(self, index: int) -> Path:
        """The file of an image."""
        ...

    def name(self, index: int) -> str:
        """What the image is called in tables."""
        ...


@dataclass(frozen=True)
class SegmentedPortion:
    """Images that share a corruption and severity: ("clean", 0) for those that nothing was done to."""

    corruption: str
    """One of overfocus's corruptions, "clean", or "ACDC fog", "ACDC night", … with severity 0: real weather."""
    severity: int
    images: SegmentedImages
    layout: str
    """Of the data set: "Cityscapes", "Cityscapes-C", "ACDC" or "images"."""


def is_segmented(source: str | Path) -> bool:
    """Whether a folder holds images and masks that this module opens."""
    folder = Path(source)
    return folder.is_dir() and (
        is_cityscapes(folder) or is_acdc(folder) or is_corrupted_cityscapes(folder) or is_mask_folders(folder)
    )


def open_segmented_images(source: str | Path, split: str, *, class_names: Sequence[str] | None = None) -> SegmentedImages | None:
    """The images of a split, "train" or "validation"; None where the data set has no part of that kind.

    - Cityscapes: `leftImg8bit/` beside `gtFine/`, with `*_gtFine_labelTrainIds.png` or `*_gtFine_labelIds.png`.
    - ACDC: `rgb_anon/` beside `gt/`; names start with the condition.
    - `images/` beside `masks/`, or `images/train`, `masks/train`, `images/val` …, or `train/images`, `train/masks` …: for each
      image a mask of the same name, grey or palette PNG with the number of a class for each pixel, 255 where it does not
      count. The classes are named in `classes.txt`, one a line, or by `class_names`, or numbered as in the masks.

    Raises:
        ImageError: there is nothing of these, or an image has no mask.
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
        f"{folder}: expected images with masks: images/ beside masks/ (with {CLASSES}), Cityscapes (leftImg8bit/ and gtFine/) "
        "or ACDC (rgb_anon/ and gt/)"
    )


def open_segmented_portions(source: str | Path, *, class_names: Sequence[str] | None = None) -> list[SegmentedPortion]:
    """The parts of a data set to evaluate with: the validation split where there is one, else all of it.

    Of ACDC each condition is a part. A Cityscapes-C tree gives one for every corruption and severity, and the clean images
    where they are there; `overfocus.datasets.masks.corrupted_cityscapes` says how it may be nested.

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
        raise ImageError(f"{folder}: expected a folder of images and masks, but {problem}")
    return folder


def _require_cityscapes_classes(folder: Path, class_names: Sequence[str] | None) -> None:
    if class_names is not None and len(class_names) != len(CITYSCAPES):
        raise ImageError(f"{folder}: has the {len(CITYSCAPES)} classes of Cityscapes, got names for {len(class_names)}")


@dataclass(frozen=True, kw_only=True)
class MaskedSource(ImageSource):
    """One image of a data set with masks."""

    images: SegmentedImages
    index: int
    """Of the image in `images`."""

    def read_mask(self) -> UInt8[np.ndarray, "height width"]:
        """The class of each pixel, 255 where none counts.

        Raises:
            ImageError: the mask cannot be read, has another size than the image, or holds what is no class.
        """
        return self.images.mask(self.index)


def masked_sources(images: Any, loaded: "LoadedModel") -> list[MaskedSource] | None:
    """The images of a data set with masks, its validation split where it has one; None where `images` is something else.

    Raises:
        ImageError: the classes of the data set are not the model's, or its images are corrupted already.
    """
    folders = [images] if isinstance(images, str | Path) else list(images) if isinstance(images, list | tuple) else []
    found = [Path(folder) for folder in folders if isinstance(folder, str | Path) and is_segmented(folder)]
    if not found:
        return None
    if len(folders) > 1:
        raise ImageError(f"{found[0]}: holds images with masks; give this data set alone, or folders of images only")
    folder = found[0]
    names = None if (folder / CLASSES).is_file() else loaded.class_names
    opened = open_segmented_images(folder, "validation", class_names=names)
    opened = opened or open_segmented_images(folder, "train", class_names=names)
    if opened is None:
        raise ImageError(f"{folder}: holds corrupted images only, and the clean ones are needed to compare them with; add them")
    _check_classes(folder, opened, loaded)
    return [
        MaskedSource(path=opened.path(index), name=opened.name(index), images=opened, index=index) for index in range(len(opened))
    ]


def _check_classes(folder: Path, images: SegmentedImages, loaded: "LoadedModel") -> None:
    there, ours = images.class_names, loaded.class_names
    if len(there) > loaded.num_classes:
        raise ImageError(
            f"{folder}: has {len(there)} classes, the model predicts {loaded.num_classes}; "
            "give the data set that it was trained on"
        )
    if ours is not None and there != ours[: len(there)]:
        at = next(number for number, pair in enumerate(zip(there, ours, strict=False)) if pair[0] != pair[1])
        raise ImageError(
            f"{folder}: class {at} is {there[at]!r}, but {ours[at]!r} for the model; write {CLASSES} in the order of the model's"
        )
