"""Evaluating segmentation models: pictures at their own size, a class for each pixel."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from torch import Tensor

from overfocus.analysis.variants import CLEAN, Variant
from overfocus.checkpoints.loaded import LoadedModel
from overfocus.corruptions import corrupt
from overfocus.datasets.segmented import SegmentedImages
from overfocus.errors import ImageError, RunError
from overfocus.evaluation.layouts import EvaluationData, Portion
from overfocus.evaluation.pictures import Item, Pictures
from overfocus.evaluation.plan import EvaluationSettings
from overfocus.evaluation.task import Batching, Description, Row
from overfocus.segmentation.columns import PixelPrediction, pixel_columns, predict_pixels
from overfocus.segmentation.settings import InferenceSettings

OWN_SIZE = "the picture's own"
"""Stands in run.json's `pixels` for the size at which pictures are corrupted."""
NOT_PUBLISHED = (
    "Cityscapes was corrupted on the fly, as RGB pictures; published scores on Cityscapes-C rest on files that were corrupted as "
    "BGR and with other random numbers, so that these are near to but not on that benchmark"
)


class Segmentation:
    """The task of one evaluation."""

    def __init__(self, data: EvaluationData[SegmentedImages], variants: Sequence[Variant], settings: EvaluationSettings) -> None:
        self.data = data
        self.variants = variants
        self.settings = settings
        self.inference = settings.inference or InferenceSettings()

    @property
    def class_names(self) -> list[str]:
        """Those of the masks."""
        return list(self.data.portions[0].images.class_names)

    def describe(self, loaded: LoadedModel) -> Description:
        """Classes and their colours, and how pictures go through the model.

        Raises:
            RunError: model and masks have other classes, or the window does not fit the model.
        """
        names = self.class_names
        if loaded.num_classes != len(names):
            raise RunError(
                f"{loaded.source}: predicts {loaded.num_classes} classes, the masks have {len(names)} "
                f"({', '.join(names[:3])} …); evaluate it on masks of the classes that it was trained on"
            )
        own = loaded.class_names if _named(loaded.class_names) else None
        if own is not None and _named(names) and own != names:
            place = next(number for number, pair in enumerate(zip(own, names, strict=True)) if len(set(pair)) > 1)
            raise RunError(
                f"{loaded.source}: its class {place} is {own[place]}, that of the masks {names[place]}; "
                "give the masks' classes.txt the order of the model"
            )
        inference = self.inference.for_model(loaded, self.settings.batch_size)
        colours = [[int(part) for part in colour] for colour in self.data.portions[0].images.colours]
        published = self.data.layout == "Cityscapes" and self.settings.corruptions
        return Description(
            fixed={
                "task": "segmentation",
                "pixels": {"height": OWN_SIZE, "width": OWN_SIZE},
                "class_names": own or names,
                "class_colours": loaded.class_colours or colours,
            },
            found={"inference": self.inference.describe(inference), "notes": [NOT_PUBLISHED] if published else []},
        )

    def geometry(self, loaded: LoadedModel) -> int:
        """All see the same pictures; they are normalised for each model."""
        del loaded
        return 0

    def batching(self) -> Batching:
        """As many variants as go through a model at a time: all those of a large picture would take gigabytes."""
        size, count = self.settings.batch_size, len(self.variants)
        pieces = tuple(range(start, min(start + size, count)) for start in range(0, count, size))
        return Batching(max(1, size // count), pieces, prefetched=2)

    def reader(self, loaded: LoadedModel) -> "SegmentationReader":
        """Corrupts pictures at their own size."""
        del loaded
        return SegmentationReader(self.data.portions, self.variants, self.settings.seed)

    def predictor(self, loaded: LoadedModel) -> "PixelPredictor":
        """Whole pictures or sliding windows, as the settings say."""
        return PixelPredictor(loaded, self)


def _named(names: Sequence[str] | None) -> bool:
    """Whether classes have names, not numbers."""
    return names is not None and not all(name.isdecimal() for name in names)


@dataclass(frozen=True)
class SegmentationReader:
    """Reads pictures with their masks."""

    portions: Sequence[Portion[SegmentedImages]]
    variants: Sequence[Variant]
    seed: int

    def __call__(self, item: Item, places: range) -> Pictures:
        images = self.portions[item.portion].images
        try:
            clean = np.asarray(images.image(item.index).convert("RGB"))
        except ImageError as error:
            return Pictures(item, reason=str(error))
        try:
            mask = images.mask(item.index)
        except ImageError as error:
            return Pictures(item, reason=str(error), fatal=True)
        chosen = [self.variants[place] for place in places]
        pixels = [clean if variant == CLEAN else corrupt(clean, *variant, seed=self.seed) for variant in chosen]
        return Pictures(item, np.stack(pixels), mask=mask, places=places)


class PixelPredictor:
    """Sends pictures through one segmentation model."""

    def __init__(self, loaded: LoadedModel, task: Segmentation) -> None:
        self.loaded = loaded
        self.task = task
        self.inference = task.inference.for_model(loaded, task.settings.batch_size)
        self.device = next(loaded.model.parameters()).device
        self._clean: tuple[int, PixelPrediction] | None = None
        """Number of an item, and what the model says of it without corruption."""

    def __call__(self, pictures: Sequence[Pictures]) -> list[Row]:
        """The columns of the predictions table of each picture that could be read.

        The variants of a picture may come in several calls, the clean one first.

        Raises:
            RunError: the window that was asked for is larger than a picture.
        """
        rows: dict[int, list[dict[str, Any]]] = {}
        for picture, place, logits in self._logits([picture for picture in pictures if picture.pixels is not None]):
            rows.setdefault(picture.item.number, []).append(self._score(picture, place, logits))
        read: list[Row] = [
            (number, {name: np.array([cells[name] for cells in variants]) for name in variants[0]}, None)
            for number, variants in rows.items()
        ]
        return read + [(picture.item.number, None, picture.reason) for picture in pictures if picture.pixels is None]

    def _logits(self, pictures: Sequence[Pictures]) -> Iterator[tuple[Pictures, int, Tensor]]:
        """Picture, place of the variant and logits; pictures of one size go through the model together."""
        variants = [
            (picture, place, pixels)
            for picture in pictures
            if picture.pixels is not None
            for place, pixels in zip(picture.places, picture.pixels, strict=True)
        ]
        for (height, width), group in groupby(variants, key=lambda variant: variant[2].shape[:2]):
            same = list(group)
            self.task.inference.require_room(self._name(same[0][0]), (height, width))
            together = max(1, self.inference.together // self.inference.windows((height, width)))
            for start in range(0, len(same), together):
                part = same[start : start + together]
                inputs = self.loaded.preprocess.normalize_batch([pixels for _, _, pixels in part], self.device)
                logits = self.inference.logits(self.loaded.model, inputs)
                yield from ((picture, place, one) for (picture, place, _), one in zip(part, logits, strict=True))

    def _score(self, picture: Pictures, place: int, logits: Tensor) -> dict[str, Any]:
        """The row of one variant."""
        assert picture.mask is not None
        height, width = picture.mask.shape
        logits = logits.float()
        prediction = predict_pixels(logits, (height, width))
        number, clean = picture.item.number, None
        if self.task.variants[place] == CLEAN:
            self._clean = number, prediction
        elif self._clean is not None and self._clean[0] == number:
            clean = self._clean[1]
        return pixel_columns(logits, prediction, picture.mask, clean)

    def _name(self, picture: Pictures) -> str:
        return self.task.data.portions[picture.item.portion].images.name(picture.item.index)
