"""Fashion-MNIST as Debian's `dataset-fashion-mnist` installs it: gzipped IDX files (MIT licence, Zalando SE 2017)."""

from pathlib import Path

import numpy as np

from overfocus.datasets.idx import FASHION_MNIST_CLASSES, open_idx_split

FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = list(FASHION_MNIST_CLASSES)


def fashion_mnist(split: str, folder: Path = FOLDER) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) uint8 and labels (n,) of "train" (60,000) or "validation" (the 10,000 test images)."""
    images = open_idx_split(folder, split)
    assert images is not None
    return images.pixels, images.labels
