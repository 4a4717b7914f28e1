"""Which pixels are corrupted: those at one model's input size, and what other models are shown of them."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from timm.data.transforms import str_to_pil_interp

from overfocus.preprocessing import Preprocess


class InputSize(NamedTuple):
    """The size of a model's input, and how pictures are brought to it."""

    height: int
    width: int
    interpolation: str

    @classmethod
    def of(cls, preprocess: Preprocess) -> "InputSize":
        """That of one model."""
        return cls(*preprocess.input_size[1:], preprocess.interpolation)

    def fit(self, pictures: UInt8[np.ndarray, "variants height width 3"]) -> UInt8[np.ndarray, "variants new_height new_width 3"]:
        """Resize pictures that were prepared for another model; those that have the size stay as they are."""
        if pictures.shape[1:3] == (self.height, self.width):
            return pictures
        method = str_to_pil_interp(self.interpolation)  # type: ignore[no-untyped-call]
        size = self.width, self.height
        return np.stack([np.asarray(Image.fromarray(pixels).resize(size, method)) for pixels in pictures])

    def fit_mask(self, mask: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "new_height new_width"]:
        """Resize a mask that was prepared for another model, each pixel taking the class of the nearest."""
        if mask.shape == (self.height, self.width):
            return mask
        return np.asarray(Image.fromarray(mask).resize((self.width, self.height), Image.Resampling.NEAREST))


def describe_pixels(preprocess: Preprocess) -> dict[str, Any]:
    """For run.json: the geometry at which the images of a run are corrupted."""
    _, height, width = preprocess.input_size
    return {
        "height": height,
        "width": width,
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop_pct,
        "crop_mode": preprocess.crop_mode,
    }
