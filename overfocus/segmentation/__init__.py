"""How well predicted classes of pixels fit the mask of an image, in counts that add up over a set of images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from overfocus.datasets.masks import IGNORED

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class PixelScores:
    """One image's scores, each 0 … 1; NaN where there is no mask, or no clean prediction, to score against."""

    pixel_accuracy: float
    """Share of the pixels that have the mask's class."""
    image_iou: float
    """Intersection over union, mean over the classes in the mask or in the prediction of this one image."""
    agreement: float
    """Share of the pixels whose class is that of the clean prediction."""
    intersections: Int[np.ndarray, " classes"]
    """Pixels of each class in both the mask and the prediction; zeros without a mask."""
    unions: Int[np.ndarray, " classes"]
    """Pixels of each class in either of them."""


def pixel_scores(
    predicted: UInt8[np.ndarray, "height width"],
    mask: UInt8[np.ndarray, "height width"] | None,
    clean: UInt8[np.ndarray, "height width"] | None,
    classes: int,
) -> PixelScores:
    """Score the classes predicted for one image.

    Pixels that the mask ignores (255) count nowhere, in the agreement neither.

    Args:
        predicted: class of every pixel.
        mask: the right ones.
        clean: the prediction for the same image without corruption.
        classes: number of classes.

    Raises:
        ValueError: the arrays differ in size, or hold a class that is not one of 0 … classes − 1.

    >>> pixel_scores(np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8), None, 2).image_iou
    0.25
    """
    for name, other in (("mask", mask), ("clean prediction", clean)):
        if other is not None and other.shape != predicted.shape:
            raise ValueError(f"expected a {name} of the prediction's size {predicted.shape}, got {other.shape}")
    counted = slice(None) if mask is None else mask != IGNORED
    ours = predicted[counted].ravel()
    agreement = np.nan if clean is None or not ours.size else float(np.mean(ours == clean[counted].ravel()))
    nothing = np.zeros(classes, np.int64)
    if mask is None:
        return PixelScores(np.nan, np.nan, agreement, nothing, nothing.copy())
    truth = mask[counted]
    for name, values in (("prediction", ours), ("mask", truth)):
        if values.size and int(values.max()) >= classes:
            raise ValueError(f"expected classes 0 … {classes - 1} in the {name}, got {int(values.max())}")
    right = ours == truth
    intersections = np.bincount(truth[right], minlength=classes).astype(np.int64)
    unions = np.bincount(truth, minlength=classes) + np.bincount(ours, minlength=classes) - intersections
    accuracy = float(np.mean(right)) if right.size else np.nan
    return PixelScores(accuracy, float(mean_iou(intersections, unions)), agreement, intersections, unions.astype(np.int64))


def class_iou(
    intersections: Int[np.ndarray, "*sets classes"], unions: Int[np.ndarray, "*sets classes"]
) -> Float[np.ndarray, "*sets classes"]:
    """Intersection over union of each class; NaN for a class that occurs in neither mask nor prediction."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: Array = np.where(unions > 0, intersections / unions, np.nan)
    return ratio


def mean_iou(
    intersections: Int[np.ndarray, "*sets classes"], unions: Int[np.ndarray, "*sets classes"]
) -> Float[np.ndarray, "*sets"]:
    """mIoU, the mean over the classes that occur, of intersections and unions that were added up over the images of a set.

    It is not the mean over images of their own IoU. NaN where no class occurs.

    >>> float(mean_iou(np.array([1, 3, 0]), np.array([2, 4, 0])))
    0.625
    """
    ratio = class_iou(intersections, unions)
    known = ~np.isnan(ratio)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(known, ratio, 0).sum(-1) / known.sum(-1)
    return mean


def pixel_accuracy(
    intersections: Int[np.ndarray, "*sets classes"], unions: Int[np.ndarray, "*sets classes"]
) -> Float[np.ndarray, "*sets"]:
    """Share of the pixels with the right class, of intersections and unions added up over a set; NaN where none counts.

    A wrong pixel is in two unions, a right one in one; so the sum of both counts is twice the number of pixels.

    >>> float(pixel_accuracy(np.array([1, 0]), np.array([2, 1])))
    0.5
    """
    right, pixels = intersections.sum(-1), (intersections.sum(-1) + unions.sum(-1)) / 2
    with np.errstate(invalid="ignore"):
        share: Array = right / pixels
    return share
