"""The pictures of a training in the order in which it sees them, augmented in worker processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from overfocus.datasets import Images
from overfocus.errors import ImageError
from overfocus.preprocessing import Preprocess
from overfocus.sweep.reading import one_opencv_thread, start_worker
from overfocus.training.randomness import AUGMENTATION, ORDER, derived_seed, seed_processor

_PIXELS_TOGETHER = 4 * 1024 * 1024
"""Of pictures that are validated at their own size in one batch: their logits take a number for each pixel and class."""


@dataclass(frozen=True)
class Draw:
    """One picture at one place in the order of a training."""

    epoch: int
    position: int
    """In the epoch, over all processes."""
    index: int
    """In the data set."""


Target = int | UInt8[Tensor, "height width"]
"""What is known of a picture: its class, or that of each pixel."""
Sample = tuple[Float[Tensor, "channels height width"], Target] | ImageError
Batch = tuple[Float[Tensor, "batch channels height width"], Tensor] | ImageError
"""Pictures and their targets, int64 (batch,) or uint8 (batch, height, width)."""


class AugmentedImages(Dataset[Sample]):
    """Pictures by `Draw`; the augmentation depends on the draw and the seed alone.

    `augmentation` takes a picture and its class, or the mask as an array, to a sample.
    """

    def __init__(self, images: Images, augmentation: Callable[[Image.Image, Any], Sample], seed: int) -> None:
        self.images = images
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, draw: Draw) -> Sample:
        try:
            picture, target = read(self.images, draw.index)
        except ImageError as error:
            return error
        seed_processor(derived_seed(self.seed, AUGMENTATION, draw.epoch, draw.position))
        return self.augmentation(picture, target)


class StepOrder(Sampler[list[Draw]]):
    """The draws of one process, forward by forward, from step `start` to the end.

    A step takes `accumulation` batches of each process. What a step sees over all processes depends on their number times
    batch size alone. The pictures of an epoch that do not fill a step are left out of it; each epoch has another order.
    """

    def __init__(
        self,
        indices: Int[np.ndarray, "images"],
        *,
        batch_size: int,
        accumulation: int = 1,
        repeats: int = 1,
        epochs: int,
        seed: int,
        start: int = 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.indices = indices
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.repeats = repeats
        self.epochs = epochs
        self.seed = seed
        self.start = start
        self.process = process
        self.processes = processes

    @property
    def images_per_step(self) -> int:
        """Images of all processes together."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps that the pictures fill."""
        return len(self.indices) // self.images_per_step

    def __len__(self) -> int:
        return (self.epochs * self.steps_per_epoch - self.start) * self.accumulation

    def __iter__(self) -> Iterator[list[Draw]]:
        for epoch in range(self.start // self.steps_per_epoch, self.epochs):
            generator = np.random.default_rng(derived_seed(self.seed, ORDER, epoch))
            order = generator.permutation(self.indices).repeat(self.repeats)
            first = max(0, self.start - epoch * self.steps_per_epoch) * self.accumulation
            for forward in range(first, self.steps_per_epoch * self.accumulation):
                begin = (forward * self.processes + self.process) * self.batch_size
                yield [Draw(epoch, place, int(order[place])) for place in range(begin, begin + self.batch_size)]


def collate(samples: list[Sample]) -> Batch:
    """The samples as one batch, or the first error among them: told in the main process, where it can be caught."""
    for sample in samples:
        if isinstance(sample, ImageError):
            return sample
    pictures, targets = zip(*(sample for sample in samples if not isinstance(sample, ImageError)), strict=True)
    return torch.stack(pictures), torch.stack([torch.as_tensor(target) for target in targets])


class PlainImages(Dataset[Sample]):
    """Pictures by number: those with a class preprocessed as for use, those with a mask normalised at their own size."""

    def __init__(self, images: Images, preprocess: Preprocess) -> None:
        self.images = images
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        try:
            picture, target = read(self.images, index)
        except ImageError as error:
            return error
        if isinstance(target, int):
            return self.preprocess(picture), target
        return self.preprocess.normalize(np.array(picture.convert("RGB"))), torch.from_numpy(target)

    def batches(self, size: int, process: int, processes: int) -> list[list[int]]:
        """The numbers of one process in batches of up to `size` pictures of the same height and width; fewer of large ones."""
        groups: list[list[int]] = []
        before: tuple[int, int] | None = None
        for index in range(process, len(self), processes):
            now = self.preprocess.input_size[1:] if hasattr(self.images, "labels") else self.images.size(index)
            room = size if hasattr(self.images, "labels") else min(size, _PIXELS_TOGETHER // (now[0] * now[1]))
            if groups and len(groups[-1]) < room and now == before:
                groups[-1].append(index)
            else:
                groups.append([index])
            before = now
        return groups


def read(images: Images, index: int) -> tuple[Image.Image, int | UInt8[np.ndarray, "height width"]]:
    """A picture, and its class or mask.

    Raises:
        ImageError: one of them cannot be read.
    """
    picture = images.image(index)
    return picture, int(images.labels[index]) if hasattr(images, "labels") else images.mask(index)


def load_batches(dataset: Any, workers: int, *, batch_sampler: Any, pin: bool) -> Iterator[Batch]:
    """Batches of a dataset in the order of `batch_sampler`, made by `workers` processes (in this one if 0)."""
    loader = DataLoader(
        dataset,
        worker_init_fn=start_worker,
        batch_sampler=batch_sampler,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        collate_fn=collate,
        pin_memory=pin,
    )
    with one_opencv_thread():
        return iter(loader)
