"""Pictures of a segmentation data set as the images of a run: with the class of each pixel beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from overfocus.datasets.mask_folders import CLASSES
from overfocus.datasets.segmented import SegmentedImages, is_segmented, open_segmented_images
from overfocus.errors import ImageError
from overfocus.images.sources import ImageSource

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel


@dataclass(frozen=True, kw_only=True)
class MaskedSource(ImageSource):
    """One picture of a data set with masks."""

    images: SegmentedImages
    index: int
    """Of the picture in `images`."""

    def read_mask(self) -> UInt8[np.ndarray, "height width"]:
        """The class of each pixel, 255 where none counts.

        Raises:
            ImageError: the mask cannot be read, has another size than the picture, or holds what is no class.
        """
        return self.images.mask(self.index)


def masked_sources(images: str | Path | Sequence[str | Path] | None, loaded: "LoadedModel") -> list[MaskedSource] | None:
    """The pictures of a data set with masks, its validation split where it has one; None where `images` is something else.

    Raises:
        ImageError: the classes of the data set are not the model's, or its pictures are corrupted already.
    """
    folders = [images] if isinstance(images, str | Path) else list(images or [])
    found = [Path(folder) for folder in folders if is_segmented(folder)]
    if not found:
        return None
    if len(folders) > 1:
        raise ImageError(f"{found[0]}: holds pictures with masks; give this data set alone, or folders of pictures only")
    folder = found[0]
    names = None if (folder / CLASSES).is_file() else loaded.class_names
    opened = open_segmented_images(folder, "validation", class_names=names)
    opened = opened or open_segmented_images(folder, "train", class_names=names)
    if opened is None:
        raise ImageError(f"{folder}: holds corrupted pictures only, and the clean ones are needed to compare them with; add them")
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
