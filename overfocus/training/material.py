"""What a training works with: pictures, classes, architecture and preprocessing, found to fit each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from overfocus.checkpoints.build import SEGFORMER
from overfocus.checkpoints.fit import takes_image_size
from overfocus.checkpoints.load import LoadedModel
from overfocus.datasets import Images, is_segmented, open_evaluation_images, open_images, open_segmented_images
from overfocus.datasets.class_colours import class_colours
from overfocus.errors import ImageError, TrainingError
from overfocus.preprocessing import Preprocess
from overfocus.training.architecture import Architecture, choose_architecture
from overfocus.training.augmentation import measure_statistics
from overfocus.training.initialisation import describe_architecture, load_initial
from overfocus.training.settings import SEGMENTATION


@dataclass(frozen=True)
class Material:
    """The data of a training and the model that fits them."""

    images: Images
    chosen: Int[np.ndarray, "images"]
    """Numbers of the pictures to train on."""
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
) -> Material:
    """Open the data and find architecture and preprocessing; without classes unless the pictures are to be `labelled`.

    A model for pictures of one channel gets the mean and standard deviation of the data, and so does one whose own are not
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
    return Material(images, _spread(len(images), limit), held_out, names, colours, architecture, preprocess, loaded)


def _open(
    data: Path, validation: Path | None, class_names: Sequence[str] | None, task: str, *, labelled: bool
) -> tuple[Images, Images | None]:
    """The pictures to train on and those to validate with."""
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
                f"{data}: holds pictures with masks; train on them with --task {SEGMENTATION} (task={SEGMENTATION!r})"
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
            raise ImageError(
                f"{source}: has no pictures of {lacking[0]!r}, which is trained; validate with pictures of all classes"
            )
        raise ImageError(f"{source}: classes differ from those trained (for instance {strange[0]!r}); name them alike")
    return names


def _preprocess(architecture: Architecture, image_size: tuple[int, int] | None, images: Images) -> Preprocess:
    """Of the architecture; mean and standard deviation of the data where none is known."""
    from overfocus.checkpoints.data_config import preprocess_for
    from overfocus.checkpoints.hints import Hints

    model = architecture.outline()
    preprocess, _ = preprocess_for(model, Hints(), image_size)
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
