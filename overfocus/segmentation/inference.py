"""How pictures of any size go through a segmentation model: whole or in windows, once or in several versions."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.errors import RunError
from overfocus.segmentation.prediction import upsample
from overfocus.segmentation.windows import sliding_logits, window_starts

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Inference:
    """Sends pictures through a model.

    A picture that is smaller than the window makes the window smaller. Only where the model takes inputs of one size (a ViT with
    a table of positions), such a picture is continued to the right and below with the mean colour, and what is predicted
    there is cut off.

    Test-time augmentation averages the soft-max probabilities of all versions of a picture, as mmsegmentation does.
    """

    window: Size | None
    """None takes every picture whole, in one forward."""
    stride: Size
    together: int
    """Windows in one forward."""
    flip: bool = False
    """Also mirrored from left to right."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which a picture is seen, relative to its own."""
    only: Size | None = None
    """The one input size that the model takes; None where it takes any."""

    @property
    def augmented(self) -> bool:
        """Whether a picture is seen in more than one version, or resized."""
        return self.flip or self.scales != (1.0,)

    def windows(self, size: Size) -> int:
        """How many windows a picture has; 1 where it is taken whole."""
        padded, window, stride = self._fit(size)
        axes = zip(padded, window, stride, strict=True)
        rows, columns = (len(window_starts(*axis)) for axis in axes)
        return rows * columns

    def logits(
        self, model: nn.Module, pictures: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes rows columns"]:
        """Logits of pictures of one size, at that size or, of pictures taken whole, as coarse as the model gives them.

        With test-time augmentation these are logarithms of the averaged probabilities, whose soft-max they are themselves.

        Raises:
            RunError: the model does not take inputs of this size.
        """
        height, width = pictures.shape[2:]
        if not self.augmented:
            return self._one_version(model, pictures)
        total: Tensor | None = None
        for scale in self.scales:
            size = max(1, round(scale * height)), max(1, round(scale * width))
            scaled = pictures if scale == 1 else F.interpolate(pictures, size=size, mode="bilinear", antialias=True)
            for mirrored in (False, True) if self.flip else (False,):
                logits = self._one_version(model, scaled.flip(3) if mirrored else scaled).float()
                logits = upsample(upsample(logits, size), (height, width))
                shares = logits.flip(3).softmax(1) if mirrored else logits.softmax(1)
                total = shares if total is None else total.add_(shares)
        assert total is not None
        versions = len(self.scales) * (1 + self.flip)
        return total.div_(versions).log_()

    def _one_version(self, model: nn.Module, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[2:]
        padded, window, stride = self._fit((height, width))
        try:
            if padded == window:
                inputs = F.pad(pictures, (0, padded[1] - width, 0, padded[0] - height))
                logits = torch.cat([model(part) for part in inputs.split(self.together)])  # type: ignore[no-untyped-call]
                return logits if padded == (height, width) else upsample(logits, padded)[:, :, :height, :width]
            inputs = F.pad(pictures, (0, padded[1] - width, 0, padded[0] - height))
            return sliding_logits(model, inputs, window, stride, self.together)[:, :, :height, :width]
        except AssertionError as error:  # timm's models assert what they demand of their input
            raise RunError(
                f"the model takes no inputs of {_text(window)} pixels ({error}); give a window of the size that it was trained at"
            ) from error

    def _fit(self, size: Size) -> tuple[Size, Size, Size]:
        """For a picture of `size`: the size that it is padded to, its window and stride."""
        if self.window is None:
            if self.only is not None and size != self.only:
                raise RunError(
                    f"the model takes {_text(self.only)} pixels only, got a picture of {_text(size)} to be taken whole; "
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
