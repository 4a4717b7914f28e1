"""From a picture to a model's input, as training sees it: timm's augmentations with the settings of a recipe."""

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

_LARGEST_SAMPLE = 2000
"""Pictures that the mean and standard deviation are taken from."""


@dataclass
class Augmentation:
    """Random crop, flip, colours, and random erasing; ends normalised as the model's preprocessing does it."""

    preprocess: Preprocess
    recipe: Recipe
    _steps: tuple[Any, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from timm.data import create_transform

        recipe, preprocess = self.recipe, self.preprocess
        try:
            self._steps = create_transform(
                input_size=preprocess.input_size,
                is_training=True,
                scale=recipe.crop_scale,
                ratio=recipe.crop_ratio,
                hflip=recipe.flip,
                color_jitter=recipe.color_jitter,  # type: ignore[arg-type]  # None is its "off"
                auto_augment=recipe.auto_augment,
                interpolation=recipe.interpolation,
                mean=preprocess.mean,
                std=preprocess.std,
                re_prob=recipe.erasing,
                re_mode="pixel",
                separate=True,
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise TrainingError(
                f"timm cannot build the augmentation (auto_augment {recipe.auto_augment!r}, interpolation "
                f"{recipe.interpolation!r}): {str(error) or type(error).__name__}"
            ) from error

    def __call__(self, picture: Image.Image, label: int) -> tuple[Float[Tensor, "channels height width"], int]:
        image: Any = picture.convert("L" if self.preprocess.channels == 1 else "RGB")
        for step in self._steps:
            image = step(image)
        result: Tensor = image
        return result, label


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
