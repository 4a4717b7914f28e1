"""How well classifiers and segmentation models predict, clean and under corruption."""
