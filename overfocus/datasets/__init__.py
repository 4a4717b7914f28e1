"""Labelled pictures to train on and to evaluate with: class folders, IDX files, Hugging Face data sets."""

from overfocus.datasets.labelled import LabelledImages, open_evaluation_images, open_images

__all__ = ["LabelledImages", "open_evaluation_images", "open_images"]
