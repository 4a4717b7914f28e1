"""Pictures in one folder per class, as torchvision's ImageFolder and ImageNet lay them out."""

from pathlib import Path

import numpy as np

from overfocus.datasets.picture_files import PictureFiles
from overfocus.datasets.splits import subfolders
from overfocus.errors import ImageError
from overfocus.images.reading import EXTENSIONS
from overfocus.images.sources import find_images


class ClassFolders(PictureFiles):
    """The classes are the sub-folders in the order of their names.

    Raises:
        ImageError: there are fewer than two class folders, or one holds no picture.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.class_names = subfolders(folder)
        if len(self.class_names) < 2:
            there = f"{self.class_names[0]} alone" if self.class_names else "none"
            raise ImageError(
                f"{folder}: expected a folder for each class, at least two, got {there}; "
                "put the pictures into folders named after their classes, and give the folder of these (or of train/ and val/)"
            )
        sources = [source for source in find_images(folder) if source.label is not None]
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self.labels = np.array([numbers[str(source.label)] for source in sources], np.int64)
        counts = np.bincount(self.labels, minlength=len(numbers))
        if empty := [name for name, count in zip(self.class_names, counts, strict=True) if not count]:
            which = ", ".join(empty[:5]) + (" …" if len(empty) > 5 else "")
            raise ImageError(
                f"{folder}: no pictures ({', '.join(EXTENSIONS)}) in the class folder {which}; add some or remove the folder"
            )
        super().__init__(sources)
