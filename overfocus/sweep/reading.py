"""Images read, resized and corrupted in worker processes while the models run."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from timm.data.transforms import str_to_pil_interp
from torch.utils.data import DataLoader, Dataset

from overfocus.corruptions import CORRUPTIONS, ConstantSet, corrupt_cached, prepare_corruptions
from overfocus.corruptions.custom import CustomCorruption
from overfocus.errors import ChangedImageError, CorruptionError, ImageError, OverfocusError
from overfocus.images.sources import ImageSource
from overfocus.preprocessing import Preprocess
from overfocus.runs.description import Pixels
from overfocus.settings import MAX_PIXELS
from overfocus.variants import CLEAN_VARIANT, CONTROL_VARIANT, Variant

BYTES_AHEAD = 256 * 2**20
"""Memory that images prepared ahead of the models may take together; each worker has one unit of work ahead anyway."""

Mask = UInt8[np.ndarray, "height width"]
"""The class of each pixel."""


class InputSize(NamedTuple):
    """The size of a model's input, and how images are brought to it."""

    height: int
    width: int
    interpolation: str

    @classmethod
    def of(cls, preprocess: Preprocess) -> "InputSize":
        """That of one model."""
        return cls(*preprocess.input_size[1:], preprocess.interpolation)

    def fit(self, images: UInt8[np.ndarray, "variants height width 3"]) -> UInt8[np.ndarray, "variants new_height new_width 3"]:
        """Resize what was prepared for another model; what has the size stays as it is."""
        if images.shape[1:3] == (self.height, self.width):
            return images
        method = str_to_pil_interp(self.interpolation)  # type: ignore[no-untyped-call]
        size = self.width, self.height
        return np.stack([np.asarray(Image.fromarray(pixels).resize(size, method)) for pixels in images])

    def fit_mask(self, mask: Mask) -> Mask:
        """Resize a mask that was prepared for another model, each pixel taking the class of the nearest."""
        if mask.shape == (self.height, self.width):
            return mask
        return np.asarray(Image.fromarray(mask).resize((self.width, self.height), Image.Resampling.NEAREST))


OWN_SIZE = InputSize(0, 0, "")
"""Stands for the images' own size, at which segmentation models are evaluated."""


def describe_pixels(preprocess: Preprocess) -> Pixels:
    """For run.json: the geometry at which the images of a run are corrupted."""
    _, height, width = preprocess.input_size
    return Pixels(
        height=height,
        width=width,
        interpolation=preprocess.interpolation,
        crop_pct=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
    )


@dataclass(frozen=True, eq=False)
class Sample:
    """One image in its variants, or the reason why it could not be read."""

    item: int
    """Place in the list of what the sweep reads."""
    variants: Sequence[Variant] = ()
    pixels: dict[InputSize, UInt8[np.ndarray, "variants height width 3"]] = field(default_factory=dict)
    """The same variants for each input size; empty where the image could not be read."""
    size: tuple[int, int] | None = None
    """(width, height) of the file."""
    mask: Mask | None = None
    """The class of each pixel, where it is known, at the first input size."""
    control: bool = True
    """Whether the control shows another image; False where there is no other that can be read."""
    reason: str | None = None
    fatal: type[OverfocusError] | None = None
    """The error that ends the sweep, where the reason lies in the data set or a corruption and not in one image."""


class Reader(Protocol):
    """Reads an item of the list and makes those of its variants that are in a range."""

    @property
    def constants(self) -> ConstantSet | None:
        """Whose corruptions are applied; None for those that fit the image's side."""

    def __call__(self, item: int, places: range) -> Sample: ...


@dataclass(frozen=True)
class ImageReader:
    """Reads images at models' input sizes: resized and corrupted once as for `preprocess`, resized from there to `others`."""

    sources: Sequence[ImageSource]
    variants: Sequence[Variant]
    preprocess: Preprocess
    seed: int = 0
    max_pixels: int = MAX_PIXELS
    others: tuple[InputSize, ...] = ()
    constants: ConstantSet | None = None
    """Whose corruptions are applied; None for those that fit the image's side."""
    custom: Mapping[str, CustomCorruption] = field(default_factory=dict)
    """Corruptions of the user by name."""
    cache: Path | None = None
    """Folder that keeps corrupted images; not those of the user."""

    @property
    def sizes(self) -> list[InputSize]:
        """All input sizes, that of `preprocess` first."""
        return list(dict.fromkeys([InputSize.of(self.preprocess), *self.others]))

    @property
    def image_bytes(self) -> int:
        """Memory that the variants of one image take."""
        return len(self.variants) * sum(3 * size.height * size.width for size in self.sizes)

    def __call__(self, item: int, places: range) -> Sample:
        source = self.sources[item]
        try:
            image, mask = source.read(self.max_pixels), source.read_mask()
        except ImageError as error:
            return Sample(item, reason=str(error), fatal=ChangedImageError if isinstance(error, ChangedImageError) else None)
        try:
            clean = self.preprocess.resize(image)
        except ImageError as error:
            return Sample(item, reason=f"{source.path}: {error}")
        variants = [self.variants[place] for place in places]
        partner = self._partner(item) if CONTROL_VARIANT in variants else None
        try:
            images = make_variants(clean, variants, self.seed, self.constants, self.custom, partner, self.cache)
        except CorruptionError as error:
            return Sample(item, reason=str(error), fatal=CorruptionError)
        mask = None if mask is None else self.preprocess.resize_mask(mask)
        pixels = {size: size.fit(images) for size in self.sizes}
        return Sample(item, variants, pixels, image.size, mask, control=partner is not None)

    def _partner(self, item: int) -> UInt8[np.ndarray, "height width 3"] | None:
        """The clean image that this one is compared with, the next one of the cycle where that cannot be read."""
        cycle = partners(len(self.sources), self.seed)
        other = int(cycle[item])
        while other != item:
            with contextlib.suppress(ImageError):
                return self.preprocess.resize(self.sources[other].read(self.max_pixels))
            other = int(cycle[other])
        return None


def make_variants(
    clean: UInt8[np.ndarray, "height width 3"],
    variants: Sequence[Variant],
    seed: int,
    constants: ConstantSet | None,
    custom: Mapping[str, CustomCorruption],
    other: UInt8[np.ndarray, "height width 3"] | None = None,
    cache: Path | None = None,
) -> UInt8[np.ndarray, "variants height width 3"]:
    """The variants of an image; the control is the `other` image, or without one the clean image.

    Raises:
        CorruptionError: a corruption of the user fails.
    """
    made = []
    for variant in variants:
        if not variant.corrupted:
            made.append(clean if variant == CLEAN_VARIANT or other is None else other)
        elif variant.corruption in custom:
            made.append(custom[variant.corruption](clean, variant.severity, seed))
        else:
            made.append(corrupt_cached(clean, *variant, seed, constants, folder=cache))
    return np.stack(made)


def partners(images: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The other image that each of so many is compared with in the control: a random cycle through all, without fixed points.

    It depends on the number of images and the seed alone.

    >>> partners(4, seed=0).tolist()
    [1, 2, 3, 0]
    """
    order = np.random.default_rng([images, abs(int(seed))]).permutation(images)
    partner = np.empty(images, np.int64)
    partner[order] = np.roll(order, -1)
    return partner


@dataclass(frozen=True)
class BatchPlan:
    """How images in their variants are put together."""

    images: int
    """Images whose variants are read together and go through the model together."""
    batches: tuple[tuple[int, ...], ...]
    """Variants of each of these images in each forward."""
    pieces: tuple[range, ...]
    """The variants of an image in the parts that are read one after the other; several only where `images` is 1."""

    def shards(self, items: int) -> list[tuple[int, ...]]:
        """Divide so many items into those that are measured together: at most `images` of them, of even sizes.

        From five shards on their number is a multiple of eight, so that 2, 4 or 8 processes have the same to do. It does not
        depend on the number of processes: what shares a batch decides about the last bits of the results.
        """
        number = -(-items // self.images)
        if number > 4:
            number = min(items, -(-number // 8) * 8)
        ends = [items * place // number for place in range(number + 1)] if number else []
        return [tuple(range(*span)) for span in pairwise(ends)]


def plan_pairs(variants: int, batch_size: int) -> BatchPlan:
    """Divide images in so many variants into forwards of at most `batch_size`, each variant beside the clean one, number 0.

    Several images share a forward where they fit; the variants of one that is larger are split evenly and its clean image
    repeated. A corrupted image needs its clean one, so that a forward holds at least two.
    """
    if variants <= batch_size:
        return BatchPlan(batch_size // variants, (tuple(range(variants)),), (range(variants),))
    room = max(1, batch_size - 1)
    corrupted = variants - 1
    number = -(-corrupted // room)
    ends = [round(corrupted * part / number) for part in range(number + 1)]
    return BatchPlan(1, tuple((0, *range(1 + start, 1 + stop)) for start, stop in pairwise(ends)), (range(variants),))


def plan_images(variants: int, batch_size: int, *, split: bool = False) -> BatchPlan:
    """Divide images in so many variants whose forwards need no clean counterpart: as many images as fill a batch.

    With `split`, the variants of an image are read a batch at a time: all those of a large image would take gigabytes.
    """
    every = tuple(range(variants))
    size = batch_size if split else variants
    pieces = tuple(range(start, min(start + size, variants)) for start in range(0, variants, size))
    return BatchPlan(max(1, batch_size // variants), (every,), pieces)


@dataclass(frozen=True, eq=False)
class Work:
    """What a sweep reads: the same for all of its models."""

    reader: Reader
    images: Sequence[int]
    """Number of the image of each item; the versions of an image in a tree of corruptions share it."""
    variants: Sequence[Variant]
    """Made of each item; one where the data say what the images are."""
    plan: BatchPlan
    workers: int = 0
    strict: bool = False
    """Whether an image that cannot be read ends the sweep."""
    image_bytes: int = 8 * 2**20
    """Memory that an image takes in all its variants, about."""


class Unit(NamedTuple):
    """What is read and measured together: some items, all of their variants or a part of them."""

    items: tuple[int, ...]
    places: range


class _Units(Dataset[list[Sample]]):
    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, unit: Unit) -> list[Sample]:
        return [self.reader(item, unit.places) for item in unit.items]


def load_units(
    reader: Reader, units: Sequence[Unit], variants: Iterable[Variant], *, workers: int, ahead: int
) -> Iterator[list[Sample]]:
    """The samples of each unit, in order, prepared by `workers` processes, each `ahead` units ahead; in this one if 0."""
    workers = min(workers, len(units))
    built_in = [variant.corruption for variant in variants if variant.corruption in CORRUPTIONS]
    prepare_corruptions(built_in, reader.constants)  # before workers copy this process
    loader = DataLoader(
        _Units(reader),
        sampler=units,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=max(1, ahead) if workers else None,
        worker_init_fn=start_worker,
        collate_fn=_unchanged,
    )
    with one_opencv_thread():
        return iter(loader)


def choose_workers(workers: int | None) -> int:
    """Worker processes: as asked for, or one per core that is free beside the model's own thread, at most four."""
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores - 1))


@contextlib.contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Have OpenCV end its threads in this process while it is forked: a copy would wait forever for threads that it has not."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _unchanged(prepared: Any) -> Any:
    """Leave arrays as they are: as tensors they would need shared memory, of which containers have little."""
    return prepared


def start_worker(_number: int) -> None:
    """Leave Ctrl-C and a lost terminal to the main process and, as far as the system has priorities, the cores; end with it.

    The workers take what the model leaves idle, and all when it waits for them. Images are small: threads would cost more
    than they give.
    """
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(os, "nice"):
        os.nice(10)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone; torch's own watch waits for ever for a queue that nobody reads any more."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
