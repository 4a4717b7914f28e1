"""From a picture to a model's input, as training sees it: timm's augmentations with the settings of a recipe."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from overfocus.datasets import Images
from overfocus.errors import ImageError, TrainingError
from overfocus.preprocessing import Preprocess
from overfocus.training.recipe import Recipe

_TURNING = ("random", "nearest", "bilinear", "bicubic")
"""Interpolations with which Pillow turns and shears pictures; "random" draws bilinear or bicubic."""
INTERPOLATIONS = (*_TURNING, "box", "hamming", "lanczos")
"""Of the crop."""
_LARGEST_SAMPLE = 2000
"""Pictures that the mean and standard deviation are taken from."""


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
                f"auto_augment turns and shears pictures, which interpolation {recipe.interpolation!r} cannot; "
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

    def __call__(self, picture: Image.Image, label: int) -> tuple[Float[Tensor, "channels height width"], int]:
        image: Any = picture.convert("L" if self.preprocess.channels == 1 else "RGB")
        for step in self._steps:
            image = step(image)
        result: Tensor = image
        return result, label


def _is_read_whole(auto_augment: str) -> bool:
    """Whether timm takes every part: in silence it passes over those without a number, and over unknown sets in rand-t…."""
    policy, *parts = auto_augment.split("-")
    known = r"[^t]\D*\d.*|t(weights|3aw?)" if policy == "rand" else r"\D+\d.*"
    return all(re.fullmatch(known, part) for part in parts)


def _unknown(auto_augment: str) -> str:
    return (
        f"timm cannot build the augmentation of auto_augment {auto_augment!r}; expected null or such as rand-m9-mstd0.5-inc1, "
        "rand-m9-tweights, augmix-m5-w4-d2, original-mstd0.5, original, originalr, v0, v0r or 3a"
    )


def measure_statistics(images: Images, preprocess: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of values in [0, 1], over pictures spread evenly over the data set."""
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
            picture = unscaled(images.image(place * len(images) // count)).double().flatten(1)
        except ImageError:  # the training says so when it meets the picture
            continue
        sums += torch.stack([picture.mean(1), picture.square().mean(1)])
        read += 1
    if not read:
        raise ImageError(f"none of {count} pictures of the training data could be read")
    mean, square = sums / read
    std = (square - mean.square()).clamp_min(1e-8).sqrt()
    return tuple(np.round(mean.tolist(), 4).tolist()), tuple(np.round(std.tolist(), 4).tolist())
