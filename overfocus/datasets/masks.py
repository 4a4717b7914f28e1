"""Images with a mask each, as files: a class for each pixel, its colours; Cityscapes, ACDC and corrupted Cityscapes.

Sources: Cordts et al. 2016 (Cityscapes); Sakaridis et al. 2021 (ACDC).
"""

import colorsys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from overfocus.errors import ImageError, first_line, is_shortage
from overfocus.files import require_regular_file
from overfocus.images.sources import find_images, image_formats, load_whole, read_image
from overfocus.settings import MAX_PIXELS

IGNORED = 255
"""In a mask: a pixel that neither trains nor counts."""
_NUMBERS = ("1", "L", "P", "I", "I;16", "I;16B")
"""Pillow's modes that hold one number a pixel; "P" gives the index into the palette, whatever colours that has."""
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF entry, and its values that swap width and height."""


def read_mask(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width"]:
    """The numbers in a mask: grey values, or the indices of a palette image.

    `size` is (width, height) of the image that it belongs to.

    Raises:
        ImageError: it is missing or damaged, has another size, holds colours instead of numbers, numbers above 255, or was
            compressed with loss.
    """
    require_regular_file(path, "a mask", ImageError)
    try:
        with Image.open(path, formats=image_formats()) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ImageError(f"{path}: {opened.width}×{opened.height} pixels exceed the limit of {MAX_PIXELS:,}")
            if size is not None and opened.size != size:
                expected, got = (f"{width}×{height}" for width, height in (size, opened.size))
                raise ImageError(f"{path}: expected a mask of its image's {expected} pixels, got {got}; resize one of them")
            if opened.mode not in _NUMBERS:
                raise ImageError(
                    f"{path}: expected a class number for each pixel (a grey or palette PNG), got colours ({opened.mode}); "
                    "replace each colour by its class's number"
                )
            if opened.format in ("JPEG", "MPO"):
                raise ImageError(f"{path}: JPEG changes class numbers; expected the mask as PNG or another lossless format")
            load_whole(opened, path)
            numbers = np.asarray(opened)
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen classes on damaged files
        if is_shortage(error):
            raise
        raise ImageError(f"{path}: expected a mask, reading it failed ({first_line(error)}); replace it") from error
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) > IGNORED:
        raise ImageError(f"{path}: expected numbers from 0 to {IGNORED}, got {numbers.min()} … {numbers.max()}")
    return np.array(numbers, np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as `read_image` gives it, upright, from its header alone.

    Raises:
        ImageError: it cannot be read.
    """
    require_regular_file(path, "an image", ImageError)
    try:
        with Image.open(path, formats=image_formats()) as opened:
            width, height = opened.size
            turned = opened.getexif().get(_ORIENTATION) in _TURNED
    except Exception as error:
        if is_shortage(error):
            raise
        raise ImageError(f"{path}: expected an image, reading it failed ({first_line(error)}); replace or remove it") from error
    return (height, width) if turned else (width, height)


CITYSCAPES: dict[str, tuple[int, tuple[int, int, int]]] = {
    "road": (7, (128, 64, 128)), "sidewalk": (8, (244, 35, 232)), "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)), "fence": (13, (190, 153, 153)), "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)), "traffic sign": (20, (220, 220, 0)), "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)), "sky": (23, (70, 130, 180)), "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)), "car": (26, (0, 0, 142)), "truck": (27, (0, 0, 70)), "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)), "motorcycle": (32, (0, 0, 230)), "bicycle": (33, (119, 11, 32)),
}  # fmt: skip
"""The 19 classes in the order of their train ids: number in the files `*_labelIds.png`, and colour."""
# Grey for class 0, mostly the background, and colours that are distinct to people with any colour vision (Okabe–Ito, Tol).
_FIXED = (
    (64, 64, 64), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (51, 34, 136), (136, 204, 238), (17, 119, 51), (153, 153, 51), (136, 34, 85), (221, 204, 119), (68, 170, 153), (170, 68, 153),
)  # fmt: skip
_GOLDEN = 0.618034


def class_colours(class_names: Sequence[str]) -> UInt8[np.ndarray, "classes 3"]:
    """RGB of every class: Cityscapes' where all names are its classes, otherwise from a fixed list.

    Classes beyond the list go round the colour circle by the golden ratio, so that neighbours in number differ.
    """
    if all(name in CITYSCAPES for name in class_names):
        return np.array([CITYSCAPES[name][1] for name in class_names], np.uint8).reshape(-1, 3)
    further = [
        [
            round(255 * part)
            for part in colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.55 + 0.15 * (number % 3), 0.95 - 0.2 * (number % 2))
        ]
        for number in range(len(class_names) - len(_FIXED))
    ]
    return np.array([*_FIXED[: len(class_names)], *further], np.uint8).reshape(-1, 3)


@dataclass(frozen=True)
class ImageMask:
    """One image and its mask."""

    image: Path
    mask: Path
    name: str
    numbers: UInt8[np.ndarray, " 256"] | None = None
    """Class for each number in the mask file, where they differ."""


class ImageMasks:
    """Read from the disk image by image.

    Raises:
        ImageError: there is no image, or fewer than two classes.
    """

    def __init__(self, entries: Sequence[ImageMask], class_names: Sequence[str]) -> None:
        if not entries:
            raise ImageError("expected images with masks, got none")
        if not 2 <= len(class_names) < IGNORED:
            raise ImageError(
                f"{entries[0].mask.parent}: expected from 2 to {IGNORED - 1} classes, got {len(class_names)}; masks hold the "
                f"numbers 0, 1, … of the classes, and {IGNORED} is ignored"
            )
        self.class_names = list(class_names)
        self.colours: UInt8[np.ndarray, "classes 3"] = class_colours(class_names)
        self.channels = 3
        self._entries = list(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def image(self, index: int) -> Image.Image:
        """One image as RGB."""
        return read_image(self._entries[index].image)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of one image."""
        width, height = image_size(self._entries[index].image)
        return height, width

    def mask(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """The class of each pixel of an image, `IGNORED` where none counts.

        Raises:
            ImageError: it cannot be read, has another size than the image, or holds a number that is no class.
        """
        entry = self._entries[index]
        found = read_mask(entry.mask, image_size(entry.image))
        numbers = found if entry.numbers is None else entry.numbers[found]
        outside = (numbers >= len(self.class_names)) & (numbers != IGNORED)
        if outside.any():
            strange = np.unique(found[outside])
            raise ImageError(
                f"{entry.mask}: holds {', '.join(map(str, strange[:5]))}, not among the {len(self.class_names)} classes "
                f"(0 … {len(self.class_names) - 1}) nor {IGNORED} for ignored pixels; correct the mask or name all classes"
                if entry.numbers is None
                else f"{entry.mask}: holds {', '.join(map(str, strange[:5]))}, which is not a Cityscapes label id"
            )
        return numbers

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self._entries[index].image

    def name(self, index: int) -> str:
        """Path below the folder of the images."""
        return self._entries[index].name


CONDITIONS = ("fog", "night", "rain", "snow")
"""Of ACDC."""
_FOLDERS = {"train": "train", "validation": "val"}
_LARGEST_LABEL = 33
_LAST = ("_leftImg8bit", "_rgb_anon")


def train_ids() -> np.ndarray:
    """Table from the numbers in `*_labelIds.png` to train ids; what is not evaluated is ignored, the rest unknown (254)."""
    table = np.full(256, 254, np.uint8)
    table[: _LARGEST_LABEL + 1] = IGNORED
    table[IGNORED] = IGNORED  # the licence plate's −1, as a byte
    for train_id, (label_id, _) in enumerate(CITYSCAPES.values()):
        table[label_id] = train_id
    return table


def is_cityscapes(folder: Path) -> bool:
    """Whether a folder holds Cityscapes' images and fine labels."""
    return all((folder / name).is_dir() for name in ("leftImg8bit", "gtFine")) and any(
        (folder / "leftImg8bit" / name).is_dir() for name in _FOLDERS.values()
    )


def open_cityscapes(folder: Path, split: str) -> ImageMasks | None:
    """`leftImg8bit/{train,val}/city/*_leftImg8bit.png` with `gtFine/{train,val}/city/*_gtFine_label{TrainIds,Ids}.png`."""
    images = folder / "leftImg8bit" / _FOLDERS[split]
    if not images.is_dir():
        return None
    return _pair(find_files(images), label_files(folder / "gtFine" / _FOLDERS[split]), images)


def is_acdc(folder: Path) -> bool:
    """Whether a folder holds ACDC's images and labels."""
    return all((folder / name).is_dir() for name in ("rgb_anon", "gt"))


def open_acdc(folder: Path, split: str, conditions: Iterable[str] = CONDITIONS) -> ImageMasks | None:
    """`rgb_anon/condition/{train,val}/…/*_rgb_anon.png` with `gt/condition/{train,val}/…/*_gt_label{TrainIds,Ids}.png`."""
    images: list[Path] = []
    labels: dict[str, Path] = {}
    for condition in conditions:
        place = folder / "rgb_anon" / condition / _FOLDERS[split]
        if place.is_dir():
            images += find_files(place)
            labels |= label_files(folder / "gt" / condition / _FOLDERS[split])
    return _pair(images, labels, folder / "rgb_anon") if images else None


def corrupted_cityscapes(folder: Path) -> Iterator[tuple[str, int, ImageMasks]]:
    """Corruption, severity and images of each part of a Cityscapes-C tree; nothing where a folder holds none.

    The images lie in `CORRUPTION/SEVERITY/…/*_leftImg8bit.png` or in `leftImg8bit/CORRUPTION/SEVERITY/…`, and the labels in
    `gtFine` of the folder, of a folder `clean` in it, or beside the folder.
    """
    from overfocus.corruptions import CORRUPTIONS

    labelled = next((place for place in _label_places(folder) if place.is_dir()), None)
    trees = [
        path
        for place in (folder, folder / "leftImg8bit")
        if labelled is not None and place.is_dir()
        for path in place.iterdir()
        if path.name in CORRUPTIONS and path.is_dir()
    ]
    labels = label_files(labelled / "val") if trees and labelled is not None else {}
    for tree in sorted(trees, key=lambda path: CORRUPTIONS.index(path.name)):
        for part in sorted(tree.iterdir()):
            if part.is_dir() and part.name in ("1", "2", "3", "4", "5"):
                files = [path for path in find_files(part) if "train" not in path.relative_to(part).parts]
                yield tree.name, int(part.name), _pair(files, labels, part)


def is_corrupted_cityscapes(folder: Path) -> bool:
    """Whether `corrupted_cityscapes` finds something."""
    from overfocus.corruptions import CORRUPTIONS

    places = (folder, folder / "leftImg8bit")
    trees = [place / name / str(severity) for place in places for name in CORRUPTIONS for severity in range(1, 6)]
    return any(place.is_dir() for place in _label_places(folder)) and any(tree.is_dir() for tree in trees)


def clean_cityscapes(folder: Path) -> Path | None:
    """The folder of the uncorrupted images of a Cityscapes-C tree, where they are there."""
    return next((place for place in (folder, folder / "clean") if is_cityscapes(place)), None)


def find_files(folder: Path) -> list[Path]:
    """All images below a folder, in order."""
    return [source.path for source in find_images(folder) if source.path is not None]


def label_files(folder: Path) -> dict[str, Path]:
    """Label files below a folder by the name that they share with their image; train ids come before label ids."""
    found: dict[str, Path] = {}
    for ending in ("labelIds", "labelTrainIds"):
        for kind in ("gtFine", "gt"):
            tail = f"_{kind}_{ending}.png"
            found |= {path.name.removesuffix(tail): path for path in sorted(folder.rglob(f"*{tail}"))}
    return found


def _label_places(folder: Path) -> tuple[Path, ...]:
    return folder / "gtFine", folder / "clean" / "gtFine", folder.absolute().parent / "gtFine"


def _pair(images: list[Path], labels: dict[str, Path], root: Path) -> ImageMasks:
    keys = [_key(path) for path in images]
    if missing := [path for path, key in zip(images, keys, strict=True) if key not in labels]:
        raise ImageError(
            f"{root}: {len(missing)} of {len(images)} images have no *_labelTrainIds.png or *_labelIds.png "
            f"(first: {missing[0].name}); add the labels or remove the images"
        )
    table = train_ids()
    entries = [
        ImageMask(
            path,
            labels[key],
            path.relative_to(root.absolute()).as_posix(),
            None if labels[key].stem.endswith("TrainIds") else table,
        )
        for path, key in zip(images, keys, strict=True)
    ]
    return ImageMasks(entries, list(CITYSCAPES))


def _key(image: Path) -> str:
    key = image.stem
    for last in _LAST:
        key = key.removesuffix(last)
    return key
