"""ImageNet's classes by their WordNet identifiers ("n01440764"), as timm ships them."""

from collections.abc import Iterable
from importlib.resources import files


def is_imagenet(labels: Iterable[str]) -> bool:
    """Whether all labels are identifiers of ImageNet's 1000 classes."""
    return set(labels) <= set(_read("imagenet_synsets.txt") or ())


def subset(letter: str) -> list[str] | None:
    """The 200 classes of ImageNet-A or -R; None if timm no longer lists them."""
    return _read(f"imagenet_{letter}_synsets.txt")


def _read(name: str) -> list[str] | None:
    path = files("timm.data") / "_info" / name
    return path.read_text(encoding="utf-8").split() if path.is_file() else None
