"""Pictures that lie in files, with or without labels from their folders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from overfocus.images.reading import read_image
from overfocus.images.sources import ImageSource, find_images


class PictureFiles:
    """Read from the disk picture by picture."""

    channels = 3

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = list(sources)

    def __len__(self) -> int:
        return len(self._sources)

    def image(self, index: int) -> Image.Image:
        """One picture as RGB.

        Raises:
            ImageError: it cannot be read.
        """
        return read_image(self._sources[index].path)

    def name(self, index: int) -> str:
        """Path below the folder."""
        return self._sources[index].name


class UnlabelledImages(PictureFiles):
    """All pictures in a folder and the folders in it; there are no classes, and all labels are 0.

    Raises:
        ImageError: there is no picture.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(find_images(folder))
        self.class_names: list[str] = []
        self.labels = np.zeros(len(self), np.int64)
