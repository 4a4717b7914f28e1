"""Read, resize and corrupt images in worker processes while the model runs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from torch.utils.data import DataLoader, Dataset

from overfocus.analysis.pixels import InputSize
from overfocus.analysis.variants import CLEAN, Variant
from overfocus.analysis.workers import one_opencv_thread, start_worker, unchanged
from overfocus.corruptions import corrupt, prepare_corruptions
from overfocus.errors import ImageError, RunError
from overfocus.images.reading import MAX_PIXELS
from overfocus.images.sources import ImageSource

if TYPE_CHECKING:
    from overfocus.preprocessing import Preprocess

PACKS_AHEAD = 3
"""Packs of images that are prepared ahead of the model."""
BYTES_AHEAD = 256 * 2**20
"""Memory that these may take together, as pictures of a million pixels would; each worker has one image ahead anyway."""


@dataclass(frozen=True, eq=False)
class Group:
    """One image in all its variants at the models' input sizes, or the reason why it could not be read."""

    image: int
    pictures: dict[InputSize, UInt8[np.ndarray, "variants height width 3"]] = field(default_factory=dict)
    """The same corrupted pictures for each input size; empty where the image could not be read."""
    size: tuple[int, int] | None = None
    """(width, height) of the file."""
    mask: UInt8[np.ndarray, "height width"] | None = None
    """The class of each pixel at the first input size, where it is known."""
    reason: str | None = None


class GroupDataset(Dataset[Group]):
    """Groups of a list of images; each depends on its image, the variants and the seed alone.

    Images are corrupted once, as `preprocess` resizes and crops them, and resized from there to `others` of other models.
    """

    def __init__(
        self,
        sources: Sequence[ImageSource],
        variants: Sequence[Variant],
        preprocess: "Preprocess",
        seed: int = 0,
        max_pixels: int = MAX_PIXELS,
        others: Iterable[InputSize] = (),
    ) -> None:
        self.sources = sources
        self.variants = variants
        self.preprocess = preprocess
        self.seed = seed
        self.max_pixels = max_pixels
        self.sizes = [InputSize.of(preprocess), *others]

    @property
    def group_bytes(self) -> int:
        """Memory that the pictures of one image take."""
        return len(self.variants) * sum(3 * size.height * size.width for size in self.sizes)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Group:
        try:
            image, mask = self.sources[index].read(self.max_pixels), self.sources[index].read_mask()
        except ImageError as error:
            return Group(index, reason=str(error))
        clean = self.preprocess.resize(image)
        pictures = np.stack(
            [clean if variant == CLEAN else corrupt(clean, *variant, seed=self.seed) for variant in self.variants]
        )
        mask = None if mask is None else self.preprocess.resize_mask(mask)
        return Group(index, {size: size.fit(pictures) for size in self.sizes}, image.size, mask)


class GroupLoader:
    """The groups of a dataset from number `start` on, in order, prepared ahead by `workers` processes (in this one if 0).

    An iterator and a context manager; the processes end with the block.

    Raises:
        RunError: a worker process was killed, as the system does when memory runs out.
    """

    def __init__(self, dataset: GroupDataset, start: int, *, workers: int, together: int) -> None:
        indices = range(start, len(dataset))
        workers = min(workers, len(indices))
        prepare_corruptions([name for name, severity in dataset.variants if severity])  # before the workers copy this process
        ahead = min(max(2 * workers, PACKS_AHEAD * together), BYTES_AHEAD // dataset.group_bytes)
        loader = DataLoader(
            dataset,
            sampler=indices,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=max(1, -(-ahead // workers)) if workers else None,
            worker_init_fn=start_worker,
            collate_fn=unchanged,
        )
        with one_opencv_thread():
            self._groups: Iterator[Group] | None = iter(loader)

    def __iter__(self) -> Iterator[Group]:
        return self

    def __next__(self) -> Group:
        if self._groups is None:
            raise StopIteration
        try:
            return next(self._groups)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            reason = str(error).splitlines()[0]
            raise RunError(
                f"a process that prepares images ended ({reason}); try fewer workers or a smaller batch_size"
            ) from error

    def __enter__(self) -> "GroupLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self._groups = None
