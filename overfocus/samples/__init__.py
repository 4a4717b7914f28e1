"""What comes with the package so that the first command already shows something: two trained checkpoints and images for them."""

from importlib.resources import files
from pathlib import Path

_FOLDER = Path(str(files(__package__)))


def sample_checkpoint() -> Path:
    """The bundled checkpoint: a small VisionTransformer for 32×32 grey images, trained on Fashion-MNIST."""
    return _FOLDER / "fashion_mnist_vit.safetensors"


def sample_checkpoints() -> list[Path]:
    """The bundled pair: `sample_checkpoint`, and the same model trained with TAP and ADL, with the same recipe and seed."""
    return [sample_checkpoint(), _FOLDER / "fashion_mnist_vit_tap_adl.safetensors"]


def sample_images(input_size: tuple[int, int, int]) -> Path:
    """The folder of bundled images that suits a model with input (channels, height, width).

    A model for one channel gets 32 Fashion-MNIST test images in one sub-folder per class, every other model gets
    photographs without labels.
    """
    return _FOLDER / ("fashion_mnist" if input_size[0] == 1 else "photographs")
