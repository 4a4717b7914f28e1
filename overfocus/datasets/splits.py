"""The parts of a data set, told by the names that its folders or splits go by."""

import os
from collections.abc import Iterable
from pathlib import Path

from overfocus.errors import ImageError

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
