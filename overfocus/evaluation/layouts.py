"""What is in a folder of evaluation data, labelled images or a tree of corrupted ones (ImageNet-C), and how it is read."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from overfocus.checkpoints.loaded import LoadedModel
from overfocus.corruptions import CORRUPTIONS, ConstantSet
from overfocus.corruptions.custom import CustomCorruption
from overfocus.datasets import LabelledImages, open_evaluation_images
from overfocus.datasets.labelled import ClassFolders, LabelledFiles
from overfocus.datasets.segmented import CLASSES, SegmentedImages, open_segmented_portions
from overfocus.errors import ChangedImageError, CorruptionError, ImageError, RunError
from overfocus.files import require_regular_file
from overfocus.images.labels import imagenet_classes
from overfocus.images.live import identify, image_sources, numbering
from overfocus.images.sources import spread
from overfocus.preprocessing import Preprocess
from overfocus.sweep.reading import OWN_SIZE, InputSize, Sample, make_variants
from overfocus.text import printable
from overfocus.variants import CLEAN, CLEAN_VARIANT, Variant

C_BAR = (
    "blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout", "cocentric_sine_waves",
    "inverse_sparkles", "perlin_noise", "plasma_noise", "single_frequency_greyscale", "sparkles",
)  # fmt: skip
"""Corruptions of ImageNet-C-bar (Mintun, Kirillov, Xie, "On Interaction Between Augmentations and Corruptions", 2021)."""
TREE = "tree of corruptions"
"""What a tree is called that is neither ImageNet-C nor ImageNet-C-bar."""

Images = TypeVar("Images", LabelledImages, SegmentedImages)


@dataclass(frozen=True)
class Portion(Generic[Images]):
    """Images that share a corruption and severity; ("clean", 0) for those that nothing was done to.

    A condition of ACDC is ("ACDC fog", 0) and so on: real weather, not a corruption.
    """

    corruption: str
    severity: int
    images: Images

    @property
    def variant(self) -> Variant:
        """What its images are."""
        return Variant(self.corruption, self.severity)


@dataclass(frozen=True)
class EvaluationData(Generic[Images]):
    """A data set to evaluate with."""

    layout: str
    """"images", "ImageNet-A", "ImageNet-R", "ImageNet-C", "ImageNet-C-bar", "tree of corruptions" or "ImageNet-P"; of images
    with masks "images", "Cityscapes", "Cityscapes-C" or "ACDC"."""
    portions: list[Portion[Images]]
    synsets: list[str] | None = None
    """WordNet identifiers that predictions are restricted to (ImageNet-A and -R)."""

    @property
    def corrupted(self) -> bool:
        """Whether the images are corrupted on the disk."""
        return any(portion.severity for portion in self.portions)


def open_evaluation_data(source: Any, limit: int | None = None) -> EvaluationData[LabelledImages]:
    """Find out what a folder holds, or take images in memory, at most `limit`.

    A folder of folders whose names are all numbers from 1 to 5 is a corruption, and a folder of such ones a tree, at most two
    levels up (ImageNet-C's archives add noise, blur, weather, digital and extra); it is ImageNet-C or ImageNet-C-bar where its
    corruptions are theirs and its classes ImageNet's. Videos in perturbation/class are ImageNet-P, with severity 1. Its name says
    whether a folder of images is ImageNet-A or -R.

    Raises:
        ImageError: as `open_images`.
    """
    if not isinstance(source, str | Path):
        found = identify(spread(image_sources(source), limit))
        if not any(image.label is not None for image in found):
            raise ImageError("expected images with labels to evaluate with, got none with one; give (image, label)")
        return EvaluationData("images", [Portion(CLEAN, 0, LabelledFiles(found, numbering(found)))])
    folder = Path(source)
    if folder.is_dir() and (trees := _corruption_folders(folder)):
        names = {path.name for path in trees}
        order = [*CORRUPTIONS, *C_BAR]
        trees.sort(key=lambda path: (order.index(path.name) if path.name in order else len(order), path.name))
        portions: list[Portion[LabelledImages]] = [
            Portion(path.name, int(severity.name), ClassFolders(severity))
            for path in trees
            for severity in sorted(_subfolders(path), key=lambda path: int(path.name))
        ]
        kinds = {"ImageNet-C": set(CORRUPTIONS), "ImageNet-C-bar": set(C_BAR)}
        kind = next((kind for kind, known in kinds.items() if names <= known), TREE)
        labels = {label for portion in portions for label in portion.images.class_names}
        return EvaluationData(kind if is_imagenet(labels) else TREE, portions)
    if folder.is_dir() and (perturbations := video_folders(folder)):
        return EvaluationData("ImageNet-P", [Portion(path.name, 1, VideoFolders(path)) for path in perturbations])
    if folder.is_dir() and (wrong := _broken_tree(folder)):
        raise ImageError(
            f"{wrong}: expected severities 1 to 5 and class folders in each, as in a tree corruption/severity/class, got "
            f"{', '.join(printable(path.name, 40) for path in _subfolders(wrong)[:3]) or 'none'}; rename or remove these"
        )
    images = open_evaluation_images(folder)
    portions = [Portion(CLEAN, 0, images)]
    for letter in ("a", "r"):
        known = subset(letter)
        if _says(folder, letter) and set(images.class_names) <= set(known or images.class_names):
            return EvaluationData(f"ImageNet-{letter.upper()}", portions, known or list(images.class_names))
    return EvaluationData("images", portions)


def open_segmented_data(source: str | Path, loaded: LoadedModel) -> EvaluationData[SegmentedImages]:
    """Images with masks; those that do not say what their classes are called have the model's, or its numbers.

    Raises:
        ImageError: as `open_segmented_images`.
    """
    names = loaded.class_names or [str(number) for number in range(loaded.num_classes)]
    found = open_segmented_portions(source, class_names=None if (Path(source) / CLASSES).is_file() else names)
    return EvaluationData(found[0].layout, [Portion(part.corruption, part.severity, part.images) for part in found])


def choose_portions(
    data: EvaluationData[Images], corruptions: Sequence[str] | None, severities: Sequence[int] | None
) -> EvaluationData[Images]:
    """The part of a tree with the corruptions and severities asked for, and its clean images; None for all there are.

    Raises:
        ImageError: the tree does not hold one of them.
    """
    there = {portion.corruption for portion in data.portions if portion.severity}
    levels = {portion.severity for portion in data.portions if portion.severity}
    if missing := [name for name in corruptions or () if name not in there]:
        raise ImageError(f"the tree has no {missing[0]}; it has {', '.join(sorted(there))}")
    if absent := [level for level in severities or () if level not in levels]:
        raise ImageError(f"the tree has no severity {absent[0]}; it has {', '.join(map(str, sorted(levels)))}")
    kept = [
        portion
        for portion in data.portions
        if not portion.severity
        or ((corruptions is None or portion.corruption in corruptions) and (severities is None or portion.severity in severities))
    ]
    return EvaluationData(data.layout, kept, data.synsets)


def add_clean_images(tree: EvaluationData[LabelledImages], source: str | Path) -> EvaluationData[LabelledImages]:
    """A tree of corruptions with the images that it was made from.

    Raises:
        RunError: the data are no such tree.
        ImageError: the images cannot be read, or have other classes than the tree.
    """
    if not tree.corrupted or tree.layout == "ImageNet-P":
        raise RunError("clean images go with a tree corruption/severity/class, which the data are not; leave --clean out")
    images = open_evaluation_images(source)
    for portion in tree.portions:
        if different := sorted(set(images.class_names) ^ set(portion.images.class_names)):
            there = f"{portion.corruption}/{portion.severity}"
            which = "is not in" if different[0] in images.class_names else "is only in"
            raise ImageError(
                f"{source}: expected the classes of the tree, but {different[0]} {which} {there}; "
                "give the clean images that the tree was made from"
            )
    return EvaluationData(tree.layout, [Portion(CLEAN, 0, images), *tree.portions])


def _corruption_folders(folder: Path) -> list[Path]:
    """Corruptions in a folder: `folder/corruption/1` or `folder/group/corruption/1`; none where anything else is there."""
    found: list[Path] = []
    for path in _subfolders(folder):
        if _is_corruption(path):
            found.append(path)
        elif inner := _subfolders(path):
            if not all(_is_corruption(inside) for inside in inner):
                return []
            found += inner
        else:
            return []
    return found


def _broken_tree(folder: Path) -> Path | None:
    """What hinders a folder from being a tree of corruptions, most of whose own folders are named like them and hold folders of
    folders; None for another folder, such as that of a data set of weather.
    """
    inner = _subfolders(folder)
    named = [path for path in inner if path.name.lower().strip() in (*CORRUPTIONS, *C_BAR)]
    if 2 * len(named) <= len(inner) or not any(_subfolders(level) for path in named for level in _subfolders(path)):
        return None
    return next((path for path in inner if not _is_corruption(path)), None)


def _is_corruption(folder: Path) -> bool:
    inner = _subfolders(folder)
    return bool(inner) and all(path.name in ("1", "2", "3", "4", "5") and _subfolders(path) for path in inner)


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _says(folder: Path, letter: str) -> bool:
    return any(re.sub(r"[-_\s]", "", part.lower()) == f"imagenet{letter}" for part in folder.absolute().parts[-2:])


@dataclass(frozen=True)
class Item:
    """One image, or video, on the disk."""

    image: int
    """Number in run.json; the versions of an image in a tree of corruptions share it."""
    portion: int
    index: int
    """In its portion."""


def list_items(portions: Sequence[Portion[Any]], limit: int | None) -> tuple[list[Item], list[tuple[str, str | None]]]:
    """All items, portion by portion, and (name, label) of each image; `limit` takes so many of each portion, spread evenly.

    Images with masks have no label.
    """
    items: list[Item] = []
    images: dict[tuple[str, str | None], int] = {}
    for number, portion in enumerate(portions):
        count = len(portion.images)
        labels = getattr(portion.images, "labels", None)
        taken = count if limit is None else min(limit, count)
        for place in range(taken):
            index = place * count // taken
            label = None if labels is None or labels[index] < 0 else portion.images.class_names[int(labels[index])]
            image = images.setdefault((portion.images.name(index), label), len(images))
            items.append(Item(image, number, index))
    return items, list(images)


VIDEOS = (".mp4", ".avi", ".mkv", ".webm")
_MOST_FRAMES = 1000


class VideoFolders:
    """Videos of one perturbation in class folders; as an image, a video is its first frame."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths = _videos(folder)
        self.class_names = sorted({path.parent.name for path in self._paths})
        self.labels = np.array([self.class_names.index(path.parent.name) for path in self._paths], np.int64)
        self.channels = 3
        self.numbering: list[str] | None = None
        self.notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """Path below the folder."""
        return self._paths[index].relative_to(self.folder).as_posix()

    def image(self, index: int) -> Image.Image:
        """The first frame."""
        return next(self.frames(index))

    def frames(self, index: int) -> Iterator[Image.Image]:
        """All frames as RGB.

        Raises:
            ImageError: the file is not a video, or has fewer than two frames or more than a video of ImageNet-P would.
        """
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: what is wrong with a video is said below
        import cv2

        require_regular_file(self._paths[index], "a video", ImageError)
        reader = cv2.VideoCapture(str(self._paths[index]))
        count = 0
        try:
            while count <= _MOST_FRAMES and (read := reader.read())[0]:
                count += 1
                yield Image.fromarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
        finally:
            reader.release()
        if not 1 < count <= _MOST_FRAMES:
            got = "more" if count > 1 else count
            raise ImageError(
                f"{self._paths[index]}: expected a video of 2 to {_MOST_FRAMES:,} frames, got {got}; replace or remove it"
            )


def video_folders(folder: Path) -> list[Path]:
    """The perturbations of ImageNet-P's layout, `perturbation/class/video.mp4`; none where there are no videos."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".") and _videos(path)]


def _videos(folder: Path) -> list[Path]:
    paths = [path for inner in sorted(_subfolders(folder)) for path in sorted(inner.iterdir())]
    return [path for path in paths if path.suffix.lower() in VIDEOS and not path.name.startswith(".")]


def is_imagenet(labels: Iterable[str]) -> bool:
    """Whether all labels are identifiers of ImageNet's 1000 classes."""
    return set(labels) <= set(imagenet_classes()[1])


def subset(letter: str) -> list[str] | None:
    """The 200 classes of ImageNet-A or -R; None if timm no longer lists them."""
    return _read_synsets(f"imagenet_{letter}_synsets.txt")


def _read_synsets(name: str) -> list[str] | None:
    path = files("timm.data") / "_info" / name
    return path.read_text(encoding="utf-8").split() if path.is_file() else None


def uncropped(preprocess: Preprocess) -> Preprocess:
    """For images that were resized and cropped before: one of the input's size stays as it is, another is resized to cover it."""
    interpolation = "bicubic" if preprocess.transform is not None else preprocess.interpolation
    return replace(preprocess, crop_pct=1.0, crop_mode="center", interpolation=interpolation, transform=None)


@dataclass(frozen=True)
class LabelledReader:
    """Reads images at the input size of models, of videos all frames."""

    items: Sequence[Item]
    portions: Sequence[Portion[LabelledImages]]
    variants: Sequence[Variant]
    preprocess: Preprocess
    seed: int
    constants: ConstantSet | None = None
    custom: Mapping[str, CustomCorruption] = field(default_factory=dict)
    tree: Preprocess | None = None
    """For images that are corrupted on the disk; None: as for the others."""
    cache: Path | None = None
    """Folder that keeps corrupted images."""

    def __call__(self, item: int, places: range) -> Sample:
        place = self.items[item]
        portion = self.portions[place.portion]
        size = InputSize.of(self.preprocess)
        preprocess = self.tree if self.tree is not None and portion.severity else self.preprocess
        try:
            if isinstance(portion.images, VideoFolders):
                frames = np.stack([preprocess.resize(frame) for frame in portion.images.frames(place.index)])
                return Sample(item, [portion.variant] * len(frames), {size: frames})
            image = portion.images.image(place.index)
        except ImageError as error:
            return Sample(item, reason=str(error), fatal=ChangedImageError if isinstance(error, ChangedImageError) else None)
        try:
            clean = preprocess.resize(image)
        except ImageError as error:
            return Sample(item, reason=f"{portion.images.name(place.index)}: {error}")
        variants = _variants(portion.variant, [self.variants[number] for number in places])
        return _sample(item, clean, variants, self, {"size": image.size}, at=size, own=portion.variant != CLEAN_VARIANT)


@dataclass(frozen=True)
class SegmentedReader:
    """Reads images with their masks at their own size."""

    items: Sequence[Item]
    portions: Sequence[Portion[SegmentedImages]]
    variants: Sequence[Variant]
    seed: int
    constants: ConstantSet | None = None
    custom: Mapping[str, CustomCorruption] = field(default_factory=dict)
    cache: Path | None = None
    """Folder that keeps corrupted images."""

    def __call__(self, item: int, places: range) -> Sample:
        place = self.items[item]
        portion = self.portions[place.portion]
        try:
            clean = np.asarray(portion.images.image(place.index).convert("RGB"))
        except ImageError as error:
            return Sample(item, reason=str(error))
        try:
            mask = portion.images.mask(place.index)
        except ImageError as error:
            return Sample(item, reason=str(error), fatal=ImageError)
        variants = _variants(portion.variant, [self.variants[number] for number in places])
        height, width = clean.shape[:2]
        about = {"size": (width, height), "mask": mask}
        return _sample(item, clean, variants, self, about, at=OWN_SIZE, own=portion.variant != CLEAN_VARIANT)


def _sample(
    item: int,
    clean: UInt8[np.ndarray, "height width 3"],
    variants: list[Variant],
    reader: LabelledReader | SegmentedReader,
    about: Mapping[str, Any],
    *,
    at: InputSize,
    own: bool,
) -> Sample:
    """An image in its variants; `own` marks one that is what it is on the disk."""
    if own:
        return Sample(item, variants, {at: np.stack([clean] * len(variants))}, **about)
    try:
        made = make_variants(clean, variants, reader.seed, reader.constants, reader.custom, cache=reader.cache)
        return Sample(item, variants, {at: made}, **about)
    except CorruptionError as error:
        return Sample(item, reason=str(error), fatal=CorruptionError)


def _variants(own: Variant, made: Sequence[Variant]) -> list[Variant]:
    """What the images of a portion are made into; those that are corrupted on the disk, or by real weather, are what they are."""
    return list(made) if own == CLEAN_VARIANT else [own] * len(made)
