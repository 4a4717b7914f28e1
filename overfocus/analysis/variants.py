"""The variants of an image, the clean one and each corruption at each severity, and how they are packed into batches.

A corrupted picture goes through the model in the same batch as its clean counterpart, so that their attention can be
compared layer by layer and neither has to be kept. Which pictures share a batch depends on the list of images alone, not on
where an interrupted run continues, so that it ends with the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Variant = tuple[str, int]
"""(corruption, severity); ("clean", 0) for the image itself."""

CLEAN: Variant = ("clean", 0)


def list_variants(corruptions: Sequence[str], severities: Sequence[int]) -> list[Variant]:
    """The clean variant, then each corruption at each severity."""
    return [CLEAN, *((corruption, severity) for corruption in corruptions for severity in severities)]


@dataclass(frozen=True)
class Packing:
    """How the variants of consecutive images are packed into batches."""

    images: int
    """Images whose variants go through the model together; they are read, measured and written together."""
    batches: tuple[tuple[int, ...], ...]
    """Variants of each of these images in each batch; every batch begins with 0, the clean one."""


def pack_variants(variants: int, batch_size: int) -> Packing:
    """Pack groups of `variants` pictures into batches of at most `batch_size`.

    Several groups share a batch where they fit; a group that is larger is split evenly and its clean picture repeated. A
    corrupted picture needs its clean one, so that a batch holds at least two.
    """
    if variants <= batch_size:
        return Packing(batch_size // variants, (tuple(range(variants)),))
    room = max(1, batch_size - 1)
    corrupted = variants - 1
    number = -(-corrupted // room)
    ends = [round(corrupted * part / number) for part in range(number + 1)]
    return Packing(1, tuple((0, *range(1 + start, 1 + stop)) for start, stop in pairwise(ends)))
