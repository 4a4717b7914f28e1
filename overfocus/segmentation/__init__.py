"""Predictions of segmentation models, pixel by pixel: class maps, sliding windows, test-time augmentation, scores."""
