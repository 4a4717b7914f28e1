"""From an image to a model's input: resize and crop as the model is evaluated, then its own mean and standard deviation.

The two steps are separate because corruptions come between them: ImageNet-C was made by corrupting 8-bit RGB images
that already had the model's input size.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from overfocus.errors import ImageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "hamming", "box")
CROP_MODES = ("center", "squash", "border")
OWN = "own"
"""What `interpolation` and `crop_mode` say where a function of the user does the resizing."""
LARGEST_SIDE = 8192
_LARGEST_SCALE = 8.0
"""Of a mean or standard deviation: those of values from 0 to 1 are near 1 at most, those of values from 0 to 255 near 100."""
_SMALLEST_CROP = 0.05
_LARGEST_RESIZED = 2**28  # pixels


@dataclass
class Preprocess:
    """The preprocessing of one model; `preprocess(image)` equals `preprocess.normalize(preprocess.resize(image))`.

    A model with one input channel gets the image's luma (ITU-R BT.601, as Pillow's mode "L").

    Raises:
        ValueError: a size, mean, standard deviation, crop or interpolation is not usable.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    """(channels, height, width)."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    """Side of the crop divided by the side that the image was resized to, in (0, 1]."""
    crop_mode: str = "center"
    """"center" (keep the shape, crop what is left over), "squash" (change the shape) or "border" (keep all, pad)."""
    transform: Callable[[Image.Image], Any] | None = field(default=None, repr=False)
    """The user's function that replaces all of it: see `from_callable`."""
    _geometry: Callable[[Image.Image], Image.Image] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.input_size) != 3 or not all(isinstance(n, int) and 1 <= n <= LARGEST_SIDE for n in self.input_size):
            raise ValueError(f"expected input_size (channels, height, width) of 1 to {LARGEST_SIDE}, got {self.input_size}")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"expected a mean and std per input channel ({self.channels}), got {self.mean} and {self.std}")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or not all(value > 0 for value in self.std):
            raise ValueError(f"expected finite means and positive standard deviations, got {self.mean} and {self.std}")
        if max(*map(abs, self.mean), *self.std) > _LARGEST_SCALE:
            raise ValueError(
                f"expected mean and std of values from 0 to 1, got {self.mean} and {self.std}; divide those of values from 0 to "
                "255 by 255"
            )
        if not _SMALLEST_CROP <= self.crop_pct <= 1:
            raise ValueError(f"expected crop_pct from {_SMALLEST_CROP} to 1, got {self.crop_pct}")
        if self.transform is not None:
            self._geometry = None
            return
        if self.interpolation not in INTERPOLATIONS or self.crop_mode not in CROP_MODES:
            raise ValueError(
                f"expected interpolation {', '.join(INTERPOLATIONS)} and crop mode {', '.join(CROP_MODES)}, "
                f"got {self.interpolation!r} and {self.crop_mode!r}"
            )
        self._geometry = self._steps(self.interpolation, _spread(self.mean))

    @classmethod
    def from_callable(cls, transform: Callable[[Image.Image], Any]) -> "Preprocess":
        """The preprocessing that a function does: from a PIL image to a tensor or array (channels, height, width).

        It may return what an image processor of transformers returns, too. Its mean and standard deviation are measured on
        images of one colour, so that corruptions can be applied to 8-bit pixels between its resizing and its normalisation.

        Raises:
            ValueError: it is random, gives images of different sizes, or does more than resize and normalise each channel.
        """
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (192, 256, 3), dtype=np.uint8))
        first, again, tall = (_apply(transform, image) for image in (noise, noise, noise.resize((160, 320))))
        if not torch.equal(first, again):
            raise ValueError("the preprocessing is random; give the one that the model is evaluated with")
        if first.shape != tall.shape:
            raise ValueError(
                f"the preprocessing gives other sizes for other images ({tuple(first.shape[1:])}, {tuple(tall.shape[1:])}); "
                "crop or resize all to one size"
            )
        channels = first.shape[0]
        black, grey, white = (_level(transform, (value,) * 3) for value in (0, 128, 255))
        scale = white - black
        if not bool((scale > 0).all()) or bool(((black + scale * (128 / 255) - grey).abs() > 0.01 * scale).any()):
            raise ValueError(
                "the preprocessing must scale each channel by a mean and a standard deviation; it does something else"
            )
        if channels == 3:
            red = (_level(transform, (255, 0, 0)) - black) / scale
            if bool((red - torch.tensor([1.0, 0.0, 0.0])).abs().max() > 0.01):
                raise ValueError("the preprocessing exchanges or mixes colour channels; expected RGB to stay RGB")
        height, width = first.shape[1:]
        std = tuple(float(1 / value) for value in scale)
        mean = tuple(float(-low / value) for low, value in zip(black, scale, strict=True))
        return cls((channels, height, width), mean, std, OWN, 1.0, OWN, transform)

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of what the user's function makes of a fixed image, by the name "preprocess"; empty without such a function."""
        if self.transform is None:
            return {}
        noise = np.random.default_rng(0).integers(0, 256, (192, 256, 3), dtype=np.uint8)
        return {"preprocess": hashlib.sha256(self.resize(Image.fromarray(noise)).tobytes()).hexdigest()}

    @property
    def channels(self) -> int:
        """Input channels of the model."""
        return self.input_size[0]

    def resize(self, image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
        """Resize and crop to the model's input size; 8-bit RGB, not normalised.

        Raises:
            ImageError: the image is so narrow that resizing it would take gigabytes.
        """
        image = image.convert("RGB")
        if self.transform is not None:
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
            pixels = (_apply(self.transform, image) * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
            return np.ascontiguousarray(pixels.expand(3, *self.input_size[1:]).permute(1, 2, 0).numpy())
        self.require_resizable(image.size)
        assert self._geometry is not None
        return np.array(self._geometry(image), dtype=np.uint8)

    def resize_mask(self, mask: UInt8[np.ndarray, "rows columns"]) -> UInt8[np.ndarray, "height width"]:
        """The class of each pixel of what `resize` makes of an image: the nearest pixel's; 255 where it pads.

        Raises:
            ImageError: the resizing is a function of the user, which says nothing about masks.
        """
        if self.transform is not None:
            raise ImageError("masks cannot follow a preprocessing function; give input_size, mean and std in its place")
        image = Image.fromarray(mask).convert("RGB")
        self.require_resizable(image.size)
        geometry = self._steps("nearest", (1.0, 1.0, 1.0))  # timm pads with the mean, here 255
        return np.array(geometry(image), dtype=np.uint8)[..., 0]

    def normalize(self, pixels: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "channels height width"]:
        """Scale 8-bit RGB to [0, 1], subtract the mean and divide by the standard deviation of each channel."""
        return self.normalize_batch([pixels])[0]

    def normalize_batch(
        self, images: Sequence[UInt8[np.ndarray, "height width 3"]], device: str | torch.device = "cpu"
    ) -> Float[Tensor, "batch channels height width"]:
        """Normalise several images at once, on the device that they go to."""
        if self.channels == 1:
            images = [np.array(Image.fromarray(pixels).convert("L"))[..., None] for pixels in images]
        pixels = torch.from_numpy(np.stack(images)).to(device, non_blocking=True)
        scaled = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.mean, self.std))
        return scaled.sub_(mean).div_(std)

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        return self.normalize(self.resize(image))

    def _steps(self, interpolation: str, mean: tuple[float, ...]) -> Callable[[Image.Image], Image.Image]:
        """The evaluation transform of timm without its last steps, to a tensor and normalised."""
        from timm.data.transforms_factory import create_transform

        steps = create_transform(
            input_size=(3, *self.input_size[1:]),
            interpolation=interpolation,
            mean=mean,
            std=(1.0, 1.0, 1.0),
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            use_prefetcher=True,  # leaves normalisation out: one step, to a tensor, follows the geometry
        )
        geometry: Callable[[Image.Image], Image.Image] = type(steps)(steps.transforms[:-1])
        return geometry

    def require_resizable(self, size: tuple[int, int]) -> None:
        """Raise `ImageError` if an image of (width, height) `size` is so narrow that resizing it would take gigabytes."""
        height, width = self.input_size[1:]
        if self.transform is None and self.crop_mode == "center":
            scale = max(height, width) / self.crop_pct / min(size)
            if size[0] * size[1] * scale * scale > _LARGEST_RESIZED:
                raise ImageError(
                    f"an image of {size[0]} × {size[1]} pixels, its shorter side resized to {max(height, width)}, "
                    "would take gigabytes; crop it first"
                )


def _apply(transform: Callable[[Image.Image], Any], image: Image.Image) -> Tensor:
    """What a preprocessing function makes of one image, float32 (channels, height, width)."""
    result = transform(image)
    if isinstance(result, Mapping):
        result = result["pixel_values"] if "pixel_values" in result else next(iter(result.values()), None)
    while isinstance(result, (list, tuple)) and len(result) == 1:
        result = result[0]
    if not isinstance(result, Tensor | np.ndarray):
        raise ValueError(f"the preprocessing must give a tensor (1 or 3, height, width), got {type(result).__name__}")
    dense = np.ascontiguousarray(result) if isinstance(result, np.ndarray) else result  # torch takes no negative strides
    tensor = torch.as_tensor(dense).to("cpu", torch.float32)
    tensor = tensor[0] if tensor.ndim == 4 and tensor.shape[0] == 1 else tensor
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise ValueError(f"the preprocessing must give a tensor (1 or 3, height, width), got {tuple(tensor.shape)}")
    return tensor


def _level(transform: Callable[[Image.Image], Any], colour: tuple[int, int, int]) -> Float[Tensor, "channels"]:
    """What becomes of one colour, per channel; the median, so that padding does not count."""
    return _apply(transform, Image.new("RGB", (256, 192), colour)).flatten(1).median(1).values


def _spread(values: Sequence[float]) -> tuple[float, ...]:
    """One value for each of three channels."""
    return tuple(values) if len(values) == 3 else (values[0],) * 3
