"""From an image, with or without a mask, to the input of a model, as training sees it: the augmentations of a recipe."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from overfocus.datasets import Images
from overfocus.datasets.masks import IGNORED
from overfocus.errors import ImageError, TrainingError
from overfocus.preprocessing import Preprocess
from overfocus.training.settings import Recipe

_TURNING = ("random", "nearest", "bilinear", "bicubic")
"""Interpolations with which Pillow turns and shears images; "random" draws bilinear or bicubic."""
INTERPOLATIONS = (*_TURNING, "box", "hamming", "lanczos")
"""Of the crop."""
_LARGEST_SAMPLE = 2000
"""Images that the mean and standard deviation are taken from."""


@dataclass
class Augmentation:
    """Random crop, flip, colours, and random erasing; ends normalised as the model's preprocessing does it.

    Raises:
        TrainingError: there is no such interpolation or `auto_augment`, or they do not go together.
    """

    preprocess: Preprocess
    recipe: Recipe
    _steps: tuple[Any, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from timm.data import create_transform

        recipe, preprocess = self.recipe, self.preprocess
        if recipe.interpolation not in INTERPOLATIONS:
            raise TrainingError(f"no interpolation {recipe.interpolation!r}; there are {', '.join(INTERPOLATIONS)}")
        auto_augment = recipe.auto_augment or ""
        if auto_augment and recipe.interpolation not in _TURNING:
            raise TrainingError(
                f"auto_augment rotates and shears images, which interpolation {recipe.interpolation!r} cannot; "
                f"set it to one of {', '.join(_TURNING)}, or auto_augment to null"
            )
        if not _is_read_whole(auto_augment):
            raise TrainingError(_unknown(auto_augment))
        try:
            self._steps = create_transform(
                input_size=preprocess.input_size,
                is_training=True,
                scale=recipe.crop_scale,
                ratio=recipe.crop_ratio,
                hflip=recipe.flip,
                color_jitter=recipe.color_jitter,  # type: ignore[arg-type]  # None is its "off"
                auto_augment=auto_augment,
                interpolation=recipe.interpolation,
                mean=preprocess.mean,
                std=preprocess.std,
                re_prob=recipe.erasing,
                re_mode="pixel",
                separate=True,
            )
        except (AssertionError, ValueError) as error:
            raise TrainingError(_unknown(auto_augment)) from error

    def __call__(self, loaded: Image.Image, label: int) -> tuple[Float[Tensor, "channels height width"], int]:
        image: Any = loaded.convert("L" if self.preprocess.channels == 1 else "RGB")
        for step in self._steps:
            image = step(image)
        result: Tensor = image
        return result, label


def _is_read_whole(auto_augment: str) -> bool:
    """Whether timm takes every part: in silence it passes over those without a number, and over unknown sets in rand-t….

    Magnitudes are meant up to 10: beyond, some operations fail once they are drawn.
    """
    policy, *parts = auto_augment.split("-")
    if any((most := re.fullmatch(r"mmax(\d.*)", part)) and not re.fullmatch(r"\d(\.\d+)?|10", most[1]) for part in parts):
        return False
    known = r"[^t]\D*\d.*|t(weights|3aw?)" if policy == "rand" else r"\D+\d.*"
    return all(re.fullmatch(known, part) for part in parts)


def _unknown(auto_augment: str) -> str:
    return (
        f"timm cannot build the augmentation of auto_augment {auto_augment!r}; expected null or such as rand-m9-mstd0.5-inc1, "
        "rand-m9-tweights, augmix-m5-w4-d2, original-mstd0.5, original, originalr, v0, v0r or 3a; mmax at most 10"
    )


def measure_statistics(images: Images, preprocess: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of values in [0, 1], over images spread evenly over the data set."""
    unscaled = Preprocess(
        preprocess.input_size,
        (0.0,) * preprocess.channels,
        (1.0,) * preprocess.channels,
        preprocess.interpolation,
        preprocess.crop_pct,
        preprocess.crop_mode,
    )
    count = min(len(images), _LARGEST_SAMPLE)
    sums = torch.zeros(2, preprocess.channels, dtype=torch.float64)
    read = 0
    for place in range(count):
        try:
            image = unscaled(images.image(place * len(images) // count)).double().flatten(1)
        except ImageError:  # the training says so when it meets the image
            continue
        sums += torch.stack([image.mean(1), image.square().mean(1)])
        read += 1
    if not read:
        raise ImageError(f"none of {count} images of the training data could be read")
    mean, square = sums / read
    std = (square - mean.square()).clamp_min(1e-8).sqrt()
    return tuple(np.round(mean.tolist(), 4).tolist()), tuple(np.round(std.tolist(), 4).tolist())


_INTERPOLATIONS = ("bilinear", "bicubic")
_ATTEMPTS = 10
"""Crops that are tried until none of the classes takes more than its largest share."""
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32 / 255, 0.5, 0.5, 18 / 180
"""Largest change by the photometric distortion: of the factors 1, and of the hue in turns of the circle."""

Mask = UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class MaskAugmentation:
    """Random scale, crop and flip, the same for image and mask, then photometric distortion of the image.

    The order and the chances are those of mmsegmentation's pipeline for Cityscapes; the distortions are torchvision's. What a
    crop lacks is filled after normalisation, with 0 in the image and `IGNORED` in the mask.
    """

    preprocess: Preprocess
    recipe: Recipe

    def __post_init__(self) -> None:
        known = (*_INTERPOLATIONS, "random")
        if self.recipe.interpolation not in known:
            raise TrainingError(f"no interpolation {self.recipe.interpolation!r} for segmentation; there are {', '.join(known)}")

    def __call__(
        self, loaded: Image.Image, mask: Mask
    ) -> tuple[Float[Tensor, "channels height width"], UInt8[Tensor, "height width"]]:
        image = tv_tensors.Image(loaded.convert("RGB"))
        classes = tv_tensors.Mask(torch.from_numpy(mask)[None])
        image, classes = self._scaled(image, classes)
        image, classes = self._cropped(image, classes)
        if random.random() < self.recipe.flip:
            image, classes = F.horizontal_flip(image), F.horizontal_flip(classes)
        if self.recipe.photometric:
            image = distort(image)
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        normalised = self.preprocess.normalize(pixels)
        height, width = self.preprocess.input_size[1:]
        lacking = [0, 0, width - normalised.shape[2], height - normalised.shape[1]]
        padded: Tensor = F.pad(classes, lacking, fill=IGNORED)
        return F.pad(normalised, lacking), padded.as_subclass(torch.Tensor)[0].contiguous()

    def _scaled(self, image: Any, classes: Any) -> tuple[Any, Any]:
        height, width = image.shape[1:]
        factor = random.uniform(*self.recipe.resize_scale)
        size = [max(1, round(factor * height)), max(1, round(factor * width))]
        if size == [height, width]:
            return image, classes
        kinds = _INTERPOLATIONS if self.recipe.interpolation == "random" else (self.recipe.interpolation,)
        scaled = F.resize(image, size, InterpolationMode(random.choice(kinds)), antialias=True)
        # torchvision takes masks by the rounded-down place, half a pixel off the image
        plain = F.resize(tv_tensors.Image(classes), size, InterpolationMode.NEAREST_EXACT)
        return scaled, tv_tensors.Mask(plain)

    def _cropped(self, image: Any, classes: Any) -> tuple[Any, Any]:
        height, width = image.shape[1:]
        rows, columns = (min(*pair) for pair in zip((height, width), self.preprocess.input_size[1:], strict=True))
        place = (0, 0, rows, columns)
        for _ in range(_ATTEMPTS):
            place = random.randint(0, height - rows), random.randint(0, width - columns), rows, columns
            if largest_share(F.crop(classes, *place)) <= self.recipe.largest_share:
                break
        return F.crop(image, *place), F.crop(classes, *place)


def largest_share(classes: Tensor) -> float:
    """Share of the most frequent class among the pixels that count; 1 where none does."""
    counts = torch.bincount(classes.flatten(), minlength=IGNORED + 1)[:IGNORED]
    total = int(counts.sum())
    return int(counts.max()) / total if total else 1.0


def distort(image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 height width"]:
    """Change brightness, contrast, saturation and hue, each in half of the cases; contrast first or last."""
    changes: list[tuple[Callable[..., Any], float, float]] = [
        (F.adjust_brightness, 1 - _BRIGHTNESS, 1 + _BRIGHTNESS),
        (F.adjust_saturation, 1 - _SATURATION, 1 + _SATURATION),
        (F.adjust_hue, -_HUE, _HUE),
    ]
    changes.insert(random.choice((1, 3)), (F.adjust_contrast, 1 - _CONTRAST, 1 + _CONTRAST))
    for change, low, high in changes:
        if random.random() < 0.5:
            image = change(image, random.uniform(low, high))
    return image
