"""The work of an evaluation, item by item: each gives a picture in its variants at the model's input size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from torch.utils.data import Dataset

from overfocus.analysis.variants import CLEAN, Variant
from overfocus.corruptions import corrupt
from overfocus.errors import ImageError
from overfocus.evaluation.layouts import Portion
from overfocus.evaluation.sequences import FilmFolders
from overfocus.preprocessing import Preprocess


@dataclass(frozen=True)
class Item:
    """One picture on the disk."""

    number: int
    image: int
    """Number in run.json; the versions of a picture in a tree of corruptions share it."""
    portion: int
    index: int
    """In its portion."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """An item as read, or the reason why it could not be."""

    item: Item
    pixels: UInt8[np.ndarray, "variants height width 3"] | None = None
    """The variants of a picture, or the frames of a film."""
    reason: str | None = None


class PictureDataset(Dataset[list[Pictures]]):
    """Lists of items read, resized and, where `variants` say so, corrupted."""

    def __init__(
        self, portions: Sequence[Portion], items: Sequence[Item], variants: Sequence[Variant], preprocess: Preprocess, seed: int
    ) -> None:
        self.portions = portions
        self.items = items
        self.variants = variants
        self.preprocess = preprocess
        self.seed = seed

    def __getitem__(self, numbers: Sequence[int]) -> list[Pictures]:
        return [self._read(self.items[number]) for number in numbers]

    def _read(self, item: Item) -> Pictures:
        images = self.portions[item.portion].images
        try:
            if isinstance(images, FilmFolders):
                return Pictures(item, np.stack([self.preprocess.resize(frame) for frame in images.frames(item.index)]))
            picture = images.image(item.index)
        except ImageError as error:
            return Pictures(item, reason=str(error))
        clean = self.preprocess.resize(picture)
        variants = [clean if variant == CLEAN else corrupt(clean, *variant, seed=self.seed) for variant in self.variants]
        return Pictures(item, np.stack(variants))


def list_items(portions: Sequence[Portion], limit: int | None) -> tuple[list[Item], list[tuple[str, str]]]:
    """All items, portion by portion, and (name, label) of each image; `limit` takes so many of each portion, spread evenly."""
    items: list[Item] = []
    images: dict[tuple[str, str], int] = {}
    for number, portion in enumerate(portions):
        count = len(portion.images)
        taken = count if limit is None else min(limit, count)
        for place in range(taken):
            index = place * count // taken
            label = portion.images.class_names[int(portion.images.labels[index])]
            image = images.setdefault((portion.images.name(index), label), len(images))
            items.append(Item(len(items), image, number, index))
    return items, list(images)
