"""From a picture and its mask to a model's input and the classes of its pixels, as training for segmentation sees them."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from overfocus.datasets.masks import IGNORED
from overfocus.errors import TrainingError
from overfocus.preprocessing import Preprocess
from overfocus.training.recipe import Recipe

_INTERPOLATIONS = ("bilinear", "bicubic")
_ATTEMPTS = 10
"""Crops that are tried until none of the classes takes more than its largest share."""
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32 / 255, 0.5, 0.5, 18 / 180
"""Largest change by the photometric distortion: of the factors 1, and of the hue in turns of the circle."""

Mask = UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class MaskAugmentation:
    """Random scale, crop and flip, the same for picture and mask, then photometric distortion of the picture.

    The order and the chances are those of mmsegmentation's pipeline for Cityscapes; the distortions are torchvision's. What a
    crop lacks is filled after normalisation, with 0 in the picture and `IGNORED` in the mask.
    """

    preprocess: Preprocess
    recipe: Recipe

    def __post_init__(self) -> None:
        known = (*_INTERPOLATIONS, "random")
        if self.recipe.interpolation not in known:
            raise TrainingError(f"no interpolation {self.recipe.interpolation!r} for segmentation; there are {', '.join(known)}")

    def __call__(
        self, picture: Image.Image, mask: Mask
    ) -> tuple[Float[Tensor, "channels height width"], UInt8[Tensor, "height width"]]:
        image = tv_tensors.Image(picture.convert("RGB"))
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
        # torchvision takes masks by the rounded-down place, half a pixel off the picture
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
