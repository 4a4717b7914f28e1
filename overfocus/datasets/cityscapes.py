"""Cityscapes, ACDC and corrupted Cityscapes on the disk (Cordts et al. 2016; Sakaridis et al. 2021)."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from overfocus.datasets.masks import CITYSCAPES, IGNORED, PictureMask, PictureMasks
from overfocus.errors import ImageError
from overfocus.images.sources import find_images

CONDITIONS = ("fog", "night", "rain", "snow")
"""Of ACDC."""
_FOLDERS = {"train": "train", "validation": "val"}
_LARGEST_LABEL = 33
_LAST = ("_leftImg8bit", "_rgb_anon")


def train_ids() -> np.ndarray:
    """Table from the numbers in `*_labelIds.png` to train ids; what is not evaluated is ignored, the rest unknown (254)."""
    table = np.full(256, 254, np.uint8)
    table[: _LARGEST_LABEL + 1] = IGNORED
    table[IGNORED] = IGNORED  # the licence plate's −1, as a byte
    for train_id, (label_id, _) in enumerate(CITYSCAPES.values()):
        table[label_id] = train_id
    return table


def is_cityscapes(folder: Path) -> bool:
    """Whether a folder holds Cityscapes' pictures and fine labels."""
    return all((folder / name).is_dir() for name in ("leftImg8bit", "gtFine")) and any(
        (folder / "leftImg8bit" / name).is_dir() for name in _FOLDERS.values()
    )


def open_cityscapes(folder: Path, split: str) -> PictureMasks | None:
    """`leftImg8bit/{train,val}/city/*_leftImg8bit.png` with `gtFine/{train,val}/city/*_gtFine_label{TrainIds,Ids}.png`."""
    pictures = folder / "leftImg8bit" / _FOLDERS[split]
    if not pictures.is_dir():
        return None
    return _pair(find_files(pictures), label_files(folder / "gtFine" / _FOLDERS[split]), pictures)


def is_acdc(folder: Path) -> bool:
    """Whether a folder holds ACDC's pictures and labels."""
    return all((folder / name).is_dir() for name in ("rgb_anon", "gt"))


def open_acdc(folder: Path, split: str, conditions: Iterable[str] = CONDITIONS) -> PictureMasks | None:
    """`rgb_anon/condition/{train,val}/…/*_rgb_anon.png` with `gt/condition/{train,val}/…/*_gt_label{TrainIds,Ids}.png`."""
    pictures: list[Path] = []
    labels: dict[str, Path] = {}
    for condition in conditions:
        place = folder / "rgb_anon" / condition / _FOLDERS[split]
        if place.is_dir():
            pictures += find_files(place)
            labels |= label_files(folder / "gt" / condition / _FOLDERS[split])
    return _pair(pictures, labels, folder / "rgb_anon") if pictures else None


def corrupted_cityscapes(folder: Path) -> Iterator[tuple[str, int, PictureMasks]]:
    """Corruption, severity and pictures of each part of a Cityscapes-C tree; nothing where a folder holds none.

    The pictures lie in `CORRUPTION/SEVERITY/…/*_leftImg8bit.png` or in `leftImg8bit/CORRUPTION/SEVERITY/…`, and the labels in
    `gtFine` of the folder, of a folder `clean` in it, or beside the folder.
    """
    from overfocus.corruptions import CORRUPTIONS

    labelled = next((place for place in _label_places(folder) if place.is_dir()), None)
    trees = [
        path
        for place in (folder, folder / "leftImg8bit")
        if labelled is not None and place.is_dir()
        for path in place.iterdir()
        if path.name in CORRUPTIONS and path.is_dir()
    ]
    labels = label_files(labelled / "val") if trees and labelled is not None else {}
    for tree in sorted(trees, key=lambda path: CORRUPTIONS.index(path.name)):
        for part in sorted(tree.iterdir()):
            if part.is_dir() and part.name in ("1", "2", "3", "4", "5"):
                files = [path for path in find_files(part) if "train" not in path.relative_to(part).parts]
                yield tree.name, int(part.name), _pair(files, labels, part)


def is_corrupted_cityscapes(folder: Path) -> bool:
    """Whether `corrupted_cityscapes` finds something."""
    from overfocus.corruptions import CORRUPTIONS

    places = (folder, folder / "leftImg8bit")
    trees = [place / name / str(severity) for place in places for name in CORRUPTIONS for severity in range(1, 6)]
    return any(place.is_dir() for place in _label_places(folder)) and any(tree.is_dir() for tree in trees)


def clean_cityscapes(folder: Path) -> Path | None:
    """The folder of the uncorrupted pictures of a Cityscapes-C tree, where they are there."""
    return next((place for place in (folder, folder / "clean") if is_cityscapes(place)), None)


def find_files(folder: Path) -> list[Path]:
    """All pictures below a folder, in order."""
    return [source.path for source in find_images(folder)]


def label_files(folder: Path) -> dict[str, Path]:
    """Label files below a folder by the name that they share with their picture; train ids come before label ids."""
    found: dict[str, Path] = {}
    for ending in ("labelIds", "labelTrainIds"):
        for kind in ("gtFine", "gt"):
            tail = f"_{kind}_{ending}.png"
            found |= {path.name.removesuffix(tail): path for path in sorted(folder.rglob(f"*{tail}"))}
    return found


def _label_places(folder: Path) -> tuple[Path, ...]:
    return folder / "gtFine", folder / "clean" / "gtFine", folder.absolute().parent / "gtFine"


def _pair(pictures: list[Path], labels: dict[str, Path], root: Path) -> PictureMasks:
    keys = [_key(path) for path in pictures]
    if missing := [path for path, key in zip(pictures, keys, strict=True) if key not in labels]:
        raise ImageError(
            f"{root}: {len(missing)} of {len(pictures)} pictures have no *_labelTrainIds.png or *_labelIds.png "
            f"(first: {missing[0].name}); add the labels or remove the pictures"
        )
    table = train_ids()
    entries = [
        PictureMask(
            path,
            labels[key],
            path.relative_to(root.absolute()).as_posix(),
            None if labels[key].stem.endswith("TrainIds") else table,
        )
        for path, key in zip(pictures, keys, strict=True)
    ]
    return PictureMasks(entries, list(CITYSCAPES))


def _key(picture: Path) -> str:
    key = picture.stem
    for last in _LAST:
        key = key.removesuffix(last)
    return key
