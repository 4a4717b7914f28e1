"""Pictures with a mask each, as files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from overfocus.datasets.class_colours import class_colours
from overfocus.datasets.masks import IGNORED, picture_size, read_mask
from overfocus.errors import ImageError
from overfocus.images.reading import read_image


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
