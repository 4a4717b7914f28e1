"""Pictures in `images/` with masks of the same names in `masks/`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from overfocus.datasets.masks import IGNORED, read_mask
from overfocus.datasets.picture_masks import PictureMask, PictureMasks
from overfocus.datasets.splits import SPLITS, split_folders
from overfocus.errors import ImageError
from overfocus.images.sources import find_images

CLASSES = "classes.txt"
"""Names of the classes, one a line, in the order of their numbers."""


def is_mask_folders(folder: Path) -> bool:
    """Whether a folder holds pictures with masks."""
    return next(_places(folder), None) is not None


def open_mask_folders(folder: Path, split: str, class_names: Sequence[str] | None = None) -> PictureMasks | None:
    """The pictures of a split; None where there is none of that kind. Without splits all are for training.

    Raises:
        ImageError: a picture has no mask, or the classes cannot be told.
    """
    splits = dict(_places(folder))
    place = splits.get(split, splits.get("all") if split == "train" else None)
    if place is None:
        return None
    names = class_names or _listed(folder) or _numbered(list(splits.values()))
    opened = PictureMasks(_pair(*place), names)
    if _hold_zero_and_ignored([entry.mask for pair in splits.values() for entry in _pair(*pair)]):
        raise ImageError(_nothing_shown(place[1]))
    return opened


def _places(folder: Path) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """Split ("all" where there are none) and the two folders of each part that is there."""
    split_there = False
    for split in SPLITS:
        inside = [(path, folder / "masks" / path.name) for path in split_folders(folder / "images", split)]
        around = [(path / "images", path / "masks") for path in split_folders(folder, split)]
        found = next((pair for pair in inside + around if all(path.is_dir() for path in pair)), None)
        if found is not None:
            split_there = True
            yield split, found
    if not split_there and (folder / "images").is_dir() and (folder / "masks").is_dir():
        yield "all", (folder / "images", folder / "masks")


def _pair(pictures: Path, masks: Path) -> list[PictureMask]:
    there = {_stem(source.name): source.path for source in find_images(masks)}
    sources = find_images(pictures)
    if missing := [source.name for source in sources if _stem(source.name) not in there]:
        raise ImageError(
            f"{masks}: no mask for {len(missing)} of {len(sources)} pictures (first: {missing[0]}); "
            "expected one of the same name, such as PNG, for each"
        )
    return [PictureMask(source.path, there[_stem(source.name)], source.name) for source in sources]


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _listed(folder: Path) -> list[str] | None:
    path = folder / CLASSES
    if not path.is_file():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ImageError(f"{path}: expected a text file with the name of a class a line, but it is not UTF-8 text") from None
    if len(set(names)) != len(names):
        raise ImageError(f"{path}: expected the name of a class a line, each once, got one twice")
    return names


def _numbered(places: list[tuple[Path, Path]]) -> list[str]:
    """The numbers up to the largest in any mask of any split."""
    largest = 0
    for pictures, masks in places:
        for entry in _pair(pictures, masks):
            numbers = read_mask(entry.mask)
            largest = max(largest, int(numbers[numbers != IGNORED].max(initial=0)))
    if largest == 0:
        raise ImageError(_nothing_shown(places[0][1]))
    return [str(number) for number in np.arange(largest + 1)]


def _hold_zero_and_ignored(masks: list[Path]) -> bool:
    """Whether all masks hold 0 and `IGNORED` alone, and both: usual in pictures of a foreground, and nothing to learn from.

    One that cannot be read may hold others, and is told of when its turn comes.
    """
    ignored = False
    for mask in masks:
        try:
            numbers = read_mask(mask)
        except ImageError:
            return False
        if ((numbers != 0) & (numbers != IGNORED)).any():
            return False
        ignored |= bool((numbers == IGNORED).any())
    return ignored


def _nothing_shown(masks: Path) -> str:
    return (
        f"{masks}: the masks hold no class but 0 ({IGNORED} is ignored); expected the numbers 0, 1, … of the classes, "
        f"so that a foreground of {IGNORED} has to become 1"
    )
