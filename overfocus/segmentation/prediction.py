"""From a segmentation model's logits to the class of every pixel, how sure the model is of it, and the columns of a table."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from overfocus.segmentation.scores import pixel_scores

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
    """Logits at the size (height, width) of a picture, bilinearly and without aligned corners, as the models are trained."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def class_map(logits: Float[Tensor, "batch classes rows columns"], size: tuple[int, int]) -> UInt8[Tensor, "batch height width"]:
    """The class of every pixel of pictures of `size` (height, width), on the device of the logits.

    One picture after the other, so that no full-size logits of a batch exist.

    >>> class_map(torch.tensor([[[[0.0]], [[1.0]]]]), (1, 2))
    tensor([[[1, 1]]], dtype=torch.uint8)
    """
    # on a CPU, max finds the places seven times as fast as argmax
    return torch.stack([upsample(picture, size)[0].max(0).indices.to(torch.uint8) for picture in logits[:, None]])


def pixel_confidence(
    logits: Float[Tensor, "classes rows columns"],
    size: tuple[int, int],
    classes: UInt8[Tensor, "height width"] | None = None,
) -> float:
    """Mean over the pixels of a picture of the probability (softmax) of its most probable class, or of the class in `classes`.

    Range 0 … 1; at `size` (height, width), as `class_map`. With the class map of the clean picture as `classes`, the
    confidence of the clean picture minus this of its corrupted version is the confidence drop.

    >>> round(pixel_confidence(torch.tensor([[[0.0]], [[0.0]]]), (2, 2)), 3)
    0.5
    """
    full = upsample(logits[None], size)[0]
    total = torch.zeros((), dtype=torch.float64, device=full.device)
    # in strips: the exponentials of a whole large picture would take as much memory again as its logits
    for start in range(0, full.shape[1], _ROWS_PER_STRIP):
        rows = slice(start, start + _ROWS_PER_STRIP)
        strip = full[:, rows].float()
        chosen = strip.amax(0) if classes is None else strip.gather(0, classes[None, rows].long())[0]
        total += (chosen - strip.logsumexp(0)).exp().sum(dtype=torch.float64)
    return float(total / (full.shape[1] * full.shape[2]))


@dataclass(frozen=True, eq=False)
class PixelPrediction:
    """A model's answer to one picture."""

    classes: UInt8[Tensor, "height width"]
    """Of every pixel, on the model's device."""
    on_host: UInt8[np.ndarray, "height width"]
    """The same."""
    confidence: float
    """Mean over the pixels of the largest probability."""


def predict_pixels(logits: Float[Tensor, "classes rows columns"], size: tuple[int, int]) -> PixelPrediction:
    """The class of every pixel of a picture of `size` (height, width)."""
    classes = class_map(logits[None], size)[0]
    return PixelPrediction(classes, classes.cpu().numpy(), pixel_confidence(logits, size))


def pixel_columns(
    logits: Float[Tensor, "classes rows columns"],
    prediction: PixelPrediction,
    mask: UInt8[np.ndarray, "height width"] | None,
    clean: PixelPrediction | None,
) -> dict[str, Any]:
    """The columns of a prediction that was made of `logits`; NaN for what needs a mask, or a clean prediction, and has none.

    predicted is the class of most pixels, confidence_drop the mean over the pixels of what the class that the clean picture has
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
