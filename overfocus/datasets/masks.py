"""Images with a mask each, as files: a class number for each pixel, and the colours that classes are shown in."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from overfocus.errors import ImageError
from overfocus.files import require_regular_file
from overfocus.images.reading import read_image
from overfocus.settings import MAX_PIXELS

IGNORED = 255
"""In a mask: a pixel that neither trains nor counts."""
_NUMBERS = ("1", "L", "P", "I", "I;16", "I;16B")
"""Pillow's modes that hold one number a pixel; "P" gives the index into the palette, whatever colours that has."""
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF entry, and its values that swap width and height."""


def read_mask(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width"]:
    """The numbers in a mask: grey values, or the indices of a palette picture.

    `size` is (width, height) of the picture that it belongs to.

    Raises:
        ImageError: it is missing or damaged, has another size, holds colours instead of numbers, numbers above 255, or was
            compressed with loss.
    """
    require_regular_file(path, "a mask", ImageError)
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ImageError(f"{path}: {opened.width}×{opened.height} pixels exceed the limit of {MAX_PIXELS:,}")
            if size is not None and opened.size != size:
                expected, got = (f"{width}×{height}" for width, height in (size, opened.size))
                raise ImageError(f"{path}: expected a mask of its picture's {expected} pixels, got {got}; resize one of them")
            if opened.mode not in _NUMBERS:
                raise ImageError(
                    f"{path}: expected a class number for each pixel (a grey or palette PNG), got colours ({opened.mode}); "
                    "replace each colour by its class's number"
                )
            if opened.format in ("JPEG", "MPO"):
                raise ImageError(f"{path}: JPEG changes class numbers; expected the mask as PNG or another lossless format")
            numbers = np.asarray(opened)
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen classes on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: expected a mask, reading it failed ({reason}); replace it") from error
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) > IGNORED:
        raise ImageError(f"{path}: expected numbers from 0 to {IGNORED}, got {numbers.min()} … {numbers.max()}")
    return np.array(numbers, np.uint8)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as `read_image` gives it, upright, from its header alone.

    Raises:
        ImageError: it cannot be read.
    """
    require_regular_file(path, "an image", ImageError)
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            turned = opened.getexif().get(_ORIENTATION) in _TURNED
    except Exception as error:
        raise ImageError(
            f"{path}: expected a picture, reading it failed ({type(error).__name__}); replace or remove it"
        ) from error
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
# Grey for class 0, mostly the background, and colours that people with any colour vision tell apart (Okabe–Ito, Tol).
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
class PictureMask:
    """One picture and its mask."""

    picture: Path
    mask: Path
    name: str
    numbers: UInt8[np.ndarray, " 256"] | None = None
    """Class for each number in the mask file, where they differ."""


class PictureMasks:
    """Read from the disk picture by picture.

    Raises:
        ImageError: there is no picture, or fewer than two classes.
    """

    def __init__(self, entries: Sequence[PictureMask], class_names: Sequence[str]) -> None:
        if not entries:
            raise ImageError("expected pictures with masks, got none")
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
        """One picture as RGB."""
        return read_image(self._entries[index].picture)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of one picture."""
        width, height = picture_size(self._entries[index].picture)
        return height, width

    def mask(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """The class of each pixel of a picture, `IGNORED` where none counts.

        Raises:
            ImageError: it cannot be read, has another size than the picture, or holds a number that is no class.
        """
        entry = self._entries[index]
        found = read_mask(entry.mask, picture_size(entry.picture))
        numbers = found if entry.numbers is None else entry.numbers[found]
        outside = (numbers >= len(self.class_names)) & (numbers != IGNORED)
        if outside.any():
            strange = np.unique(found[outside])
            raise ImageError(
                f"{entry.mask}: holds {', '.join(map(str, strange[:5]))}, which is none of the {len(self.class_names)} classes "
                f"(0 … {len(self.class_names) - 1}) nor {IGNORED} for ignored pixels; correct the mask or name all classes"
                if entry.numbers is None
                else f"{entry.mask}: holds {', '.join(map(str, strange[:5]))}, which is no label id of Cityscapes"
            )
        return numbers

    def path(self, index: int) -> Path:
        """The file of a picture."""
        return self._entries[index].picture

    def name(self, index: int) -> str:
        """Path below the folder of the pictures."""
        return self._entries[index].name
