"""Images in memory: PIL images, arrays and tensors, torch data sets and loaders of (image, label), data sets of Hugging Face.

An image is a PIL image, an array (height, width) or (height, width, 1, 3 or 4), or a tensor (height, width) or (1, 3 or 4,
height, width), of uint8 from 0 to 255 or floats from 0 to 1. Others are refused: what is normalised, or in another range, would
give other images than the user means. A label is a number or a text; a data set that names its classes (`classes`, as
torchvision's, or the `features` of Hugging Face) gives their names.

Every image is read once before a run, for its label and the SHA-256 of its pixels, which run.json keeps; one that is something
else when it is read again, as random augmentation makes it, ends the run.
"""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageFile
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torch.utils.data.distributed import DistributedSampler
from torch.utils.data.sampler import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from overfocus.errors import ChangedImageError, ImageError
from overfocus.images.sources import ImageSource, find_images, load_whole, to_rgb
from overfocus.settings import MAX_PIXELS
from overfocus.text import one_line

MOST_IMAGES = 10**8
"""A data set that says it has more is refused."""
_KEYS = ("image", "img", "pixel_values", "pixels", "jpg", "png"), ("label", "labels", "fine_label", "class", "target", "cls")
_LARGEST_CLASS = 10**6
_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)

Source = TypeVar("Source", bound=ImageSource)


@dataclass(frozen=True, kw_only=True)
class LiveImage(ImageSource):
    """One image of a sequence or data set in memory."""

    items: Any = field(repr=False, compare=False)
    """What it is taken from by `index`."""
    index: int
    classes: Sequence[str] | None = field(default=None, repr=False)
    """Names of the classes that labels number, if the data set has them."""
    number: int | None = None
    """Of its class, where its label is a number."""

    def read(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The image as 8-bit RGB.

        Raises:
            ImageError: it cannot be read, is no image, or is larger than `max_pixels`.
            ChangedImageError: it is another one than when it was read first.
        """
        image = as_image(_parts(_taken(self), self.name)[0], self.name)
        if image.width * image.height > max_pixels:
            raise ImageError(
                f"{self.name}: {image.width}×{image.height} pixels exceed the limit of {max_pixels:,}; "
                "shrink it or raise max_pixels"
            )
        if self.sha256 is not None and _hash(image) != self.sha256:
            raise ChangedImageError(
                f"{self.name}: expected the same image whenever it is read, got another one than before; turn random "
                "augmentation off"
            )
        return image


def image_sources(source: Any, input_size: tuple[int, int, int] = (3, 224, 224)) -> list[ImageSource]:
    """The images that a user gives, not read yet: what `find_images` takes, or images in memory, a data set or a loader of them.

    In a sequence, paths and images in memory may stand side by side.

    Raises:
        ImageError: it is nothing of these, holds no images, has no length, or no fixed order.
    """
    if source is None or isinstance(source, str | Path):
        return find_images(source, input_size)
    if isinstance(source, Image.Image | np.ndarray | torch.Tensor):
        source = list(source) if not isinstance(source, Image.Image) and source.ndim == 4 else [source]
    if isinstance(source, DataLoader):
        dataset, order = source.dataset, _order(source)
        return _of_dataset(dataset, order)
    if isinstance(source, Dataset) or (hasattr(source, "__getitem__") and not isinstance(source, list | tuple | Mapping | str)):
        return _of_dataset(source, None)
    if not isinstance(source, list | tuple):
        raise ImageError(
            "expected a path, a list of paths, PIL images or arrays, a torch Dataset or a DataLoader of (image, label) as "
            f"images, got {type(source).__name__}"
        )
    found: list[ImageSource] = []
    for number, part in enumerate(source):
        if isinstance(part, str | Path):
            found += find_images(part)
        else:
            found.append(LiveImage(path=None, name=f"image-{number:05d}", items=source, index=number))
    if not found:
        raise ImageError("expected at least one image, got an empty list")
    return found


def _of_dataset(dataset: Any, order: Sequence[int] | None) -> list[ImageSource]:
    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ImageError(
            f"expected a data set with a length and items by number, so that a run can be continued, got {kind}; "
            "collect what you need from a stream in a list: list(itertools.islice(stream, 1000))"
        )
    try:
        count = len(dataset)
    except Exception as error:  # the data set is the user's and may raise anything
        reason = one_line(error, 200) or type(error).__name__
        raise ImageError(f"{kind}: the data set does not say how many images it has ({reason})") from error
    if not 0 < count <= MOST_IMAGES:
        raise ImageError(f"expected a data set of 1 to {MOST_IMAGES:,} images, got {kind} of {count}")
    if normalising := _normalising(dataset):
        raise ImageError(
            f"expected images of {kind} before they are normalised, as pixels are corrupted and normalised here, got a transform "
            f"with {normalising}; leave it out"
        )
    classes = _class_names(dataset)
    return [
        LiveImage(path=None, name=f"{kind}-{index:05d}", items=dataset, index=index, classes=classes)
        for index in (range(count) if order is None else order)
    ]


def _order(loader: "DataLoader[Any]") -> list[int] | None:
    """Numbers of the items that a loader gives, in its order; None for all of them from the first.

    Raises:
        ImageError: the order is random, another each time, or that of one of several processes.
    """
    dataset, sampler = loader.dataset, loader.sampler
    if isinstance(dataset, IterableDataset):
        return None
    if isinstance(sampler, DistributedSampler):
        raise ImageError(
            "expected a loader of all images, got one with a DistributedSampler; processes that torchrun starts share the images "
            "here by themselves, so give the data set"
        )
    batches = loader.batch_sampler if loader.batch_sampler is not None else ([index] for index in sampler)
    if isinstance(sampler, _RANDOM) or isinstance(getattr(batches, "sampler", None), _RANDOM):
        raise ImageError(
            "expected a loader with a fixed order of images, got one that shuffles; give shuffle=False or the data set"
        )
    orders = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):
            batches = loader.batch_sampler if loader.batch_sampler is not None else ([index] for index in sampler)
            orders.append(list(islice(chain.from_iterable(batches), MOST_IMAGES + 1)))
    first, again = orders
    if first != again or not all(isinstance(index, int) for index in first):
        raise ImageError(
            "expected a loader with a fixed order of images by number, got another order the second time; give its data set"
        )
    if len(first) > MOST_IMAGES:
        raise ImageError(f"expected a loader of at most {MOST_IMAGES:,} images, got more")
    if len(set(first)) != len(first):
        raise ImageError("expected a loader that gives each image once, got some several times; give the data set")
    from torch.utils.data import default_collate

    own = loader.collate_fn not in (default_collate, torch.utils.data.default_convert)
    if own and loader.collate_fn is not None:
        warnings.warn("the loader's collate_fn is not applied: images are taken from its data set one by one", stacklevel=5)
    return first


def identify(sources: Sequence[Source]) -> list[Source]:
    """Images with what is known only when one in memory is read: its label and the SHA-256 of its pixels.

    An image that cannot be read stays without them, and is found out again when its turn comes.

    Raises:
        ImageError: one is normalised, in another range, not an image, or its label is not a label.
    """
    return [_identified(source) if isinstance(source, LiveImage) else source for source in sources]


def _identified(source: Any) -> Any:
    try:
        taken = _taken(source)
    except ImageError:
        return source
    item, label = _parts(taken, source.name)
    name, number = _label(label, source)
    try:
        return replace(source, label=name, number=number, sha256=_hash(as_image(item, source.name)))
    except ImageError:
        if isinstance(item, Image.Image) and item.mode != "F":  # its file is damaged
            return source
        raise


def numbering(sources: Sequence[ImageSource]) -> list[str] | None:
    """Names of the classes in the data set's own order, where it numbers them: "0", "1", … where it does not name them.

    None where labels are texts, or the images come from several places.
    """
    labelled = [source for source in sources if source.label is not None]
    numbers = [source for source in labelled if isinstance(source, LiveImage) and source.number is not None]
    if not labelled or len(numbers) != len(labelled) or any(source.classes is not numbers[0].classes for source in numbers):
        return None
    return list(numbers[0].classes or map(str, range(max(source.number or 0 for source in numbers) + 1)))


def as_image(item: Any, name: str = "an image") -> Image.Image:
    """An image in memory as 8-bit RGB.

    Raises:
        ImageError: it is not an image, or its values are in another range.
    """
    if isinstance(item, Image.Image) and item.mode == "F":
        item = np.asarray(item)
    if isinstance(item, Image.Image):
        try:
            if isinstance(item, ImageFile.ImageFile) and item.fp is not None:  # Pillow reads the file only now
                path = Path(os.fsdecode(item.filename or "."))
                load_whole(item, path if path.is_file() else item.fp)
            return to_rgb(item)
        except Exception as error:  # as Pillow's readers raise
            raise ImageError(f"{name}: cannot be read ({one_line(error, 200) or type(error).__name__})") from error
    values: np.ndarray[Any, Any]
    if isinstance(item, torch.Tensor):
        try:
            values = (item.detach().float() if item.is_floating_point() else item.detach()).cpu().numpy()
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise ImageError(f"{name}: expected a dense tensor with values, got another ({one_line(error, 100)})") from None
        if values.ndim == 3:
            if values.shape[0] not in (1, 3, 4):
                raise ImageError(f"{name}: expected a tensor (1, 3 or 4, height, width) or (height, width), got {values.shape}")
            values = values.transpose(1, 2, 0)
    elif isinstance(item, np.ndarray):
        values = item
    else:
        raise ImageError(f"{name}: expected a PIL image, an array or a tensor, got {type(item).__name__}")
    if values.ndim not in (2, 3) or 0 in values.shape or values.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ImageError(
            f"{name}: expected an array (height, width) or (height, width, 1, 3 or 4), or a tensor with the channels in front, "
            f"got {values.shape}"
        )
    if values.dtype.kind == "f":
        low, high = (float(values.min()), float(values.max())) if bool(np.isfinite(values).all()) else (np.nan, np.nan)
        if not (low >= 0 and high <= 1):
            what = "values that are not finite" if np.isnan(low) else f"{low:.3g} … {high:.3g}"
            raise ImageError(
                f"{name}: expected floats from 0 to 1 or uint8 from 0 to 255, got {what}; give images before they are "
                "normalised, as pixels are corrupted and normalised here"
            )
        values = np.round(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise ImageError(f"{name}: expected uint8 or floats, got {values.dtype}; convert it to uint8 from 0 to 255")
    return to_rgb(Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2:] == (1,) else values)))


def _taken(source: LiveImage) -> Any:
    """The item as the data set gives it.

    Raises:
        ImageError: the data set cannot give it.
    """
    try:
        return source.items[source.index]
    except Exception as error:  # the data set is the user's and may raise anything
        reason = one_line(error, 200) or type(error).__name__
        raise ImageError(f"{source.name}: the data set cannot give it ({type(error).__name__}: {reason})") from error


def _parts(item: Any, name: str) -> tuple[Any, Any]:
    """The image and the label of an item; the label None where it has none."""
    if isinstance(item, Mapping):
        image, label = (next((item[key] for key in keys if key in item), None) for keys in _KEYS)
        if image is None:
            raise ImageError(f"{name}: expected an item with the key image, got {', '.join(map(str, list(item)[:6]))}")
        return image, label
    if isinstance(item, tuple | list) and item:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _label(label: Any, source: LiveImage) -> tuple[str | None, int | None]:
    """A label as text, and as a number where it is one."""
    if isinstance(label, torch.Tensor | np.ndarray | np.generic) and tuple(label.shape) in ((), (1,)):
        label = label.item()
    if label is None or isinstance(label, str):
        return label or None, None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool):
        label = int(label)
    if not isinstance(label, int) or abs(label) > _LARGEST_CLASS:
        shape = f" of shape {tuple(label.shape)}" if hasattr(label, "shape") else ""
        raise ImageError(
            f"{source.name}: expected a number or a text as the label, got {type(label).__name__}{shape}; "
            "give (image, label) with the number of the class"
        )
    if label < 0:
        return None, None  # how data sets mark images without a label
    if source.classes is not None and label < len(source.classes):
        return source.classes[label], label
    return str(label), label


def _class_names(dataset: Any) -> list[str] | None:
    """Names of a data set's classes in the order of their numbers; those of several that are alike get their number."""
    inner = dataset
    while isinstance(inner, Subset):
        inner = inner.dataset
    names = getattr(inner, "classes", None)
    features = getattr(inner, "features", None)
    if names is None and isinstance(features, Mapping):
        names = next((getattr(features[key], "names", None) for key in _KEYS[1] if key in features), None)
    if not isinstance(names, list | tuple) or not names:
        return None
    texts = [", ".join(map(str, name)) if isinstance(name, list | tuple) else str(name) for name in names]
    if len(set(texts)) < len(texts):
        texts = [f"{text} ({number})" if texts.count(text) > 1 else text for number, text in enumerate(texts)]
    return texts


def _normalising(dataset: Any) -> str:
    """Name of a normalising step among a data set's transforms; empty where there is none."""
    waiting, seen = [dataset], 0
    while waiting and seen < 1000:
        part, seen = waiting.pop(), seen + 1
        if part is not dataset and "normalize" in type(part).__name__.lower():
            return type(part).__name__
        for name in ("dataset", "datasets", "transform", "transforms"):
            inner = getattr(part, name, None)
            waiting += inner if isinstance(inner, list | tuple) else [] if inner is None else [inner]
    return ""


def _hash(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
