"""IDX files, the form in which MNIST, Fashion-MNIST and KMNIST are distributed."""

import gzip
import io
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from overfocus.errors import ImageError
from overfocus.files import MOST_BYTES, read_bytes

_PREFIXES = {"train": "train", "validation": "t10k"}
FASHION_MNIST_CLASSES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""Names of Fashion-MNIST's classes; IDX files hold numbers only."""


class IdxImages:
    """Pictures and labels of one pair of IDX files, held in memory.

    Raises:
        ImageError: a file is missing or damaged, or the two do not hold the same number.
    """

    def __init__(self, images: Path, labels: Path, class_names: list[str] | None = None) -> None:
        self.pixels: UInt8[np.ndarray, "images height width *channels"] = read_idx(images)
        self.labels: Int[np.ndarray, images] = read_idx(labels).astype(np.int64)
        if self.pixels.ndim not in (3, 4) or self.labels.ndim != 1:
            raise ImageError(
                f"{images}: expected pictures with 3 or 4 axes and labels with 1, got {self.pixels.ndim} and {self.labels.ndim}"
            )
        if self.pixels.shape[3:] not in ((), (3,)):
            raise ImageError(
                f"{images}: expected pictures of shape (number, height, width), or with a last axis of 3 colours (RGB), "
                f"got {self.pixels.shape}; write them in one of these shapes"
            )
        if len(self.pixels) != len(self.labels) or not len(self.labels):
            raise ImageError(f"{labels}: expected a label for each of {len(self.pixels)} pictures, got {len(self.labels)}")
        numbers = int(self.labels.max()) + 1
        self.class_names = class_names or [str(number) for number in range(numbers)]
        if len(self.class_names) < numbers:
            raise ImageError(f"{labels}: holds class {numbers - 1}, but only {len(self.class_names)} class names are given")
        self.channels = 1 if self.pixels.ndim == 3 else 3
        self._stem = images.name.removesuffix(".gz").partition("-images")[0]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One picture, grey where the file has no axis of colours."""
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        """Name of the files and number in them."""
        return f"{self._stem}-{index:05d}"


def is_idx_folder(folder: Path) -> bool:
    """Whether a folder holds IDX pictures to train on."""
    return _find(folder, _PREFIXES["train"], "images") is not None


def open_idx_split(folder: Path, split: str) -> IdxImages | None:
    """The pictures of a split; None where their file is not there.

    Fashion-MNIST is told by its folder's name, and only then are the classes named.

    Raises:
        ImageError: the labels are missing, or as `IdxImages` says.
    """
    images = _find(folder, _PREFIXES[split], "images")
    if images is None:
        return None
    labels = _find(folder, _PREFIXES[split], "labels")
    if labels is None:
        raise ImageError(f"{images}: expected its labels beside it, {_PREFIXES[split]}-labels-idx1-ubyte or the same with .gz")
    known = "fashion-mnist" in folder.absolute().name.lower().replace("_", "-").replace("fashionmnist", "fashion-mnist")
    return IdxImages(images, labels, list(FASHION_MNIST_CLASSES) if known else None)


def read_idx(path: Path) -> UInt8[np.ndarray, "*shape"]:
    """The array in one IDX file of bytes, gzipped or not: two zero bytes, type 8, number of axes, big-endian sizes, data.

    Raises:
        ImageError: the file is something else or cut off.
    """
    content = read_bytes(path, "an IDX file", ImageError, most=MOST_BYTES)
    if path.suffix == ".gz":
        try:
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ImageError(f"{path}: expected an IDX file, reading it failed ({error}); download it again") from None
        if len(content) > MOST_BYTES:
            raise ImageError(f"{path}: unpacks to more than {MOST_BYTES:,} bytes; expected an IDX file")
    if content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise ImageError(f"{path}: expected an IDX file of bytes, got one that begins with {content[:4].hex()}")
    axes = content[3]
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", axes, offset=4))
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if len(values) != np.prod(shape):
        raise ImageError(f"{path}: expected {np.prod(shape):,} values of shape {shape}, got {len(values):,}; download it again")
    return values.reshape(shape)


def _find(folder: Path, prefix: str, kind: str) -> Path | None:
    for separator in ("-", "."):
        name = f"{prefix}-{kind}{separator}idx{3 if kind == 'images' else 1}-ubyte"
        for ending in ("", ".gz"):
            if (folder / f"{name}{ending}").is_file():
                return folder / f"{name}{ending}"
    return None
