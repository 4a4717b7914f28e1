"""From a picture to a model's input: resize and crop as timm evaluates, then the model's own mean and standard deviation.

The two steps are separate because corruptions stand between them: ImageNet-C was made by corrupting 8-bit RGB pictures
that already had the model's input size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass
class Preprocess:
    """The preprocessing of one model; `preprocess(image)` equals `preprocess.normalize(preprocess.resize(image))`.

    A model with one input channel gets the picture's luma (ITU-R BT.601, as Pillow's mode "L").
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    """(channels, height, width)."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    """Side of the crop divided by the side that the picture was resized to, in (0, 1]."""
    crop_mode: str = "center"
    """"center" (keep the shape, cut what stands out), "squash" (change the shape) or "border" (keep all, pad)."""
    _geometry: Callable[[Image.Image], Image.Image] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from timm.data.transforms_factory import create_transform

        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"expected a mean and std per input channel ({self.channels}), got {self.mean} and {self.std}")
        steps = create_transform(
            input_size=(3, *self.input_size[1:]),
            interpolation=self.interpolation,
            mean=_spread(self.mean),
            std=_spread(self.std),
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            use_prefetcher=True,  # leaves normalisation out: one step, to a tensor, follows the geometry
        )
        self._geometry = type(steps)(steps.transforms[:-1])

    @property
    def channels(self) -> int:
        """Input channels of the model."""
        return self.input_size[0]

    def resize(self, image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
        """Resize and crop to the model's input size; 8-bit RGB, not normalised."""
        return np.array(self._geometry(image.convert("RGB")), dtype=np.uint8)

    def resize_mask(self, mask: UInt8[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "height width"]:
        """The class of each pixel of what `resize` makes of a picture: the nearest pixel's; 255 where it pads."""
        from timm.data.transforms_factory import create_transform

        steps = create_transform(
            input_size=(3, *self.input_size[1:]),
            interpolation="nearest",
            mean=(1.0, 1.0, 1.0),  # timm pads with the mean, here 255
            std=(1.0, 1.0, 1.0),
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            use_prefetcher=True,
        )
        geometry = type(steps)(steps.transforms[:-1])
        return np.array(geometry(Image.fromarray(mask).convert("RGB")), dtype=np.uint8)[..., 0]

    def normalize(self, pixels: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "channels height width"]:
        """Scale 8-bit RGB to [0, 1], subtract the mean and divide by the standard deviation of each channel."""
        return self.normalize_batch([pixels])[0]

    def normalize_batch(
        self, pictures: Sequence[UInt8[np.ndarray, "height width 3"]], device: str | torch.device = "cpu"
    ) -> Float[Tensor, "batch channels height width"]:
        """Normalise several pictures at once, on the device that they go to."""
        if self.channels == 1:
            pictures = [np.array(Image.fromarray(pixels).convert("L"))[..., None] for pixels in pictures]
        pixels = torch.from_numpy(np.stack(pictures)).to(device, non_blocking=True)
        scaled = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.mean, self.std))
        return scaled.sub_(mean).div_(std)

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        return self.normalize(self.resize(image))


def _spread(values: Sequence[float]) -> tuple[float, ...]:
    """One value for each of three channels."""
    return tuple(values) if len(values) == 3 else (values[0],) * 3
