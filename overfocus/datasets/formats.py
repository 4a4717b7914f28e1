"""Where the images of a data set are: split folders, IDX files (MNIST, Fashion-MNIST, KMNIST), data sets of Hugging Face."""

import gzip
import io
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from overfocus.errors import ImageError, first_line
from overfocus.files import MOST_BYTES, read_bytes
from overfocus.images.sources import decode_image, read_image

SPLITS = {
    "train": ("train", "training", "trainset", "train_set", "training_set"),
    "validation": (
        "val", "validation", "valid", "dev", "eval", "test", "testing", "testset", "test_set",
    ),
}  # fmt: skip
"""The two parts of a data set, and the names that folders and splits of each go by in any case, best first."""


def split_names(names: Iterable[str], split: str) -> list[str]:
    """Those of the names that mean a split, best first.

    >>> split_names(["Testing", "bus", "Val"], "validation")
    ['Val', 'Testing']
    """
    known = SPLITS[split]
    return sorted((name for name in names if name.lower() in known), key=lambda name: known.index(name.lower()))


def split_folders(folder: Path, split: str) -> list[Path]:
    """The folders in a folder whose names mean a split, best first."""
    return [folder / name for name in split_names(subfolders(folder), split)] if folder.is_dir() else []


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in order; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith((".", "__")) and entry.is_dir())


def refuse_unrecognised_splits(folder: Path) -> None:
    """Raise an `ImageError` where names such as seg_train and seg_test, with the same folders in both, speak of splits."""
    there = subfolders(folder)
    parts = {split: [name for name in there if any(word in name.lower() for word in words)] for split, words in SPLITS.items()}
    for train in parts["train"]:
        for held_out in parts["validation"]:
            shared = sorted(set(subfolders(folder / train)) & set(subfolders(folder / held_out)))
            if train != held_out and len(shared) > 1:
                inside = ", ".join(shared[:3]) + (" …" if shared[3:] else "")
                raise ImageError(
                    f"{folder}: expected a folder for each class, got {train} and {held_out} with the same folders in them "
                    f"({inside}), as parts of a data set have; rename them to train and val, or give each by itself (to train, "
                    "one of them with --validation)"
                )


_PREFIXES = {"train": "train", "validation": "t10k"}
FASHION_MNIST_CLASSES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""Names of Fashion-MNIST's classes; IDX files hold numbers only."""


class IdxImages:
    """Images and labels of one pair of IDX files, held in memory.

    Raises:
        ImageError: a file is missing or damaged, or the two do not hold the same number.
    """

    def __init__(self, images: Path, labels: Path, class_names: list[str] | None = None) -> None:
        self.pixels: UInt8[np.ndarray, "images height width *channels"] = read_idx(images)
        self.labels: Int[np.ndarray, images] = read_idx(labels).astype(np.int64)
        if self.pixels.ndim not in (3, 4) or self.labels.ndim != 1:
            raise ImageError(
                f"{images}: expected images with 3 or 4 axes and labels with 1, got {self.pixels.ndim} and {self.labels.ndim}"
            )
        if self.pixels.shape[3:] not in ((), (3,)):
            raise ImageError(
                f"{images}: expected images of shape (number, height, width), or with a last axis of 3 colours (RGB), "
                f"got {self.pixels.shape}; write them in one of these shapes"
            )
        if len(self.pixels) != len(self.labels) or not len(self.labels):
            raise ImageError(f"{labels}: expected a label for each of {len(self.pixels)} images, got {len(self.labels)}")
        numbers = int(self.labels.max()) + 1
        self.class_names = class_names or [str(number) for number in range(numbers)]
        if len(self.class_names) < numbers:
            raise ImageError(f"{labels}: holds class {numbers - 1}, but only {len(self.class_names)} class names are given")
        self.numbering: list[str] | None = list(self.class_names)
        self.notes: Sequence[str] = ()
        self.channels = 1 if self.pixels.ndim == 3 else 3
        self._stem = images.name.removesuffix(".gz").partition("-images")[0]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One image, grey where the file has no axis of colours."""
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        """Name of the files and number in them."""
        return f"{self._stem}-{index:05d}"


def is_idx_folder(folder: Path) -> bool:
    """Whether a folder holds IDX images to train on."""
    return _find(folder, _PREFIXES["train"], "images") is not None


def open_idx_split(folder: Path, split: str) -> IdxImages | None:
    """The images of a split; None where their file is not there.

    Fashion-MNIST is recognised by its folder's name, and only then are the classes named.

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


_UNLABELLED = (
    "which usually marks a split without labels; give images whose classes are known (in training, --validation takes others "
    "to validate with)"
)


def read_labels(split: Any, trained: Any, column: str, source: str) -> tuple[Int[np.ndarray, "images"], list[str]]:
    """Class of each image of a split, from 0, and the names of the classes.

    Texts are names, and the classes are the distinct ones of the split to train on, `trained`, in order. Numbers are named by
    themselves where the column does not name them.

    Raises:
        ImageError: a label is missing, negative, broken, or a name that the split to train on does not have.
    """
    feature, values = split.features[column], list(split[column])
    if missing := values.count(None):
        raise ImageError(
            f"{source}: expected a class in the column {column} for each image, got None for {missing} of {len(values)}, "
            f"{_UNLABELLED}"
        )
    if "string" in feature.dtype:
        return _number(values, sorted({name for name in trained[column] if name is not None}), source)
    if not feature.dtype.startswith(("int", "uint", "float", "bool")):
        raise ImageError(f"{source}: expected names or numbers of classes in the column {column}, got {feature.dtype}")
    if broken := [value for value in values if not float(value).is_integer()]:
        raise ImageError(
            f"{source}: expected whole numbers of classes, 0, 1, …, in the column {column}, got {broken[0]:g} "
            f"(such are {len(broken)} of {len(values)}); give a column of classes"
        )
    labels = np.array(values, np.int64)
    if negative := int((labels < 0).sum()):
        raise ImageError(
            f"{source}: expected classes from 0 in the column {column}, got {labels.min()} for {negative} of {len(labels)} "
            f"images, {_UNLABELLED}"
        )
    return labels, list(getattr(feature, "names", None) or map(str, range(int(labels.max()) + 1)))


def _number(values: list[str], names: list[str], source: str) -> tuple[Int[np.ndarray, "images"], list[str]]:
    numbers = {name: number for number, name in enumerate(names)}
    if strange := sorted(set(values) - set(names)):
        raise ImageError(
            f"{source}: has the class {strange[0]!r}, which the training split does not have "
            f"({', '.join(names[:5])}{' …' if names[5:] else ''}); name the classes alike"
        )
    return np.array([numbers[value] for value in values], np.int64), names


class HubImages:
    """One split, read from disk image by image; its classes are those of the split to train on, `trained`.

    Unless it is `labelled` there are no classes, and all labels are 0.

    Raises:
        ImageError: it has no column of images or none of classes, or as `read_labels` says.
    """

    def __init__(self, split: Any, trained: Any, source: str, *, labelled: bool) -> None:
        from datasets import ClassLabel, Value
        from datasets import Image as ImageFeature

        features = split.features
        images = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
        named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        classes = named or [name for name in ("label", "labels") if isinstance(features.get(name), Value)]
        if not images or (labelled and not classes):
            wanted = "a column of images" + (" and one of classes (a ClassLabel, or named label)" if labelled else "")
            raise ImageError(f"{source}: expected {wanted}, got {', '.join(map(str, features)) or 'no columns'}")
        self.source = source
        self.class_names: list[str] = []
        self.labels = np.zeros(len(split), np.int64)
        if labelled:
            self.labels, self.class_names = read_labels(split, trained, classes[0], source)
        texts = labelled and "string" in features[classes[0]].dtype and not named
        self.numbering: list[str] | None = None if texts else list(self.class_names)
        self.notes: Sequence[str] = ()
        self.channels = 3
        self._column = images[0]
        self._split = split.cast_column(images[0], ImageFeature(decode=False))  # it would hand some formats to other programs

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One image as RGB.

        Raises:
            ImageError: it is missing, no image, cut off or too large.
        """
        cell, name = self._split[index][self._column], f"{self.source}: image {index}"
        if cell is None:
            raise ImageError(f"{name}: expected an image, got None; remove the row from the data set")
        return read_image(cell["path"]) if cell["bytes"] is None else decode_image(io.BytesIO(cell["bytes"]), name)

    def name(self, index: int) -> str:
        """Number in the split."""
        return f"{index:06d}"


def is_hub_folder(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder, or it holds parquet files."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")) or bool(_parquet(folder))


def open_hub_split(folder: Path, split: str, *, labelled: bool = True) -> HubImages | None:
    """The images of a split; None if there is none of that kind. A data set without splits is one for training.

    Raises:
        ImageError: `datasets` is not installed, it cannot read the folder, no name of a split is known, or as `HubImages` says.
    """
    try:
        import datasets
    except ImportError:
        raise ImageError(
            f'{folder}: reading a Hugging Face data set needs `datasets`; install it: pip install "overfocus[train]"'
        ) from None
    try:
        with _quiet(datasets):
            if _parquet(folder):
                opened = datasets.load_dataset("parquet", data_files=_parquet_splits(folder))
            else:
                opened = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises whatever its readers do
        raise ImageError(
            f"{folder}: expected a Hugging Face data set, reading it failed ({first_line(error)}); copy or write it again"
        ) from error
    if not isinstance(opened, dict):
        opened = {"train": opened}
    elif not any(split_names(opened, part) for part in SPLITS):
        if len(opened) > 1:
            raise ImageError(f"{folder}: expected splits named train and validation, got {', '.join(opened)}; rename them")
        opened = {"train": next(iter(opened.values()))}
    names = split_names(opened, split)
    if not names:
        return None
    trained = (split_names(opened, "train") or names)[0]
    source = f"{folder} (split {names[0]})" if len(opened) > 1 else str(folder)
    return HubImages(opened[names[0]], opened[trained], source, labelled=labelled)


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the library's own bars and log: what is wrong is said in one line."""
    level, hidden = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not hidden:
            datasets.enable_progress_bars()


def _parquet(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])


def _parquet_splits(folder: Path) -> dict[str, list[str]]:
    """Files by split, which is the part of the name before the first hyphen or dot (train-00000-of-00004.parquet)."""
    splits: dict[str, list[str]] = {}
    for path in _parquet(folder):
        splits.setdefault(path.name.split(".")[0].split("-")[0], []).append(str(path))
    return splits
