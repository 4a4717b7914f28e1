"""How images of any size go through a segmentation model, whole or in windows, once or in several versions; classes of pixels.

The grid of windows is that of mmsegmentation, with which the published scores on Cityscapes were measured.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from overfocus.checkpoints.loaded import LoadedModel
from overfocus.errors import RunError
from overfocus.segmentation import pixel_scores

_ROWS_PER_STRIP = 128


def is_segmentation(model: nn.Module, output: Tensor | None = None) -> bool:
    """Whether a model gives logits for every pixel: one of `overfocus.models.segmentation`, or one whose output looks like it.

    Such an output has the axes (batch, num_classes, rows, columns).
    """
    from overfocus.models.segmentation import SegmentationModel

    if isinstance(model, SegmentationModel):
        return True
    classes = int(getattr(model, "num_classes", 0) or 0)
    return output is not None and output.ndim == 4 and classes > 0 and output.shape[1] == classes


def upsample(
    logits: Float[Tensor, "batch classes rows columns"], size: tuple[int, int]
) -> Float[Tensor, "batch classes height width"]:
    """Logits at the size (height, width) of an image, bilinearly and without aligned corners, as the models are trained."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def class_map(logits: Float[Tensor, "batch classes rows columns"], size: tuple[int, int]) -> UInt8[Tensor, "batch height width"]:
    """The class of every pixel of images of `size` (height, width), on the device of the logits.

    One image after the other, so that no full-size logits of a batch exist.

    >>> class_map(torch.tensor([[[[0.0]], [[1.0]]]]), (1, 2))
    tensor([[[1, 1]]], dtype=torch.uint8)
    """
    # on a CPU, max finds the places seven times as fast as argmax
    return torch.stack([upsample(image, size)[0].max(0).indices.to(torch.uint8) for image in logits[:, None]])


def pixel_confidence(
    logits: Float[Tensor, "classes rows columns"],
    size: tuple[int, int],
    classes: UInt8[Tensor, "height width"] | None = None,
) -> float:
    """Mean over the pixels of an image of the probability (softmax) of its most probable class, or of the class in `classes`.

    Range 0 … 1; at `size` (height, width), as `class_map`. With the class map of the clean image as `classes`, the
    confidence of the clean image minus this of its corrupted version is the confidence drop.

    >>> round(pixel_confidence(torch.tensor([[[0.0]], [[0.0]]]), (2, 2)), 3)
    0.5
    """
    full = upsample(logits[None], size)[0]
    total = torch.zeros((), dtype=torch.float64, device=full.device)
    # in strips: the exponentials of a whole large image would take as much memory again as its logits
    for start in range(0, full.shape[1], _ROWS_PER_STRIP):
        rows = slice(start, start + _ROWS_PER_STRIP)
        strip = full[:, rows].float()
        chosen = strip.amax(0) if classes is None else strip.gather(0, classes[None, rows].long())[0]
        total += (chosen - strip.logsumexp(0)).exp().sum(dtype=torch.float64)
    return float(total / (full.shape[1] * full.shape[2]))


NO_CLASS = "the model's output holds NaN or infinity, so that it predicts no class; check its weights, or compute without amp"
"""What is said where the largest logit does not exist."""


@dataclass(frozen=True, eq=False)
class PixelPrediction:
    """A model's answer to one image."""

    classes: UInt8[Tensor, "height width"]
    """Of every pixel, on the model's device."""
    on_host: UInt8[np.ndarray, "height width"]
    """The same."""
    confidence: float
    """Mean over the pixels of the largest probability."""


def predict_pixels(logits: Float[Tensor, "classes rows columns"], size: tuple[int, int]) -> PixelPrediction:
    """The class of every pixel of an image of `size` (height, width).

    Raises:
        RunError: the logits hold NaN or infinity.
    """
    confidence = pixel_confidence(logits, size)
    if math.isnan(confidence):
        raise RunError(NO_CLASS)
    classes = class_map(logits[None], size)[0]
    return PixelPrediction(classes, classes.cpu().numpy(), confidence)


def pixel_columns(
    logits: Float[Tensor, "classes rows columns"],
    prediction: PixelPrediction,
    mask: UInt8[np.ndarray, "height width"] | None,
    clean: PixelPrediction | None,
) -> dict[str, Any]:
    """The columns of a prediction that was made of `logits`; NaN for what needs a mask, or a clean prediction, and has none.

    predicted is the class of most pixels, confidence_drop the mean over the pixels of what the class that the clean image has
    there loses in probability; the others are those of `pixel_scores`, its pixel accuracy under the name correct.
    """
    height, width = prediction.on_host.shape
    scores = pixel_scores(prediction.on_host, mask, None if clean is None else clean.on_host, len(logits))
    drop = np.nan
    if clean is not None:
        drop = clean.confidence - pixel_confidence(logits, (height, width), clean.classes)
    return {
        "predicted": int(np.bincount(prediction.on_host.ravel()).argmax()),
        "confidence": prediction.confidence,
        "agreement": scores.agreement,
        "confidence_drop": drop,
        "correct": scores.pixel_accuracy,
        "image_iou": scores.image_iou,
        "intersections": scores.intersections,
        "unions": scores.unions,
    }


LARGEST_BATCH = 64
_PIXELS_PER_BATCH = 4 * 1024 * 1024
"""So many pixels of windows go through a model at a time where nobody says otherwise."""
_VALUES_AT_A_TIME = 2**22

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Inference:
    """Sends images through a model.

    An image that is smaller than the window makes the window smaller. Only where the model takes inputs of one size (a ViT with
    a table of positions), such an image is continued to the right and below with the mean colour, and what is predicted
    there is cut off.

    Test-time augmentation averages the soft-max probabilities of all versions of an image, as mmsegmentation does.
    """

    window: Size | None
    """None takes every image whole, in one forward."""
    stride: Size
    together: int
    """Windows in one forward."""
    flip: bool = False
    """Also mirrored from left to right."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which an image is seen, relative to its own."""
    only: Size | None = None
    """The one input size that the model takes; None where it takes any."""

    @property
    def augmented(self) -> bool:
        """Whether an image is seen in more than one version, or resized."""
        return self.flip or self.scales != (1.0,)

    def windows(self, size: Size) -> int:
        """How many windows an image has; 1 where it is taken whole."""
        padded, window, stride = self._fit(size)
        axes = zip(padded, window, stride, strict=True)
        rows, columns = (len(window_starts(*axis)) for axis in axes)
        return rows * columns

    def logits(
        self, model: nn.Module, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes rows columns"]:
        """Logits of images of one size, at that size or, of images taken whole, as coarse as the model gives them.

        With test-time augmentation these are logarithms of the averaged probabilities, whose soft-max they are themselves.

        Raises:
            RunError: the model does not take inputs of this size.
        """
        height, width = images.shape[2:]
        if not self.augmented:
            return self._one_version(model, images)
        total: Tensor | None = None
        for scale in self.scales:
            size = max(1, round(scale * height)), max(1, round(scale * width))
            scaled = images if scale == 1 else F.interpolate(images, size=size, mode="bilinear", antialias=True)
            for mirrored in (False, True) if self.flip else (False,):
                logits = self._one_version(model, scaled.flip(3) if mirrored else scaled).float()
                logits = upsample(upsample(logits, size), (height, width))
                shares = logits.flip(3).softmax(1) if mirrored else logits.softmax(1)
                total = shares if total is None else total.add_(shares)
        assert total is not None
        versions = len(self.scales) * (1 + self.flip)
        return total.div_(versions).log_()

    def _one_version(self, model: nn.Module, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        padded, window, stride = self._fit((height, width))
        try:
            if padded == window:
                inputs = F.pad(images, (0, padded[1] - width, 0, padded[0] - height))
                logits = torch.cat([model(part) for part in inputs.split(self.together)])  # type: ignore[no-untyped-call]
                return logits if padded == (height, width) else upsample(logits, padded)[:, :, :height, :width]
            inputs = F.pad(images, (0, padded[1] - width, 0, padded[0] - height))
            return sliding_logits(model, inputs, window, stride, self.together)[:, :, :height, :width]
        except AssertionError as error:  # timm's models assert what they demand of their input
            raise RunError(
                f"the model takes no inputs of {_text(window)} pixels ({error}); give a window of the size that it was trained at"
            ) from error

    def _fit(self, size: Size) -> tuple[Size, Size, Size]:
        """For an image of `size`: the size that it is padded to, its window and stride."""
        if self.window is None:
            if self.only is not None and size != self.only:
                raise RunError(
                    f"the model takes {_text(self.only)} pixels only, got an image of {_text(size)} to be taken whole; "
                    "leave whole (--whole) out for sliding windows"
                )
            return size, size, size
        if self.only is not None:
            return _larger(size, self.window), self.window, self.stride
        window = _smaller(size, self.window)
        return size, window, _smaller(window, self.stride)


def usual_stride(window: Size) -> Size:
    """Three quarters of a window, as in the paper's evaluation."""
    return max(1, window[0] * 3 // 4), max(1, window[1] * 3 // 4)


def only_size(model: nn.Module) -> Size | None:
    """(height, width) of the one input that a model takes, as timm's patch embeddings demand it; None where it takes any."""
    for module in model.modules():
        if getattr(module, "strict_img_size", False):
            size: Any = module.img_size
            return int(size[0]), int(size[1])
    return None


def _larger(one: Size, other: Size) -> Size:
    return max(one[0], other[0]), max(one[1], other[1])


def _smaller(one: Size, other: Size) -> Size:
    return min(one[0], other[0]), min(one[1], other[1])


def _text(size: Size) -> str:
    """(height, width) as people write it, width first."""
    return f"{size[1]}×{size[0]}"


@dataclass(frozen=True)
class InferenceSettings:
    """What was asked for, as run.json holds it.

    Raises:
        RunError: a setting is out of range, or two contradict each other.
    """

    window: int | None = None
    """Side of the windows in pixels; None takes the model's input size."""
    stride: int | None = None
    """From window to window; None takes three quarters of the window."""
    whole: bool = False
    """Take every image in one forward instead."""
    flip: bool = False
    """Average with what is predicted of the mirrored image."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Sizes at which each image is seen, relative to its own; their predictions are averaged."""

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RunError(f"{name} must be at least 1 pixel, got {value}")
        if self.whole and (self.window is not None or self.stride is not None):
            raise RunError("whole images have no windows: give whole (--whole) or window and stride, not both")
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise RunError(
                f"a stride of {self.stride} pixels between windows of {self.window} would leave pixels out; "
                f"give a stride of at most {self.window}"
            )
        if not self.scales or min(self.scales) <= 0:
            raise RunError(f"scales must be above 0, got {self.scales or 'none'}; 0.5 0.75 1 1.25 1.5 1.75 is usual")

    def for_model(self, loaded: LoadedModel, batch_size: int) -> Inference:
        """How images go through a model.

        Raises:
            RunError: the model takes inputs of another size than the window only, or the stride is larger than its window.
        """
        only = only_size(loaded.model)
        height, width = loaded.input_size[1:] if self.window is None else (self.window, self.window)
        if self.whole:
            return Inference(None, (1, 1), batch_size, self.flip, tuple(self.scales), only)
        if only is not None and only != (height, width):
            raise RunError(
                f"{loaded.source}: the model takes {only[1]}×{only[0]} pixels only, got windows of {width}×{height}; "
                "leave the window out, or load it for another size with image_size (--image-size)"
            )
        stride = usual_stride((height, width)) if self.stride is None else (self.stride, self.stride)
        if stride[0] > height or stride[1] > width:
            raise RunError(
                f"{loaded.source}: a stride of {self.stride} pixels between windows of {width}×{height} would leave pixels out; "
                f"give a stride of at most {min(height, width)}"
            )
        return Inference((height, width), stride, batch_size, self.flip, tuple(self.scales), only)

    def require_room(self, name: str, size: tuple[int, int]) -> None:
        """Raise a `RunError` where the window that was asked for is larger than an image of (height, width)."""
        if self.window is not None and self.window > min(size):
            raise RunError(
                f"{name}: a window of {self.window}×{self.window} pixels is larger than the image ({size[1]}×{size[0]}); "
                f"give a window of at most {min(size)}, or leave it out"
            )

    def describe(self, inference: Inference) -> str:
        """In words, for people."""
        if inference.window is None:
            words = "whole images"
        else:
            (height, width), (down, across) = inference.window, inference.stride
            words = f"windows of {width}×{height} pixels, stride {across}×{down}, where an image is larger"
        if inference.flip:
            words += "; mirrored too"
        if inference.scales != (1.0,):
            words += f"; at {', '.join(f'{scale:g}' for scale in inference.scales)} times its size"
        return words + ("; probabilities averaged" if inference.augmented else "")


def usual_batch(loaded: LoadedModel, window: int | None) -> int:
    """Windows in one forward where nobody says how many: 4 of 1024×1024 pixels, more of smaller ones, at most 64."""
    height, width = loaded.input_size[1:] if window is None else (window, window)
    return max(1, min(LARGEST_BATCH, _PIXELS_PER_BATCH // (height * width)))


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis; the last one is moved back inside.

    Raises:
        ValueError: the window is longer than the axis, or the stride than the window: pixels between windows would be left out.

    >>> window_starts(2048, 1024, 768)
    [0, 768, 1024]
    """
    if not 1 <= stride <= window <= length:
        raise ValueError(f"expected 1 ≤ stride ≤ window ≤ length, got stride {stride}, window {window}, length {length}")
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(number * stride, length - window) for number in range(count)]


def sliding_logits(
    model: nn.Module,
    images: Float[Tensor, "batch channels height width"],
    window: tuple[int, int],
    stride: tuple[int, int],
    together: int,
) -> Float[Tensor, "batch classes height width"]:
    """Logits of every pixel: the mean over the windows that contain it, each upsampled to the window's size.

    `together` windows go through the model at a time and are added up in place, so that memory depends on the images and on
    `together`, not on the number of windows. `window` and `stride` are (height, width).
    """
    height, width = images.shape[2:]
    tops, lefts = window_starts(height, window[0], stride[0]), window_starts(width, window[1], stride[1])
    places = [(number, top, left) for number in range(len(images)) for top in tops for left in lefts]
    total: Tensor | None = None
    for start in range(0, len(places), together):
        chosen = places[start : start + together]
        crops = torch.stack([images[n, :, top : top + window[0], left : left + window[1]] for n, top, left in chosen])
        logits: Tensor = model(crops)
        if total is None:
            total = torch.zeros(len(images), logits.shape[1], height, width, device=logits.device)
        for (number, top, left), part in zip(chosen, logits, strict=True):
            _add_upsampled(total[number, :, top : top + window[0], left : left + window[1]], part)
    assert total is not None  # there is an image, so there is a window
    # windows form a grid: how many lie on a pixel is the product of how many lie on its row and on its column
    for axis, length, starts in ((2, height, tops), (3, width, lefts)):
        if len(starts) > 1:
            total /= _covering(length, starts, window[axis - 2]).to(total).view(-1, *[1] * (3 - axis))
    return total


def _add_upsampled(place: Float[Tensor, "classes height width"], logits: Float[Tensor, "classes rows columns"]) -> None:
    """Add logits to a part of the total, some classes at a time: what is upsampled stays in the processor's cache."""
    height, width = place.shape[1:]
    step = max(1, _VALUES_AT_A_TIME // (height * width))
    for start in range(0, len(logits), step):
        place[start : start + step] += upsample(logits[None, start : start + step].float(), (height, width))[0]


def _covering(length: int, starts: list[int], window: int) -> Float[Tensor, " length"]:
    """How many windows cover each place of an axis."""
    count = torch.zeros(length)
    for start in starts:
        count[start : start + window] += 1
    return count
