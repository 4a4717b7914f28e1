"""Pictures without labels, in any folders, for training that needs none."""

from pathlib import Path

import numpy as np
from PIL import Image

from overfocus.images.reading import read_image
from overfocus.images.sources import find_images


class UnlabelledImages:
    """All pictures in a folder and the folders in it; there are no classes, and all labels are 0.

    Raises:
        ImageError: there is no picture.
    """

    def __init__(self, folder: Path) -> None:
        self._sources = find_images(folder)
        self.class_names: list[str] = []
        self.labels = np.zeros(len(self._sources), np.int64)
        self.channels = 3

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One picture as RGB."""
        return read_image(self._sources[index].path)

    def name(self, index: int) -> str:
        """Path below the folder."""
        return self._sources[index].name
