"""What a training works with: images, classes, architecture and preprocessing that fit, order of the images, random numbers.

Random numbers depend on the seed and on what they are for, not on what was drawn before: the augmentation of every image and
the dropout, drop path and mixing of every step start from a seed of their own. So a training that is continued draws what the
uninterrupted one would have drawn, whatever the number of worker processes.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from overfocus.checkpoints.arguments import takes_image_size
from overfocus.checkpoints.build import SEGFORMER
from overfocus.checkpoints.load import LoadedModel
from overfocus.checkpoints.loaded import preprocess_for
from overfocus.checkpoints.metadata import Metadata
from overfocus.datasets import Images, is_segmented, open_evaluation_images, open_images, open_segmented_images
from overfocus.datasets.masks import class_colours
from overfocus.errors import ImageError, TrainingError
from overfocus.preprocessing import Preprocess
from overfocus.sweep.reading import one_opencv_thread, start_worker
from overfocus.training.architecture import Architecture, choose_architecture, describe_architecture, load_initial
from overfocus.training.augmentation import measure_statistics
from overfocus.training.settings import SEGMENTATION

ORDER, AUGMENTATION, STEP = range(3)
"""What a seed is for: the order of an epoch, the augmentation of one image, one forward of one process."""


def derived_seed(seed: int, *parts: int) -> int:
    """A number below 2⁶³ that differs with each part."""
    high, low = np.random.SeedSequence([seed, *parts]).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators, those of GPUs too."""
    seed_processor(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)


def seed_processor(seed: int) -> None:
    """Seed the global generators that timm's augmentations draw from: Python's, numpy's and torch's for the processor.

    `torch.manual_seed` would note a stack trace for every kind of device that is not in use yet: half a millisecond, as much as
    the augmentation of a small image.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


@dataclass(frozen=True)
class TrainingData:
    """The data of a training and the model that fits them."""

    images: Images
    chosen: Int[np.ndarray, "images"]
    """Numbers of the images to train on."""
    validation: Images | None
    class_names: list[str]
    class_colours: list[list[int]] | None
    """RGB of each class, where its pixels have classes."""
    architecture: Architecture
    preprocess: Preprocess
    initial: LoadedModel | None
    """The checkpoint to start from."""


def gather(
    data: Path,
    validation: Path | None,
    *,
    model: str | None,
    model_args: Mapping[str, Any],
    init: str | None,
    tap: Mapping[str, Any] | None,
    image_size: int | None,
    class_names: Sequence[str] | None,
    task: str,
    labelled: bool,
    limit: int | None,
    use_ema: bool = True,
) -> TrainingData:
    """Open the data and find architecture and preprocessing; without classes unless the images are to be `labelled`.

    A model for images of one channel gets the mean and standard deviation of the data, and so does one whose own are not
    known; others keep those that they were designed or trained with.

    Raises:
        ImageError, CheckpointError, TrainingError: as `train` says.
    """
    images, held_out = _open(data, validation, class_names, task, labelled=labelled)
    names = _named(images, held_out, class_names, source=validation or data) if labelled else []
    if model is not None:
        model = _of_task(model, task)
    loaded = None if init is None else load_initial(init, model, use_ema=use_ema)
    arguments, added = dict(model_args), tap
    if model is None:
        assert loaded is not None
        known = describe_architecture(loaded)
        model, arguments, added = _of_task(known.name, task), known.arguments | arguments, tap or known.tap
    channels = int(arguments.pop("in_chans", images.channels if loaded is None else loaded.input_size[0]))
    if channels not in (1, 3):
        raise TrainingError(f"in_chans must be 1 (grey) or 3 (RGB), got {channels}")
    if loaded is not None and image_size is None and "img_size" not in arguments and _keeps_size(model, arguments, loaded):
        image_size = loaded.input_size[1] if loaded.input_size[1] == loaded.input_size[2] else None
    architecture = choose_architecture(
        model, classes=len(names), channels=channels, image_size=image_size, arguments=arguments, tap=added
    )
    size = None if image_size is None else (image_size, image_size)
    preprocess = _preprocess(architecture, size, images)
    if loaded is not None and init is not None:
        if loaded.input_size[1:] != preprocess.input_size[1:]:
            loaded = load_initial(init, model, preprocess.input_size[1:], use_ema=use_ema)
        preprocess = loaded.preprocess
    colours = None
    if task == SEGMENTATION:
        preprocess = replace(preprocess, crop_pct=1.0)
        colours = class_colours(names).tolist()
    return TrainingData(images, _spread(len(images), limit), held_out, names, colours, architecture, preprocess, loaded)


def _open(
    data: Path, validation: Path | None, class_names: Sequence[str] | None, task: str, *, labelled: bool
) -> tuple[Images, Images | None]:
    """The images to train on and those to validate with."""
    images: Images | None
    held_out: Images | None
    if task == SEGMENTATION:
        names = None if class_names is None else list(class_names)
        images = open_segmented_images(data, "train", class_names=names)
        held_out = open_segmented_images(validation or data, "validation", class_names=names)
        if held_out is None and validation is not None:
            held_out = open_segmented_images(validation, "train", class_names=names)
    else:
        if labelled and is_segmented(data):
            raise TrainingError(
                f"{data}: holds images with masks; train on them with --task {SEGMENTATION} (task={SEGMENTATION!r})"
            )
        images = open_images(data, "train", labelled=labelled)
        if validation is None:
            held_out = open_images(data, "validation", labelled=labelled)
        else:
            held_out = open_evaluation_images(validation, labelled=labelled)
    if images is None:
        raise ImageError(f"{data}: there is nothing to train on, only a part for validation")
    return images, held_out


def _of_task(name: str, task: str) -> str:
    """The architecture for a task: for segmentation the named one with a segmentation head on it.

    Raises:
        TrainingError: a segmentation model is to be trained as a classifier.
    """
    if task == SEGMENTATION:
        return name if name.endswith(SEGFORMER) else name.partition(".")[0] + SEGFORMER
    if name.endswith(SEGFORMER):
        raise TrainingError(f"{name} is a segmentation model; train it with --task {SEGMENTATION}")
    return name


def _keeps_size(model: str, arguments: Mapping[str, Any], loaded: LoadedModel) -> bool:
    """Whether the input size of the checkpoint to start from is that of the model to train.

    A classifier's is not, where the segmentation model is made for a size of its own and takes any.
    """
    if not model.endswith(SEGFORMER) or loaded.name.endswith(SEGFORMER):
        return True
    return takes_image_size(Architecture(model, dict(arguments)).outline())


def _named(images: Images, held_out: Images | None, class_names: Sequence[str] | None, *, source: Path) -> list[str]:
    """Names of the classes, the same in both parts of the data; `source` is where the part for validation comes from."""
    names = list(class_names or images.class_names)
    if len(names) < len(images.class_names):
        raise TrainingError(f"expected names for {len(images.class_names)} classes, got {len(names)}")
    if held_out is not None and len(held_out.class_names) > len(names):
        raise ImageError(f"{source}: validates {len(held_out.class_names)} classes, but {len(names)} are trained")
    if held_out is not None and class_names is None and held_out.class_names != names[: len(held_out.class_names)]:
        strange = sorted(set(held_out.class_names) - set(names)) or held_out.class_names
        lacking = [name for name in names if name not in held_out.class_names]
        if lacking and set(held_out.class_names) < set(names):
            raise ImageError(f"{source}: has no images of {lacking[0]!r}, which is trained; validate with images of all classes")
        raise ImageError(f"{source}: classes differ from those trained (for instance {strange[0]!r}); name them alike")
    return names


def _preprocess(architecture: Architecture, image_size: tuple[int, int] | None, images: Images) -> Preprocess:
    """Of the architecture; mean and standard deviation of the data where none is known."""
    model = architecture.outline()
    preprocess, _ = preprocess_for(model, Metadata(), image_size)
    if preprocess.channels == 3 and getattr(model, "pretrained_cfg", {}).get("mean"):
        return preprocess
    whole = replace(preprocess, crop_pct=1.0)
    mean, std = measure_statistics(images, whole)
    return replace(whole, mean=mean, std=std)


def _spread(count: int, limit: int | None) -> Int[np.ndarray, "images"]:
    """All numbers up to `count`, or `limit` of them, spread evenly."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.arange(limit) * count // limit


_PIXELS_TOGETHER = 4 * 1024 * 1024
"""Of images that are validated at their own size in one batch: their logits take a number for each pixel and class."""


@dataclass(frozen=True)
class Draw:
    """One image at one place in the order of a training."""

    epoch: int
    position: int
    """In the epoch, over all processes."""
    index: int
    """In the data set."""


Target = int | UInt8[Tensor, "height width"]
"""What is known of an image: its class, or that of each pixel."""
Sample = tuple[Float[Tensor, "channels height width"], Target] | ImageError
Batch = tuple[Float[Tensor, "batch channels height width"], Tensor] | ImageError
"""Images and their targets, int64 (batch,) or uint8 (batch, height, width)."""


class AugmentedImages(Dataset[Sample]):
    """Images by `Draw`; the augmentation depends on the draw and the seed alone.

    `augmentation` takes an image and its class, or the mask as an array, to a sample.
    """

    def __init__(self, images: Images, augmentation: Callable[[Image.Image, Any], Sample], seed: int) -> None:
        self.images = images
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, draw: Draw) -> Sample:
        try:
            image, target = read(self.images, draw.index)
        except ImageError as error:
            return error
        seed_processor(derived_seed(self.seed, AUGMENTATION, draw.epoch, draw.position))
        return self.augmentation(image, target)


class StepOrder(Sampler[list[Draw]]):
    """The draws of one process, forward by forward, from step `start` to the end.

    A step takes `accumulation` batches of each process. What a step sees over all processes depends on their number times
    batch size alone. The images of an epoch that do not fill a step are left out of it; each epoch has another order.
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
        """Whole steps that the images fill."""
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
    """The samples as one batch, or the first error among them: raised in the main process, where it can be caught."""
    for sample in samples:
        if isinstance(sample, ImageError):
            return sample
    images, targets = zip(*(sample for sample in samples if not isinstance(sample, ImageError)), strict=True)
    return torch.stack(images), torch.stack([torch.as_tensor(target) for target in targets])


class PlainImages(Dataset[Sample]):
    """Images by number: those with a class preprocessed as for use, those with a mask normalised at their own size."""

    def __init__(self, images: Images, preprocess: Preprocess) -> None:
        self.images = images
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        try:
            image, target = read(self.images, index)
        except ImageError as error:
            return error
        if isinstance(target, int):
            return self.preprocess(image), target
        return self.preprocess.normalize(np.array(image.convert("RGB"))), torch.from_numpy(target)

    def batches(self, size: int, process: int, processes: int) -> list[list[int]]:
        """The numbers of one process in batches of up to `size` images of the same height and width; fewer of large ones."""
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
    """An image, and its class or mask.

    Raises:
        ImageError: one of them cannot be read.
    """
    image = images.image(index)
    return image, int(images.labels[index]) if hasattr(images, "labels") else images.mask(index)


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
