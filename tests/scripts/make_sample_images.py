"""Write the bundled images: 32 of Fashion-MNIST's test set, and the free photographs that scikit-image carries.

    python tests/scripts/make_sample_images.py

Fashion-MNIST: the first three test images of each class and the fourth of the first two, chosen by nobody. Photographs: shorter
side 320 pixels, JPEG. The results are committed; this script says where they come from.
"""

from pathlib import Path

from experiment import write_images
from PIL import Image
from skimage import data

SAMPLES = Path(__file__).parents[2] / "overfocus" / "samples"
PHOTOGRAPHS = ["astronaut", "camera", "chelsea", "coffee", "hubble_deep_field", "retina", "rocket"]
SHORTER_SIDE = 320


def write_photographs(folder: Path) -> None:
    """Write the photographs as JPEG, shrunk to the size that a model for 224 or 384 pixels needs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        photograph = Image.fromarray(getattr(data, name)()).convert("RGB")
        scale = SHORTER_SIDE / min(photograph.size)
        size = (round(photograph.width * scale), round(photograph.height * scale))
        photograph.resize(size, Image.Resampling.LANCZOS).save(folder / f"{name}.jpg", quality=90, optimize=True)


if __name__ == "__main__":
    write_images(SAMPLES / "fashion_mnist", 32)
    write_photographs(SAMPLES / "photographs")
