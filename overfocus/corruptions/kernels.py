"""Inner loops of the corruptions as machine code, each to the bit or to a rounding what scipy or `imagecorruptions` computes.

Imported late: numba takes a second to import and as long to compile each loop, once, as the machine code is kept on disk.
"""

import contextlib
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numba import njit
from scipy import ndimage

Array = np.ndarray[Any, Any]


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


@cache
def _gaussian_weights(sigma: float, reach: int) -> Array:
    weights: Array = np.exp(-0.5 / (sigma * sigma) * np.arange(-reach, reach + 1) ** 2)
    weights /= weights.sum()
    return weights


@lru_cache(maxsize=16)
def _reflecting_weights(side: int, sigma: float) -> Array:
    """Row i is what a Gaussian, cut at 3σ, the border reflected, makes of a line of `side` entries at place i."""
    matrix: Array = ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, mode="reflect", truncate=3)
    return matrix


def smooth(values: Array, sigma: float) -> Array:
    """A Gaussian cut at 3σ, the border reflected, on (height, width); fast for a σ near the size of the image, too."""
    import cv2

    reach = int(3 * sigma + 0.5)
    if reach == 0:
        return values
    height, width = values.shape
    if 8 * reach > min(height, width):
        result: Array = _reflecting_weights(height, sigma) @ values @ _reflecting_weights(width, sigma).T
        return result
    weights = _gaussian_weights(sigma, reach)
    return cv2.sepFilter2D(values, cv2.CV_64F, weights, weights, borderType=cv2.BORDER_REFLECT)


@_compiled
def draw_offsets(seed: int, reach: int, count: int) -> Array:
    """Pairs of whole numbers from −reach to reach − 1, from numba's own generator, as `imagecorruptions` draws them."""
    np.random.seed(seed)  # noqa: NPY002  # numba's own, not numpy's
    offsets = np.empty((count, 2), np.int64)
    for place in range(count):
        offsets[place, 0] = np.random.randint(-reach, reach)  # noqa: NPY002
        offsets[place, 1] = np.random.randint(-reach, reach)  # noqa: NPY002
    return offsets


@_compiled
def scatter(image: Array, offsets: Array, reach: int, rounds: int) -> None:
    """Glass: from the lower right to the upper left, each pixel of `image` becomes one within reach, in place.

    The authors meant to swap two pixels, but their arrays are views, so that the pixel is copied; kept, as it is the benchmark.
    """
    height, width, channels = image.shape
    place = 0
    for _ in range(rounds):
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                other_row, other_column = row + offsets[place, 1], column + offsets[place, 0]
                for channel in range(channels):
                    image[row, column, channel] = image[other_row, other_column, channel]
                place += 1


@_compiled
def _add_shifted(padded: Array, shifts: Array, weights: Array, step: int, out: Array) -> None:
    for row in range(out.shape[0]):
        for tap in range(len(weights)):
            weight, other, start = weights[tap], row + shifts[tap, 0], shifts[tap, 1] * step
            for place in range(out.shape[1]):
                out[row, place] += weight * padded[other, place + start]


def add_shifted(image: Array, shifts: Array, weights: Array) -> Array:
    """Sum of copies of (height, width, channels), each moved by (rows, columns) and weighted, the border repeated; float64."""
    height, width, channels = image.shape
    first, last = shifts.min(axis=0).clip(max=0), shifts.max(axis=0).clip(min=0)
    border = ((last[0], -first[0]), (last[1], -first[1]), (0, 0))
    padded = np.pad(image, border, mode="edge").astype(np.float64, copy=False)
    out = np.zeros((height, width * channels))
    _add_shifted(padded.reshape(padded.shape[0], -1), last - shifts, weights, channels, out)
    return out.reshape(image.shape)


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
            above, below = top % (2 * height), (top + 1) % (2 * height)
            near, beyond = left % (2 * width), (left + 1) % (2 * width)
            above, below = min(above, 2 * height - 1 - above), min(below, 2 * height - 1 - below)
            near, beyond = min(near, 2 * width - 1 - near), min(beyond, 2 * width - 1 - beyond)
            for channel in range(channels):
                upper_value = (1 - far) * image[above, near, channel] + far * image[above, beyond, channel]
                lower_value = (1 - far) * image[below, near, channel] + far * image[below, beyond, channel]
                out[row, column, channel] = (1 - lower) * upper_value + lower * lower_value
    return out
