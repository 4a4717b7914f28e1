"""The classes of a Hugging Face data set: numbers, or names in a column of texts."""

from typing import Any

import numpy as np
from jaxtyping import Int

from overfocus.errors import ImageError

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
