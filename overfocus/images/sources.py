"""Find the images that a user points at, with their labels, and read every usual kind of file as 8-bit RGB."""

import contextlib
import io
import os
import re
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NoReturn, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from overfocus.errors import ImageError, first_line, is_shortage
from overfocus.files import MOST_BYTES, read_text, require_regular_file
from overfocus.images.tables import read_labels_table
from overfocus.settings import MAX_PIXELS
from overfocus.text import printable, storable

EXTENSIONS: dict[str, str] = {
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".heic": "HEIF",
    ".jfif": "JPEG",
    ".jp2": "JPEG2000",
    ".jpe": "JPEG",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".mpo": "MPO",
    ".pbm": "PPM",
    ".pgm": "PPM",
    ".png": "PNG",
    ".pnm": "PPM",
    ".ppm": "PPM",
    ".tga": "TGA",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
"""File endings that count as images, with Pillow's name of the format; none that Pillow hands to another program (as EPS)."""

_pillow_limit = threading.Lock()


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image as 8-bit RGB, upright.

    The content decides the format, not the file's ending. An EXIF orientation is applied; of an animated or multi-page file
    the first image is taken; transparent pixels are laid over white; 16-bit grey is scaled from its whole range to 8 bits,
    floating point from 0…1; palette, grey, CMYK and YCbCr are converted (colour profiles are not applied).

    Raises:
        ImageError: the file is missing, no image, cut off, or larger than `max_pixels` (told from the header, not loaded).
    """
    require_regular_file(path, "an image", ImageError)
    return decode_image(path, path, max_pixels)


def decode_image(file: str | Path | IO[bytes], path: object, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The same for an open file, which errors call `path`."""
    try:
        with _no_pillow_limit():
            opened = Image.open(file, formats=image_formats())
        with opened as image:
            _check_size(path, image.size, max_pixels)
            load_whole(image, file)
            return to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file; check the path") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: expected an image, but Pillow cannot read its content; convert it to PNG or JPEG") from None
    except Exception as error:  # Pillow's readers raise a dozen classes on damaged files: OSError, SyntaxError, struct.error, …
        if is_shortage(error):
            raise
        reason = "it asks for too much memory" if isinstance(error, MemoryError) else first_line(error)
        raise ImageError(f"{path}: expected a whole image, reading it failed ({reason}); replace or remove it") from error


def _check_size(path: object, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width}×{height} pixels exceed the limit of {max_pixels:,}; shrink it or raise --max-pixels (max_pixels)"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB; `convert` alone would clip 16-bit and float images and show what transparency hides."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # "I" is how older Pillow opens 16-bit PNG
        scaled = (np.clip(np.asarray(image).astype(np.int64), 0, 65535) + 128) // 257
        image = Image.fromarray(scaled.astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("floating-point values expected in 0…1")
        image = Image.fromarray(np.round(values * 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def load_whole(image: Image.Image, file: str | Path | IO[bytes]) -> None:
    """Load an image that Pillow opened from a file, all of it.

    Pillow makes grey or black what a file holds no data for that was cut off and then ended properly or filled with zeros.

    Raises:
        ValueError: there are no data for a part of the image; the words say what is missing.
        Exception: of any class, as Pillow's readers raise on damaged files.
    """
    missing = _missing_strips(image) if image.format == "TIFF" else ""
    if not missing:
        image.load()
        check = _CHECKS.get(image.format or "")
        missing = check(image, file) if check else ""
    if missing:
        raise ValueError(missing)


def _content(file: str | Path | IO[bytes]) -> bytes:
    if isinstance(file, str | Path):
        with Path(file).open("rb") as opened:
            return opened.read(MOST_BYTES)
    file.seek(0)
    return file.read(MOST_BYTES)


def _missing_strips(image: Image.Image) -> str:
    """What a TIFF file lacks: strips and tiles for a part of the area. Pillow leaves it black."""
    tiles = [entry[1] for entry in getattr(image, "tile", [])]
    covered = sum((right - left) * (lower - upper) for left, upper, right, lower in filter(None, tiles))
    return "it has no data for a part of its area" if tiles and covered < image.width * image.height else ""


def _missing_rows(image: Image.Image, file: str | Path | IO[bytes]) -> str:
    """What a PNG file lacks: rows of pixels after the end of its compressed data. Pillow leaves them black."""
    below = image.crop((0, image.height - 1, image.width, image.height))
    if below.getbbox() is not None and not image.info.get("interlace"):
        return ""
    content = _content(file)
    width, height = (int.from_bytes(content[place : place + 4]) for place in (16, 20))
    bits = content[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[content[25]]
    passes = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))  # Adam7
    sizes = [
        (len(range(x, width, dx)), len(range(y, height, dy))) for x, dx, y, dy in (passes if content[28] else [(0, 1, 0, 1)])
    ]
    expected = sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns)
    there, place, inflate = 0, 8, zlib.decompressobj()
    while place + 8 <= len(content) and there < expected and not inflate.eof:
        length, kind = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        packed = content[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        while packed and there < expected:
            there += len(inflate.decompress(packed, 2**20))
            packed = inflate.unconsumed_tail
        place += 12 + length
    return f"its data end after {there:,} of {expected:,} bytes of pixels" if there < expected else ""


_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Of a JPEG file, but those that stand among the data of a scan."""
_FILLER = bytes(range(1, 255)) * 8


def _missing_scans(image: Image.Image, file: str | Path | IO[bytes]) -> str:
    """What a JPEG file lacks: data of its scans, or whole scans of a progressive one. libjpeg makes them up.

    Where a single scan ended too early, the last pixels are grey; of several, the last one only refines them. Then the file is
    decoded once more with other data behind its own: these change nothing unless they are needed.
    """
    content, place, scans, progressive = _content(file), 2, 0, False
    components: bytes = b""
    precision: dict[tuple[int, int], int] = {}
    while (found := _MARKER.search(content, place)) and (marker := found[0][1]) != 0xD9:
        place = found.end() + int.from_bytes(content[found.end() : found.end() + 2])
        about = content[found.end() + 2 : place]
        if marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
            progressive, components = marker in (0xC2, 0xCA), about[6::3]
        elif marker == 0xDA and about and len(about) >= 4 + 2 * about[0]:
            scans += 1
            first, last, low = (about[-3], about[-2], about[-1] & 15) if progressive else (0, 63, 0)
            precision |= {(name, number): low for name in about[1:-3:2] for number in range(first, min(last, 63) + 1)}
    if found is None:
        return ""  # what has no end is refused before
    if any(precision.get((name, number), 1) for name in components for number in range(64)):
        return "the last scans of its data are missing"
    corner = np.asarray(image.crop((image.width - 1, image.height - 1, image.width, image.height))).astype(int)
    if scans == 1 and (np.abs(corner - 128) > 1).any():
        return ""
    other = io.BytesIO(content[: found.start()] + _FILLER + content[found.start() :])
    with _no_pillow_limit():
        opened = Image.open(other, formats=["JPEG"])
    with opened as again:
        return "" if again.tobytes() == image.tobytes() else "its data end too early"


def _zeros_at_end(_image: Image.Image, file: str | Path | IO[bytes]) -> str:
    """What a WebP or AVIF file lacks: the end of its compressed data, as where a download reserved the room and stopped."""
    content = _content(file)
    riff, place = content.startswith(b"RIFF"), 12 if content.startswith(b"RIFF") else 0
    while place + 8 <= len(content):
        if riff:
            kind, length = content[place : place + 4], 8 + int.from_bytes(content[place + 4 : place + 8], "little")
        else:
            kind, length = content[place + 4 : place + 8], int.from_bytes(content[place : place + 4])
        end = min(place + length, len(content)) if length >= 8 else len(content)
        if kind in (b"VP8 ", b"VP8L", b"mdat") and end - place > 8 + _ZEROS and not any(content[end - _ZEROS : end]):
            return f"the last {_ZEROS} bytes of its data are zeros"
        place = end + (end % 2 if riff else 0)
    return ""


_ZEROS = 64
_CHECKS = {
    "JPEG": _missing_scans,
    "MPO": _missing_scans,
    "PNG": _missing_rows,
    "WEBP": _zeros_at_end,
    "AVIF": _zeros_at_end,
}
"""By format of Pillow: what a file lacks for which Pillow invents pixels, in words; empty where it lacks nothing."""


def image_formats() -> list[str]:
    """The formats of `EXTENSIONS` that the installed Pillow and its plugins offer."""
    Image.init()
    return sorted(set(EXTENSIONS.values()) & set(Image.OPEN))


@contextlib.contextmanager
def _no_pillow_limit() -> Iterator[None]:
    """Lift Pillow's own limit, a global, while a header is read; `max_pixels` takes its place."""
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


LIST_EXTENSIONS = (".txt", ".lst", ".list", ".tsv")
"""Endings of text files that list images."""


@dataclass(frozen=True)
class ImageSource:
    """Where one image is, what it is called in tables, and its label if one is known."""

    path: Path | None
    """None for an image that lies in no file of its own."""
    name: str
    """Path relative to the folder that was given, with forward slashes; the file's name where a file was given."""
    label: str | None = None
    sha256: str | None = None
    """Of the pixels of an image in memory."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", storable(self.name))
        if self.label is not None:
            object.__setattr__(self, "label", storable(self.label))

    def read(self, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The image as 8-bit RGB.

        Raises:
            ImageError: it cannot be read, or is larger than `max_pixels`.
        """
        assert self.path is not None  # others say themselves how they are read
        return read_image(self.path, max_pixels)

    def read_mask(self) -> UInt8[np.ndarray, "height width"] | None:
        """The class of each pixel; None where they are not known."""
        return None


def find_images(
    source: str | Path | Sequence[str | Path] | None = None, input_size: tuple[int, int, int] = (3, 224, 224)
) -> list[ImageSource]:
    """List the images of `source`, in an order that does not depend on the file system.

    - a folder: all images in it and below, hidden files left out; the first sub-folder on the way to an image is its label,
      as in ImageNet's and torchvision's layout. Images in the folder itself have none, or that of a CSV file which lies beside
      them and names them;
    - an image file: that one;
    - a text file (.txt, .lst, .list, .tsv): one path a line, relative to the list, with an optional label after a tab or the
      last space; empty lines and lines that start with "#" are left out;
    - a CSV file: the images that it names, with their labels (`overfocus.images.tables` says how);
    - several of these in a sequence: one after the other;
    - None: the bundled samples that suit a model with input (channels, height, width) `input_size`.

    The files are not opened here: one that cannot be read is found out when its turn comes.

    Raises:
        ImageError: the source does not exist, holds no images, or is of another kind.
    """
    if source is None:
        from overfocus.samples import sample_images

        source = sample_images(input_size)
    if isinstance(source, str | Path):
        return _find_in(Path(source))
    found = [image for part in source for image in _find_in(Path(part))]
    if not found:
        raise ImageError("expected at least one image, got an empty list")
    return found


def _find_in(source: Path) -> list[ImageSource]:
    if source.is_dir():
        found = [_in_folder(path, source) for path in walk(source)]
        if not found:
            raise ImageError(
                f"{source}: no images in this folder or below it; expected files that end in {', '.join(EXTENSIONS)}"
            )
        if all(image.label is None for image in found):
            return _with_labels(source.absolute(), found)
        return found
    if not source.exists():
        raise ImageError(f"{source}: expected a folder, an image or a text list of images, but there is no such file")
    require_regular_file(source, "an image or a text list of images", ImageError)
    if source.suffix.lower() == ".csv":
        return _in_table(source)
    if source.suffix.lower() in LIST_EXTENSIONS:
        return _in_list(source)
    return [ImageSource(source.absolute(), source.name)]


def _with_labels(folder: Path, images: list[ImageSource]) -> list[ImageSource]:
    """The images of a folder without class folders, with the labels of the CSV file in it that names them, if there is one.

    Raises:
        ImageError: several do, or one that does leaves images out or cannot be read.
    """
    paths = [image.path for image in images if image.path is not None]
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".csv" and not path.name.startswith(".")]
    naming = [(path, rows) for path in tables if (rows := read_labels_table(path, lambda: paths, strict=False)) is not None]
    if len(naming) > 1:
        names = " and ".join(printable(path.name) for path, _ in naming[:2])
        raise ImageError(f"{printable(folder)}: {names} both name the images; give the one with the labels in the folder's place")
    if not naming:
        return images
    path, rows = naming[0]
    labels = {row.path: row.label for row in rows}
    if left_out := [image.name for image in images if image.path not in labels]:
        raise ImageError(
            f"{printable(folder)}: {len(left_out)} of {len(images)} images are not in {printable(path.name)} (first: "
            f"{printable(left_out[0])}); add them, or give {printable(path.name)} itself to take those that it names"
        )
    return [replace(image, label=labels[image.path]) for image in images if image.path is not None]


def _in_table(path: Path) -> list[ImageSource]:
    root = path.absolute().parent
    rows = read_labels_table(path, lambda: walk(root)) or []
    return [ImageSource(row.path, row.name, row.label) for row in rows]


def _in_folder(path: Path, folder: Path) -> ImageSource:
    relative = path.relative_to(folder)
    return ImageSource(path.absolute(), relative.as_posix(), relative.parts[0] if len(relative.parts) > 1 else None)


def walk(folder: Path) -> Iterator[Path]:
    """Images in `folder` and below, folder by folder in the order of their names; links are followed once.

    Raises:
        ImageError: a folder cannot be listed, so that it is not known which images are missing.
    """
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=_not_listed, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS:
                yield Path(parent, name)


def _not_listed(error: OSError) -> NoReturn:
    raise ImageError(
        f"{printable(error.filename)}: the images in this folder cannot be listed ({error.strerror}); make it readable, or leave "
        "it out"
    ) from None


def _in_list(path: Path) -> list[ImageSource]:
    lines = read_text(path, "a text file with one image per line", ImageError).splitlines()
    found = [_in_line(line.strip(), path.parent) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise ImageError(f"{path}: expected one image per line, but the list is empty")
    return found


def _in_line(line: str, folder: Path) -> ImageSource:
    name, _, label = line.partition("\t")
    front, _, last = name.rpartition(" ")
    if not label and Path(front).suffix.lower() in EXTENSIONS and not (folder / name).exists():
        name, label = front.rstrip(), last
    return ImageSource((folder / name).absolute(), Path(name).as_posix(), label.strip() or None)


Source = TypeVar("Source", bound=ImageSource)


def spread(sources: Sequence[Source], limit: int | None) -> list[Source]:
    """At most `limit` of the images, spread evenly, so that a list sorted by class gives all classes."""
    if limit is None or limit >= len(sources):
        return list(sources)
    return [sources[number * len(sources) // limit] for number in range(limit)]
