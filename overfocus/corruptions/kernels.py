"""Inner loops of the corruptions as machine code, each to the bit or to a rounding what scipy or `imagecorruptions` computes.

Imported late: numba takes a second to import and as long to compile each loop, once, as the machine code is kept on disk.
"""

import contextlib
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from numba import njit
from scipy import fft

Array = np.ndarray[Any, Any]
ROUNDING = 1e-3
"""Grey levels that are added to sums of single precision before they are cut off to whole numbers."""


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Machine code, kept on disk where numba finds a writable folder; threads may run it side by side."""
    loop: Any = njit(nogil=True)(function)
    with contextlib.suppress(RuntimeError):
        loop.enable_caching()
    return loop  # type: ignore[no-any-return]


@_compiled
def _blur_lines(padded: Array, weights: Array, step: int, out: Array) -> None:
    """Weighted sums of entries `step` apart in each row, added from the outside to the middle as scipy adds them."""
    reach = len(weights) // 2
    for row in range(out.shape[0]):
        for place in range(out.shape[1]):
            out[row, place] = padded[row, place + reach * step] * weights[reach]
        for offset in range(reach):
            weight, far = weights[offset], (2 * reach - offset) * step
            for place in range(out.shape[1]):
                out[row, place] += (padded[row, place + offset * step] + padded[row, place + far]) * weight


@_compiled
def _blur_rows(padded: Array, weights: Array, out: Array) -> None:
    """The same across rows."""
    reach = len(weights) // 2
    for row in range(out.shape[0]):
        for place in range(out.shape[1]):
            out[row, place] = padded[row + reach, place] * weights[reach]
        for offset in range(reach):
            weight, far = weights[offset], row + 2 * reach - offset
            for place in range(out.shape[1]):
                out[row, place] += (padded[row + offset, place] + padded[far, place]) * weight


def gaussian_blur(image: Array, sigma: float) -> Array:
    """A Gaussian over rows and columns, cut at 4σ, the border repeated: `skimage.filters.gaussian` to the bit, as float64.

    `image` has shape (height, width) or (height, width, channels).
    """
    reach = int(4 * sigma + 0.5)
    image = np.asarray(image, np.float64)
    if sigma < 1e-15 or reach == 0:
        return image.copy()
    weights = _gaussian_weights(sigma, reach)
    height, width, channels = (*image.shape, 1)[:3]
    flat = image.reshape(height, width * channels)
    down = np.empty_like(flat)
    _blur_rows(np.pad(flat, ((reach, reach), (0, 0)), mode="edge"), weights, down)
    across = np.empty_like(flat)
    padded = np.pad(down.reshape(height, width, channels), ((0, 0), (reach, reach), (0, 0)), mode="edge")
    _blur_lines(padded.reshape(height, -1), weights, channels, across)
    return across.reshape(image.shape)


def blur_pixels(image: UInt8[np.ndarray, "height width channels"], sigma: float) -> Array:
    """The same of grey levels in single precision, within a rounding; grey levels too, not yet whole numbers.

    A thousandth of a level is added, so that cutting off to whole numbers does not lose a level to the rounding.
    """
    reach = int(4 * sigma + 0.5)
    if sigma < 1e-15 or reach == 0:
        return image.astype(np.float32)
    weights = _gaussian_weights(sigma, reach)
    return cv2.sepFilter2D(image, cv2.CV_32F, weights, weights, delta=ROUNDING, borderType=cv2.BORDER_REPLICATE)


@cache
def _gaussian_weights(sigma: float, reach: int) -> Array:
    weights: Array = np.exp(-0.5 / (sigma * sigma) * np.arange(-reach, reach + 1) ** 2)
    weights /= weights.sum()
    return weights


@lru_cache(maxsize=16)
def _transfer(side: int, sigma: float) -> Array:
    """What the Gaussian of `smooth` leaves of each wave of the cosine transform of a line of `side` entries."""
    reach = int(3 * sigma + 0.5)
    waves = np.cos(np.pi / side * np.outer(np.arange(side), np.arange(-reach, reach + 1)))
    kept: Array = waves @ _gaussian_weights(sigma, reach)
    return kept.astype(np.float32)


def smooth(values: Array, sigma: float) -> Array:
    """A Gaussian cut at 3σ, the border reflected, on (height, width); fast for a σ near the size of the image, too.

    A line with its reflection is periodic, so that the cosine transform makes a product of the filter: a wide one, in single
    precision.
    """
    reach = int(3 * sigma + 0.5)
    if reach == 0:
        return values
    if reach < 16 and reach < min(values.shape):
        weights = _gaussian_weights(sigma, reach)
        return cv2.sepFilter2D(values, cv2.CV_64F, weights, weights, borderType=cv2.BORDER_REFLECT)
    height, width = values.shape
    waves = fft.dctn(values.astype(np.float32))
    waves *= np.outer(_transfer(height, sigma), _transfer(width, sigma))
    result: Array = fft.idctn(waves, overwrite_x=True)
    return result


@_compiled
def _scatter(image: Array, offsets: Array, reach: int, rounds: int) -> None:
    height, width = image.shape
    place = 0
    for _ in range(rounds):
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                image[row, column] = image[row + offsets[place, 1], column + offsets[place, 0]]
                place += 1


def scatter(image: UInt8[np.ndarray, "height width 3"], offsets: Array, reach: int, rounds: int) -> Array:
    """Glass: from the lower right to the upper left, each pixel becomes one within reach, in the image as it is by then.

    The authors meant to swap two pixels, but their arrays are views, so that the pixel is copied; kept, as it is the benchmark.
    """
    whole = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    _scatter(whole.view(np.uint32)[..., 0], offsets, reach, rounds)
    return cv2.cvtColor(whole, cv2.COLOR_RGBA2RGB)


@_compiled
def _add_shifted(padded: Array, shifts: Array, weights: Array, step: int, out: Array) -> None:
    for row in range(out.shape[0]):
        sums = out[row]
        for tap in range(len(weights)):
            weight, start = weights[tap], shifts[tap, 1] * step
            other = padded[row + shifts[tap, 0], start : start + len(sums)]
            for place in range(len(sums)):
                sums[place] += weight * other[place]


def add_shifted(image: Array, shifts: Array, weights: Array) -> Array:
    """Sum of copies of (height, width, channels), each moved by (rows, columns) and weighted, the border repeated.

    In double precision; of grey levels (uint8) in single precision, with a thousandth of a level added as in `blur_pixels`.
    """
    height, width, channels = image.shape
    first, last = shifts.min(axis=0).clip(max=0), shifts.max(axis=0).clip(min=0)
    whole = image.dtype == np.uint8
    kind = np.float32 if whole else np.float64
    bordered = cv2.copyMakeBorder(image, int(last[0]), int(-first[0]), int(last[1]), int(-first[1]), cv2.BORDER_REPLICATE)
    padded: Array = bordered.astype(kind, copy=False).reshape(bordered.shape[0], -1)
    out = np.full((height, width * channels), ROUNDING if whole else 0, kind)
    _add_shifted(padded, last - shifts, weights.astype(kind), channels, out)
    return out.reshape(image.shape)


@_compiled
def snow_over(image: Array, grey: Array, flakes: Array, kept: float) -> Array:
    """Grey levels of the image, bleached but for the share `kept`, under the flakes and the flakes turned round.

    image (height, width, channels) and grey (height, width) are in 0 … 1, single precision; flakes no larger than the image.
    """
    height, width, channels = image.shape
    rows, columns = flakes.shape
    out = np.empty(image.shape, np.float64)
    one, share, rest = np.float32(0.5), np.float32(kept), np.float32(1 - kept)
    for row in range(height):
        for column in range(width):
            light = 0.0
            if row < rows and column < columns:
                light = flakes[row, column] + flakes[rows - 1 - row, columns - 1 - column]
            pale = grey[row, column] * np.float32(1.5) + one
            for channel in range(channels):
                value = image[row, column, channel]
                mixed = share * value + rest * max(value, pale)
                out[row, column, channel] = min(max(np.float64(mixed) + light, 0.0), 1.0) * 255
    return out


@_compiled
def _add_zoomed(image: Array, lines: Array, row_places: Array, column_places: Array, out: Array) -> None:
    """`*_places` are where in `image` (height, width, channels) the rows and columns of `out` come from; −1 for nowhere."""
    height, width, channels = image.shape
    for row in range(len(row_places)):
        if row_places[row] < 0:
            continue
        above = int(row_places[row])
        below, share = min(above + 1, height - 1), row_places[row] - above
        upper, lower = image.dtype.type(1 - share), image.dtype.type(share)
        for column in range(width):
            for channel in range(channels):
                lines[column, channel] = upper * image[above, column, channel] + lower * image[below, column, channel]
        for column in range(len(column_places)):
            if column_places[column] < 0:
                continue
            left = int(column_places[column])
            right, share = min(left + 1, width - 1), column_places[column] - left
            near, far = image.dtype.type(1 - share), image.dtype.type(share)
            for channel in range(channels):
                out[row, column, channel] += near * lines[left, channel] + far * lines[right, channel]


def add_zoomed(image: Array, factor: float, out: Array) -> None:
    """Add to `out` the middle of `image` (height, width, channels), enlarged, from its upper left corner on.

    Bilinear with the corners of the cut-out on the corners of the enlarged, as `scipy.ndimage.zoom` of order 1 has it. Where
    the enlarged is smaller than `out`, what is beyond stays as it is.
    """
    places, cuts = [], []
    for side, room in zip(image.shape[:2], out.shape[:2], strict=True):
        cut = int(np.ceil(side / factor))
        enlarged = round(cut * factor)
        place = np.arange(enlarged) * ((cut - 1) / (enlarged - 1) if enlarged > 1 else 1.0)
        place[place > cut - 1] = -1  # by a rounding beyond the last pixel: scipy has zero there, and so has the benchmark
        places.append(place[:room])
        cuts.append(slice((side - cut) // 2, (side - cut) // 2 + cut))
    inside = np.ascontiguousarray(image[cuts[0], cuts[1]])
    _add_zoomed(inside, np.empty(inside.shape[1:], inside.dtype), places[0], places[1], out)


@_compiled
def displace(image: Array, down: Array, right: Array) -> Array:
    """The pixels of (height, width, channels) that lie `down` and `right` of each place; bilinear, the border reflected."""
    height, width, channels = image.shape
    out = np.empty_like(image)
    for row in range(height):
        for column in range(width):
            row_place, column_place = row + np.float64(down[row, column]), column + np.float64(right[row, column])
            top, left = int(np.floor(row_place)), int(np.floor(column_place))
            lower, far = row_place - top, column_place - left
            above, below, near, beyond = top, top + 1, left, left + 1
            if not (0 <= top < height - 1 and 0 <= left < width - 1):
                above, below = above % (2 * height), below % (2 * height)
                near, beyond = near % (2 * width), beyond % (2 * width)
                above, below = min(above, 2 * height - 1 - above), min(below, 2 * height - 1 - below)
                near, beyond = min(near, 2 * width - 1 - near), min(beyond, 2 * width - 1 - beyond)
            for channel in range(channels):
                upper_value = (1 - far) * image[above, near, channel] + far * image[above, beyond, channel]
                lower_value = (1 - far) * image[below, near, channel] + far * image[below, beyond, channel]
                out[row, column, channel] = (1 - lower) * upper_value + lower * lower_value
    return out
