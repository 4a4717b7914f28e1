"""What the predictions table says of one picture that a segmentation model saw, clean or corrupted."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from overfocus.segmentation.prediction import class_map, pixel_confidence
from overfocus.segmentation.scores import pixel_scores


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
