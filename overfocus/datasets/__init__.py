"""Images to train on and to evaluate with, with a class each or one for each pixel."""

from overfocus.datasets.labelled import LabelledImages, open_evaluation_images, open_images
from overfocus.datasets.segmented import (
    SegmentedImages,
    SegmentedPortion,
    is_segmented,
    open_segmented_images,
    open_segmented_portions,
)

Images = LabelledImages | SegmentedImages
"""Images to train on, whatever the task."""

__all__ = [
    "Images",
    "LabelledImages",
    "SegmentedImages",
    "SegmentedPortion",
    "is_segmented",
    "open_evaluation_images",
    "open_images",
    "open_segmented_images",
    "open_segmented_portions",
]
