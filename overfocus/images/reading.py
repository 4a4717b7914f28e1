"""Read one picture file of any usual kind as 8-bit RGB, or say in one line why it cannot be read."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from overfocus.errors import ImageError
from overfocus.files import require_regular_file
from overfocus.settings import MAX_PIXELS

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
"""File endings that count as pictures, with Pillow's name of the format; none that Pillow hands to another program (as EPS)."""

_pillow_limit = threading.Lock()


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as 8-bit RGB, upright.

    The content decides the format, not the file's ending. An EXIF orientation is applied; of an animated or multi-page file
    the first picture is taken; transparent pixels are laid over white; 16-bit grey is scaled from its whole range to 8 bits,
    floating point from 0…1; palette, grey, CMYK and YCbCr are converted (colour profiles are not applied).

    Raises:
        ImageError: the file is missing, no picture, cut off, or larger than `max_pixels` (told from the header, not loaded).
    """
    require_regular_file(path, "an image", ImageError)
    try:
        with _no_pillow_limit():
            opened = Image.open(path, formats=_formats())
        with opened as image:
            _check_size(path, image.size, max_pixels)
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path}: there is no such file; check the path") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{path}: expected a picture, but its content is none that Pillow reads; convert it to PNG or JPEG"
        ) from None
    except Exception as error:  # Pillow's readers raise a dozen classes on damaged files: OSError, SyntaxError, struct.error, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: expected a whole picture, reading it failed ({reason}); replace or remove it") from error


def _check_size(path: str | Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width}×{height} pixels exceed the limit of {max_pixels:,}; shrink it or raise --max-pixels (max_pixels)"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB; `convert` alone would clip 16-bit and float pictures and show what transparency hides."""
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


def _formats() -> list[str]:
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
