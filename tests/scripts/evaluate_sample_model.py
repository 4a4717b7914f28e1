"""Accuracy of the bundled checkpoint on Fashion-MNIST's 10,000 test images, as `load_model` loads and preprocesses it.

python tests/scripts/evaluate_sample_model.py
"""

import numpy as np
import torch
from fashion_mnist_files import fashion_mnist
from PIL import Image

from overfocus import load_model
from overfocus.samples import sample_checkpoint


@torch.no_grad()
def count_right() -> int:
    """Test images whose most probable class is their label."""
    loaded = load_model(sample_checkpoint())
    images, labels = fashion_mnist("validation")
    right = 0
    for start in range(0, len(images), 500):
        pixels = [loaded.preprocess.resize(Image.fromarray(image)) for image in images[start : start + 500]]
        predicted = loaded.model(loaded.preprocess.normalize_batch(pixels)).argmax(1).numpy()
        right += int(np.sum(predicted == labels[start : start + 500]))
    return right


if __name__ == "__main__":
    print(f"{count_right():,} of 10,000 test images right")
