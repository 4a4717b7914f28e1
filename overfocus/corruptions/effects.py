"""The corruptions with the constants as arguments, as the benchmarks' papers and programs define them.

Each function takes an RGB image, uint8 (height, width, 3), a generator, and the parameters of one severity in the order of
`CONSTANTS`; it gives grey levels from 0 to 255 of the same shape, not yet cut to whole numbers. The order in which numbers are
drawn is the benchmark's.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019;
motion blur and snow, which approximate the benchmark's, Michaelis et al., "Benchmarking Robustness in Object Detection", 2019.
"""

import io
import math
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.resources import as_file, files
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from skimage.color import hsv2rgb, rgb2hsv
from skimage.util import random_noise

from overfocus.corruptions import kernels
from overfocus.errors import CorruptionError

Array = np.ndarray[Any, Any]
Pixels = UInt8[np.ndarray, "height width 3"]
Generator = np.random.RandomState

_FROST_PHOTOS = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
"""The package has a sixth, which the benchmark's authors list but never draw."""
WATER, MUD = (175, 238, 238), (63, 42, 20)
"""Colours of spatter: pale turquoise, brown."""


def gaussian_noise(image: Pixels, rng: Generator, sigma: float) -> Array:
    """Add normal noise; `sigma` is its standard deviation in shares of the range."""
    return _clip(image / 255 + rng.normal(size=image.shape, scale=sigma))


def shot_noise(image: Pixels, rng: Generator, photons: float) -> Array:
    """Count light as a Poisson variable; a white pixel is `photons` photons."""
    return _clip(rng.poisson(image / 255 * photons) / photons)


def impulse_noise(image: Pixels, rng: Generator, share: float) -> Array:
    """Make a share of the values black or white."""
    seed = int(rng.randint(2**32, dtype=np.uint64))
    return _clip(random_noise(image / 255, mode="s&p", rng=seed, amount=share))  # type: ignore[no-untyped-call]


def speckle_noise(image: Pixels, rng: Generator, sigma: float) -> Array:
    """Multiply by 1 plus normal noise of standard deviation `sigma`."""
    values = image / 255
    return _clip(values + values * rng.normal(size=image.shape, scale=sigma))


def gaussian_blur(image: Pixels, _rng: Generator, sigma: float) -> Array:
    """Blur; `sigma` in pixels."""
    return _clip(kernels.gaussian_blur(image / 255, sigma))


def glass_blur(image: Pixels, rng: Generator, sigma: float, reach: int, rounds: int) -> Array:
    """Blur, move each pixel by up to `reach` pixels, `rounds` times over, and blur again."""
    height, width, _ = image.shape
    count = rounds * max(0, height - 2 * reach) * max(0, width - 2 * reach)
    blurred = kernels.blur_pixels(image, sigma).clip(0, 255).astype(np.uint8)
    scattered = kernels.scatter(blurred, rng.randint(-reach, reach, size=(count, 2)), reach, rounds)
    return kernels.blur_pixels(scattered, sigma).clip(0, 255)


def defocus_blur(image: Pixels, _rng: Generator, radius: float, alias_sigma: float) -> Array:
    """Average over a disk of `radius` pixels, whose edge is blurred by `alias_sigma`."""
    return _clip(cv2.filter2D(image / 255, -1, _disk(radius, alias_sigma)))


@cache
def _disk(radius: float, alias_sigma: float) -> Array:
    places = np.arange(-max(8, radius), max(8, radius) + 1)
    inside = (places**2 + places[:, None] ** 2 <= radius**2).astype(np.float32)
    size = 3 if radius <= 8 else 5
    disk: Array = cv2.GaussianBlur(inside / inside.sum(), ksize=(size, size), sigmaX=alias_sigma)
    return disk


def motion_blur(image: Pixels, rng: Generator, radius: int, sigma: float) -> Array:
    """Blur along a line at −45° to 45°; an approximation of the benchmark's."""
    return _blur_along(image, radius, sigma, rng.uniform(-45, 45)).clip(0, 255)


def _blur_along(image: Array, radius: int, sigma: float, angle: float) -> Array:
    """Sum of 2 × radius + 1 shifted copies of (height, width, channels), weighted by half a Gaussian.

    A shift that leaves the image ends the sum, as in the package: images smaller than the blur get darker.
    """
    count = 2 * radius + 1
    steps = np.arange(count)
    weights = np.exp(-(steps**2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)
    weights = weights / weights.sum()
    point = (count * np.sin(np.deg2rad(angle)), count * np.cos(np.deg2rad(angle)))
    length = math.hypot(*point)
    shifts = -np.ceil(np.stack([steps * point[0] / length, steps * point[1] / length], axis=1) - 0.5).astype(np.int64)
    outside = (np.abs(shifts) >= image.shape[:2]).any(axis=1)
    inside = int(outside.argmax()) if outside.any() else count
    return kernels.add_shifted(image, shifts[:inside], weights[:inside])


def zoom_blur(image: Pixels, _rng: Generator, end: float, step: float) -> Array:
    """Average the image and its enlargements from 1 to below `end`, `step` apart."""
    values = image.astype(np.float32) / 255
    total = np.zeros_like(values)
    factors = np.arange(1, end, step)
    for factor in factors:
        kernels.add_zoomed(values, factor, total)
    return _clip((values + total) / np.float32(len(factors) + 1))


def snow(image: Pixels, rng: Generator, mean: float, sigma: float, zoom: float, threshold: float, *rest: float) -> Array:
    """Enlarged noise above a threshold, blurred along a line, over a bleached image; an approximation of the benchmark's.

    `rest` are radius and σ of the blur and the share of the image that is not bleached.
    """
    radius, blur_sigma, kept = rest
    noise = rng.normal(size=image.shape[:2], loc=mean, scale=sigma)
    flakes = np.zeros([round(math.ceil(side / zoom) * zoom) for side in noise.shape])[..., None]
    kernels.add_zoomed(noise[..., None], zoom, flakes)
    flakes[flakes < threshold] = 0
    flakes = _blur_along(flakes.clip(0, 1), int(radius), blur_sigma, rng.uniform(-135, -45))
    height, width, _ = image.shape
    layer = np.round(flakes[:height, :width, 0] * 255).astype(np.uint8) / 255
    values = image.astype(np.float32) / 255
    result: Array = kernels.snow_over(values, cv2.cvtColor(values, cv2.COLOR_RGB2GRAY), layer, kept)
    return result


def frost(image: Pixels, rng: Generator, image_weight: float, frost_weight: float, size: float) -> Array:
    """Add a random part of a photo of frost, which was shrunk to `size`, or enlarged just enough to cover the image."""
    photo = _frost(int(rng.randint(len(_FROST_PHOTOS))), size, image.shape[0], image.shape[1])
    top = int(rng.randint(0, photo.shape[0] - image.shape[0]))
    left = int(rng.randint(0, photo.shape[1] - image.shape[1]))
    part = photo[top : top + image.shape[0], left : left + image.shape[1]]
    result: Array = (image_weight * image + frost_weight * part).clip(0, 255)
    return result


@cache
def _frost_photo(number: int) -> Pixels:
    with as_file(files("imagecorruptions") / "frost" / _FROST_PHOTOS[number]) as path:
        photo = cv2.imread(str(path))
    if photo is None:
        raise CorruptionError(f"imagecorruptions has no photo {_FROST_PHOTOS[number]}; install imagecorruptions-imaug again")
    return cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)


@lru_cache(maxsize=16)
def _frost(number: int, size: float, height: int, width: int) -> Pixels:
    photo = _frost_photo(number)
    if size != 1:
        photo = cv2.resize(photo, (0, 0), fx=size, fy=size)
    needed = max((height + 1) / photo.shape[0], (width + 1) / photo.shape[1])
    if needed > 1:
        sides = [max(math.ceil(side * needed), least + 1) for side, least in zip(photo.shape[:2], (height, width), strict=True)]
        photo = cv2.resize(photo, sides[::-1], interpolation=cv2.INTER_CUBIC)
    return photo


def fog(image: Pixels, rng: Generator, strength: float, decay: float) -> Array:
    """Add a random cloud, and keep the brightest value."""
    values = image / 255
    brightest = values.max()
    cloud = _cloud(1 << (max(values.shape[:2]) - 1).bit_length(), decay, rng)[: values.shape[0], : values.shape[1]]
    return _clip((values + strength * cloud[..., None]) * brightest / (brightest + strength))


def _cloud(side: int, decay: float, rng: Generator) -> Array:
    """Heights from 0 to 1 by the diamond-square algorithm on a torus; `side` is a power of two."""
    heights = np.zeros((side, side), np.float32)
    step, roughness = side, 100.0

    def rough_mean(total: Array) -> Array:
        return total / 4 + roughness * rng.uniform(-roughness, roughness, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        squares = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = rough_mean(squares + np.roll(squares, -1, axis=1))
        centres = heights[half::step, half::step]
        beside = (centres + np.roll(centres, 1, axis=0)) + (corners + np.roll(corners, -1, axis=1))
        heights[::step, half::step] = rough_mean(beside)
        beside = (centres + np.roll(centres, 1, axis=1)) + (corners + np.roll(corners, -1, axis=0))
        heights[half::step, ::step] = rough_mean(beside)
        step, roughness = half, roughness / decay
    heights -= heights.min()
    heights /= heights.max()
    return heights


def spatter(
    image: Pixels, rng: Generator, mean: float, sigma: float, blur_sigma: float, threshold: float, intensity: float, mud: int
) -> Array:
    """Drops of water, or of mud; no drop at all leaves the image as it is."""
    liquid = kernels.gaussian_blur(rng.normal(size=image.shape[:2], loc=mean, scale=sigma), blur_sigma)
    liquid[liquid < threshold] = 0
    values = image.astype(np.float32) / 255
    if mud:
        drops = kernels.gaussian_blur(liquid > threshold, intensity)[..., None]
        drops[drops < 0.8] = 0
        return _clip(values * (1 - drops) + drops * np.array(MUD) / 255)
    drops = _drops((liquid * 255).astype(np.uint8))
    strongest = drops.max()
    if strongest == 0:
        return values * 255
    return _clip(values + (drops / strongest * intensity)[..., None] * (np.array(WATER, np.float32) / 255))


def _drops(liquid: UInt8[np.ndarray, "height width"]) -> Array:
    """Light and shadow of drops, from their outlines."""
    distance = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.threshold(distance, 20, 20, cv2.THRESH_TRUNC)[1]
    relief = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    relief = cv2.blur(cv2.filter2D(relief, cv2.CV_8U, light), (3, 3))
    return liquid * relief.astype(np.float32)


def contrast(image: Pixels, _rng: Generator, factor: float) -> Array:
    """Bring each colour nearer to its mean."""
    values = image / 255
    means = values.mean(axis=(0, 1), keepdims=True)
    return _clip((values - means) * factor + means)


def brightness(image: Pixels, _rng: Generator, added: float) -> Array:
    """Add to the value of HSV."""
    hsv = rgb2hsv(image / 255)
    hsv[..., 2] = (hsv[..., 2] + added).clip(0, 1)
    return _clip(hsv2rgb(hsv))


def saturate(image: Pixels, _rng: Generator, factor: float, added: float) -> Array:
    """Change the saturation of HSV."""
    hsv = rgb2hsv(image / 255)
    hsv[..., 1] = (hsv[..., 1] * factor + added).clip(0, 1)
    return _clip(hsv2rgb(hsv))


def jpeg_compression(image: Pixels, _rng: Generator, quality: int) -> Array:
    """Save as a JPEG of this quality and read it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def pixelate(image: Pixels, _rng: Generator, shrink: float) -> Array:
    """Shrink by averaging, and enlarge by repeating pixels."""
    height, width, _ = image.shape
    small = Image.fromarray(image).resize((int(width * shrink), int(height * shrink)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def elastic_transform(image: Pixels, rng: Generator, alpha: float, sigma: float, affine: float) -> Array:
    """A random affine map, then a random smooth displacement; all parameters in pixels."""
    height, width, _ = image.shape
    centre, third = np.array([height, width]) // 2, min(height, width) // 3
    corners = np.array([centre + third, [centre[0] + third, centre[1] - third], centre - third], np.float32)
    moved = corners + rng.uniform(-affine, affine, size=corners.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    values = image.astype(np.float32) / 255
    warped = cv2.warpAffine(values, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    right, down = ((kernels.smooth(rng.uniform(-1, 1, size=(height, width)), sigma) * alpha).astype(np.float32) for _ in range(2))
    return _clip(kernels.displace(warped, down, right))


def _clip(values: Array) -> Array:
    """Values of the range 0 … 1 as grey levels."""
    result: Array = values.clip(0, 1) * 255
    return result


EFFECTS: dict[str, Callable[..., Array]] = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog, brightness,
        contrast, elastic_transform, pixelate, jpeg_compression, speckle_noise, gaussian_blur, spatter, saturate,
    )
}  # fmt: skip
"""The functions by the names of the corruptions."""
