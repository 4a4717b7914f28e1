"""The variants of an image: the image itself, each corruption at each severity, and the control, another image."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

CLEAN = "clean"
"""Stands where a corruption would for the image as it is; severity 0."""
OTHER_IMAGE = "other image"
"""Stands where a corruption would for the control: the clean image beside another clean image of the run; severity 0."""
RESERVED = (CLEAN, OTHER_IMAGE)
"""Names that no corruption may have."""


class Variant(NamedTuple):
    """One version of every image; compares equal to the tuple (corruption, severity)."""

    corruption: str
    severity: int

    @property
    def corrupted(self) -> bool:
        """Whether something was done to the image: neither the clean image nor the control."""
        return self.corruption not in RESERVED

    @property
    def name(self) -> str:
        """The corruption with spaces: "gaussian noise"."""
        return self.corruption.replace("_", " ")

    @property
    def label(self) -> str:
        """In words: "clean" or "gaussian noise 3"."""
        return f"{self.name} {self.severity}" if self.severity else self.name

    @property
    def words(self) -> str:
        """For sentences: "gaussian noise at severity 3"."""
        return f"{self.name} at severity {self.severity}" if self.severity else {CLEAN: "clean images"}.get(self.name, self.name)


CLEAN_VARIANT = Variant(CLEAN, 0)
CONTROL_VARIANT = Variant(OTHER_IMAGE, 0)


def list_variants(corruptions: Sequence[str], severities: Sequence[int]) -> list[Variant]:
    """The clean variant, then each corruption at each severity.

    >>> [variant.label for variant in list_variants(["fog"], [1, 5])]
    ['clean', 'fog 1', 'fog 5']
    """
    return [CLEAN_VARIANT, *(Variant(corruption, severity) for corruption in corruptions for severity in severities)]


def sort_variants(variants: Iterable[tuple[str, int]], corruptions: Sequence[str] = ()) -> list[Variant]:
    """The distinct variants, clean first, corruptions in the order of `corruptions`, severities rising, the control last."""
    position = {name: number for number, name in enumerate(corruptions)}
    distinct = {Variant(str(corruption), int(severity)) for corruption, severity in variants}

    def place(variant: Variant) -> tuple[int, int, Variant]:
        rank = {CLEAN: 0, OTHER_IMAGE: 2}.get(variant.corruption, 1)
        return rank, position.get(variant.corruption, len(position)), variant

    return sorted(distinct, key=place)


def middle_severity(severities: Sequence[int]) -> int:
    """The severity to show first: the middle one, the higher of two."""
    return sorted(severities)[len(severities) // 2]
