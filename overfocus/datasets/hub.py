"""A data set in a folder of Hugging Face `datasets`: written by `save_to_disk`, or the parquet files of a hub repository."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from overfocus.datasets.splits import SPLITS, split_names
from overfocus.errors import ImageError
from overfocus.images.reading import to_rgb

_UNLABELLED = (
    "which usually marks a split without labels; give pictures whose classes are known (in training, --validation takes others "
    "to validate with)"
)


def read_labels(split: Any, trained: Any, column: str, source: str) -> tuple[Int[np.ndarray, "images"], list[str]]:
    """Class of each picture of a split, from 0, and the names of the classes.

    Texts are names, and the classes are the distinct ones of the split to train on, `trained`, in order. Numbers are named by
    themselves where the column does not name them.

    Raises:
        ImageError: a label is missing, negative, broken, or a name that the split to train on does not have.
    """
    feature, values = split.features[column], list(split[column])
    if missing := values.count(None):
        raise ImageError(
            f"{source}: expected a class in the column {column} for each picture, got None for {missing} of {len(values)}, "
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
            f"pictures, {_UNLABELLED}"
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
    """One split, read from disk picture by picture; its classes are those of the split to train on, `trained`.

    Unless it is `labelled` there are no classes, and all labels are 0.

    Raises:
        ImageError: it has no column of pictures or none of classes, or as `read_labels` says.
    """

    def __init__(self, split: Any, trained: Any, source: str, *, labelled: bool) -> None:
        from datasets import ClassLabel, Value
        from datasets import Image as ImageFeature

        features = split.features
        pictures = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
        named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        classes = named or [name for name in ("label", "labels") if isinstance(features.get(name), Value)]
        if not pictures or (labelled and not classes):
            wanted = "a column of pictures" + (" and one of classes (a ClassLabel, or named label)" if labelled else "")
            raise ImageError(f"{source}: expected {wanted}, got {', '.join(map(str, features)) or 'no columns'}")
        self.source = source
        self.class_names: list[str] = []
        self.labels = np.zeros(len(split), np.int64)
        if labelled:
            self.labels, self.class_names = read_labels(split, trained, classes[0], source)
        self.channels = 3
        self._column = pictures[0]
        self._split = split

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One picture as RGB."""
        try:
            return to_rgb(self._split[index][self._column])
        except Exception as error:  # Pillow's readers raise a dozen classes on damaged pictures
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"{self.source}: picture {index} cannot be read ({reason}); remove it from the data set") from error

    def name(self, index: int) -> str:
        """Number in the split."""
        return f"{index:06d}"


def is_hub_folder(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder, or it holds parquet files."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")) or bool(_parquet(folder))


def open_hub_split(folder: Path, split: str, *, labelled: bool = True) -> HubImages | None:
    """The pictures of a split; None where there is none of that kind. A data set without splits is one for training.

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
        if _parquet(folder):
            opened = datasets.load_dataset("parquet", data_files=_parquet_splits(folder))
        else:
            opened = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises whatever its readers do
        raise ImageError(
            f"{folder}: expected a Hugging Face data set, reading it failed ({str(error).splitlines()[0]})"
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


def _parquet(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])


def _parquet_splits(folder: Path) -> dict[str, list[str]]:
    """Files by split, which is the part of the name before the first hyphen or dot (train-00000-of-00004.parquet)."""
    splits: dict[str, list[str]] = {}
    for path in _parquet(folder):
        splits.setdefault(path.name.split(".")[0].split("-")[0], []).append(str(path))
    return splits
