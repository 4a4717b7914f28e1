"""The work of an evaluation, item by item: each gives a picture in its variants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch.utils.data import Dataset

from overfocus.evaluation.layouts import Portion


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
    fatal: bool = False
    """Whether the reason lies in the data set, not in one picture, so that the evaluation has to stop."""
    mask: UInt8[np.ndarray, "height width"] | None = None
    """The class of each pixel, where that is what is predicted."""
    places: range = range(0)
    """Which of the variants these are."""


Reader = Callable[[Item, range], Pictures]
"""Reads an item and makes those of its variants that are in a range."""
Batch = tuple[tuple[int, ...], range]
"""Numbers of items, and which of their variants."""


class PictureDataset(Dataset[list[Pictures]]):
    """Batches of items read and, where the variants say so, corrupted."""

    def __init__(self, items: Sequence[Item], reader: Reader) -> None:
        self.items = items
        self.reader = reader

    def __getitem__(self, batch: Batch) -> list[Pictures]:
        numbers, places = batch
        return [self.reader(self.items[number], places) for number in numbers]


def list_items(portions: Sequence[Portion[Any]], limit: int | None) -> tuple[list[Item], list[tuple[str, str | None]]]:
    """All items, portion by portion, and (name, label) of each image; `limit` takes so many of each portion, spread evenly.

    Pictures with masks have no label.
    """
    items: list[Item] = []
    images: dict[tuple[str, str | None], int] = {}
    for number, portion in enumerate(portions):
        count = len(portion.images)
        labels = getattr(portion.images, "labels", None)
        taken = count if limit is None else min(limit, count)
        for place in range(taken):
            index = place * count // taken
            label = None if labels is None else portion.images.class_names[int(labels[index])]
            image = images.setdefault((portion.images.name(index), label), len(images))
            items.append(Item(len(items), image, number, index))
    return items, list(images)
