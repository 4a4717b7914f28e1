"""Find the pictures that a user points at, with their labels: a folder, files, a text list, or the bundled samples."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from overfocus.errors import ImageError
from overfocus.files import read_text, require_regular_file
from overfocus.images.reading import EXTENSIONS, read_image
from overfocus.settings import MAX_PIXELS
from overfocus.text import storable

LIST_EXTENSIONS = (".txt", ".lst", ".list", ".tsv")
"""Endings of text files that list pictures."""


@dataclass(frozen=True)
class ImageSource:
    """Where one picture is, what it is called in tables, and its label if one is known."""

    path: Path
    name: str
    """Path relative to the folder that was given, with forward slashes; the file's name where a file was given."""
    label: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", storable(self.name))
        if self.label is not None:
            object.__setattr__(self, "label", storable(self.label))

    def read(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The picture as 8-bit RGB.

        Raises:
            ImageError: it cannot be read, or is larger than `max_pixels`.
        """
        return read_image(self.path, max_pixels)

    def read_mask(self) -> UInt8[np.ndarray, "height width"] | None:
        """The class of each pixel; None where they are not known."""
        return None


Source = TypeVar("Source", bound=ImageSource)


def find_images(
    source: str | Path | Sequence[str | Path] | None = None, input_size: tuple[int, int, int] = (3, 224, 224)
) -> list[ImageSource]:
    """List the pictures of `source`, in an order that does not depend on the file system.

    - a folder: all pictures in it and below, hidden files left out; the first sub-folder on the way to a picture is its label,
      as in ImageNet's and torchvision's layout, and a picture in the folder itself has none;
    - a picture file: that one;
    - a text file (.txt, .lst, .list, .tsv): one path a line, relative to the list, with an optional label after a tab or the
      last space; empty lines and lines that start with "#" are left out;
    - several of these in a sequence: one after the other;
    - None: the bundled samples that suit a model with input (channels, height, width) `input_size`.

    The files are not opened here: one that cannot be read is found out when its turn comes.

    Raises:
        ImageError: the source does not exist or holds no pictures.
    """
    if source is None:
        from overfocus.samples import sample_images

        source = sample_images(input_size)
    if isinstance(source, str | Path):
        return _find_in(Path(source))
    found = [image for part in source for image in _find_in(Path(part))]
    if not found:
        raise ImageError("expected at least one picture, got an empty list")
    return found


def _find_in(source: Path) -> list[ImageSource]:
    if source.is_dir():
        found = [_in_folder(path, source) for path in _walk(source)]
        if not found:
            raise ImageError(f"{source}: no pictures in this folder or below it; looked for {', '.join(EXTENSIONS)}")
        return found
    if not source.exists():
        raise ImageError(f"{source}: expected a folder, a picture or a text list of pictures, but there is no such file")
    require_regular_file(source, "an image or a text list of images", ImageError)
    if source.suffix.lower() in LIST_EXTENSIONS:
        return _in_list(source)
    return [ImageSource(source.absolute(), source.name)]


def _in_folder(path: Path, folder: Path) -> ImageSource:
    relative = path.relative_to(folder)
    return ImageSource(path.absolute(), relative.as_posix(), relative.parts[0] if len(relative.parts) > 1 else None)


def _walk(folder: Path) -> Iterator[Path]:
    """Pictures in `folder` and below, folder by folder in the order of their names; links are followed once."""
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS:
                yield Path(parent, name)


def _in_list(path: Path) -> list[ImageSource]:
    lines = read_text(path, "a text file with one image a line", ImageError).splitlines()
    found = [_in_line(line.strip(), path.parent) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise ImageError(f"{path}: expected one picture a line, but the list is empty")
    return found


def _in_line(line: str, folder: Path) -> ImageSource:
    name, _, label = line.partition("\t")
    front, _, last = name.rpartition(" ")
    if not label and Path(front).suffix.lower() in EXTENSIONS and not (folder / name).exists():
        name, label = front.rstrip(), last
    return ImageSource((folder / name).absolute(), Path(name).as_posix(), label.strip() or None)


def spread(sources: Sequence[Source], limit: int | None) -> list[Source]:
    """At most `limit` of the images, spread evenly, so that a list sorted by class gives all classes."""
    if limit is None or limit >= len(sources):
        return list(sources)
    return [sources[number * len(sources) // limit] for number in range(limit)]
