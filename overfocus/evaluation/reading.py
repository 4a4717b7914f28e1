"""Images of data sets to evaluate with, read and, where they are not corrupted on the disk, corrupted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from overfocus.corruptions import ConstantSet, corrupt
from overfocus.datasets import LabelledImages, SegmentedImages
from overfocus.errors import ImageError
from overfocus.evaluation.layouts import FilmFolders, Item, Portion
from overfocus.preprocessing import Preprocess
from overfocus.sweep.reading import OWN_SIZE, InputSize, Sample
from overfocus.variants import CLEAN_VARIANT, Variant


def uncropped(preprocess: Preprocess) -> Preprocess:
    """For images that were resized and cropped before: one of the input's size stays as it is, another is resized to cover it."""
    interpolation = "bicubic" if preprocess.transform is not None else preprocess.interpolation
    return replace(preprocess, crop_pct=1.0, crop_mode="center", interpolation=interpolation, transform=None)


@dataclass(frozen=True)
class LabelledReader:
    """Reads images at the input size of models, of films all frames."""

    items: Sequence[Item]
    portions: Sequence[Portion[LabelledImages]]
    variants: Sequence[Variant]
    preprocess: Preprocess
    seed: int
    constants: ConstantSet | None = None
    tree: Preprocess | None = None
    """For images that are corrupted on the disk; None: as for the others."""

    def __call__(self, item: int, places: range) -> Sample:
        place = self.items[item]
        portion = self.portions[place.portion]
        size = InputSize.of(self.preprocess)
        preprocess = self.tree if self.tree is not None and portion.severity else self.preprocess
        try:
            if isinstance(portion.images, FilmFolders):
                frames = np.stack([preprocess.resize(frame) for frame in portion.images.frames(place.index)])
                return Sample(item, [portion.variant] * len(frames), {size: frames})
            image = portion.images.image(place.index)
        except ImageError as error:
            return Sample(item, reason=str(error))
        try:
            clean = preprocess.resize(image)
        except ImageError as error:
            return Sample(item, reason=f"{portion.images.name(place.index)}: {error}")
        variants = _variants(portion.variant, [self.variants[number] for number in places])
        own = portion.variant != CLEAN_VARIANT
        pixels = [
            clean if own or variant == CLEAN_VARIANT else corrupt(clean, *variant, self.seed, self.constants)
            for variant in variants
        ]
        return Sample(item, variants, {size: np.stack(pixels)}, image.size)


@dataclass(frozen=True)
class SegmentedReader:
    """Reads images with their masks at their own size."""

    items: Sequence[Item]
    portions: Sequence[Portion[SegmentedImages]]
    variants: Sequence[Variant]
    seed: int
    constants: ConstantSet | None = None

    def __call__(self, item: int, places: range) -> Sample:
        place = self.items[item]
        portion = self.portions[place.portion]
        try:
            clean = np.asarray(portion.images.image(place.index).convert("RGB"))
        except ImageError as error:
            return Sample(item, reason=str(error))
        try:
            mask = portion.images.mask(place.index)
        except ImageError as error:
            return Sample(item, reason=str(error), fatal=True)
        variants = _variants(portion.variant, [self.variants[number] for number in places])
        own = portion.variant != CLEAN_VARIANT
        pixels = [
            clean if own or variant == CLEAN_VARIANT else corrupt(clean, *variant, self.seed, self.constants)
            for variant in variants
        ]
        height, width = clean.shape[:2]
        return Sample(item, variants, {OWN_SIZE: np.stack(pixels)}, (width, height), mask)


def _variants(own: Variant, made: Sequence[Variant]) -> list[Variant]:
    """What the images of a portion are made into; those that are corrupted on the disk, or by real weather, are what they are."""
    return list(made) if own == CLEAN_VARIANT else [own] * len(made)
