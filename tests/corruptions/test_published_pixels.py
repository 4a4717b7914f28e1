"""Our corruptions have the pixels of the benchmarks' own programs and of the package `imagecorruptions`."""

import math
from pathlib import Path

import cv2
import imagecorruptions
import numpy as np
import pytest
from imagecorruptions import corruptions as package
from scipy import ndimage

from overfocus.corruptions import CORRUPTIONS, SEVERITIES, corrupt, effects
from overfocus.corruptions.apply import FROM_PACKAGE
from overfocus.corruptions.constants import CONSTANT_SETS, CONSTANTS

PUBLISHED = Path(__file__).parents[1] / "data" / "corruptions"
"""Made by the authors' programs (hendrycks/robustness) with numpy's generator seeded with the severity."""
SETS = {32: "cifar-c", 64: "tiny-imagenet-c", 224: "imagenet-c"}


def _published(side):
    with np.load(PUBLISHED / f"{side}.npz") as arrays:
        return {name: arrays[name].astype(int) for name in arrays.files}


def _ours(image, name, severity, constants, rng):
    parameters = CONSTANTS[constants][name][severity - 1]
    if name == "elastic_transform":
        side = 244 if constants == "imagenet-c" else min(image.shape[:2])
        parameters = tuple(side * share for share in parameters)
    return effects.EFFECTS[name](image, rng, *parameters).astype(np.uint8).astype(int)


@pytest.mark.parametrize("side", SETS)
def test_pixels_of_the_published_programs(side):
    published = _published(side)
    clean = published.pop("clean").astype(np.uint8)
    assert len(published) == {32: 51, 64: 34, 224: 4}[side]
    for key, expected in published.items():
        name, severity = key.split("-")
        if name == "impulse_noise":  # drawn from a generator that its authors did not seed
            continue
        result = _ours(clean, name, int(severity), SETS[side], np.random.RandomState(int(severity)))
        allowed = 2 if name == "jpeg_compression" else 1
        assert np.abs(result - expected).max() <= allowed, key
        assert np.mean(result != expected) < 0.01, key


@pytest.mark.parametrize(("side", "severity"), [(32, 1), (32, 3), (32, 5), (64, 1), (64, 5)])
def test_impulse_noise_has_the_published_strength(side, severity):
    """Mean change over 40 draws against the one published draw, whose own error is 1/√(values changed)."""
    published = _published(side)
    clean, expected = published["clean"], published[f"impulse_noise-{severity}"]
    draws = [_ours(clean.astype(np.uint8), "impulse_noise", severity, SETS[side], np.random.RandomState(n)) for n in range(40)]
    strength = np.mean([np.abs(draw - clean).mean() for draw in draws])
    changed = clean.size * CONSTANTS[SETS[side]]["impulse_noise"][severity - 1][0]
    allowed = max(0.15, 3 / math.sqrt(changed))
    assert np.abs(expected - clean).mean() == pytest.approx(strength, rel=allowed)
    values = np.unique(draws[0][draws[0] != clean])
    assert set(values) == {0, 255}


@pytest.mark.parametrize("side", SETS)
def test_corrupt_chooses_the_constants_of_the_side(side):
    published = _published(side)
    clean = published["clean"].astype(np.uint8)
    for key in ("contrast-5", "pixelate-5", "zoom_blur-5", "defocus_blur-1"):
        name, severity = key.split("-")
        expected = published[key] if side < 224 else imagecorruptions.corrupt(clean, int(severity), name).astype(int)
        assert np.abs(corrupt(clean, name, int(severity)).astype(int) - expected).max() <= 1, key


@pytest.fixture(scope="module")
def photo():
    """An image with sharp and soft parts, 120×97."""
    with np.load(PUBLISHED / "224.npz") as arrays:
        return np.ascontiguousarray(arrays["clean"][40:160, 60:157])


@pytest.mark.parametrize("name", sorted(FROM_PACKAGE - {"impulse_noise"}))
@pytest.mark.parametrize("severity", SEVERITIES)
def test_with_imagenet_constants_ours_are_the_packages(photo, name, severity):
    """So that what the other two sets apply is the same algorithm."""
    np.random.seed(5)  # noqa: NPY002
    expected = imagecorruptions.corrupt(photo, severity, name).astype(int)
    result = _ours(photo, name, severity, "imagenet-c", np.random.RandomState(5))
    assert np.abs(result - expected).max() <= 1
    assert np.mean(result != expected) < 0.01


@pytest.mark.parametrize("size", [(224, 224), (33, 150), (160, 96)])
@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["zoom_blur", "motion_blur", "snow", "glass_blur"])
def test_fast_corruptions_have_the_packages_pixels(name, severity, size):
    """Same random numbers, within one grey level; smooth and rough images, and one colour alone."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1).astype(np.uint8)
    rough = np.random.default_rng(3).integers(0, 256, (height, width, 3)).astype(np.uint8)
    for image in (smooth, rough, np.full_like(smooth, 200)):
        if name == "glass_blur":
            expected = package.glass_blur(image, severity, seed=9)
        else:
            np.random.seed(9)  # noqa: NPY002
            expected = getattr(package, name)(image, severity)
        result = _ours(image, name, severity, "imagenet-c", np.random.RandomState(9))
        assert np.abs(result.astype(int) - np.uint8(expected)).max() <= 1


@pytest.mark.parametrize("constants", CONSTANT_SETS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_elastic_transform_is_the_published_algorithm(photo, constants, severity):
    """Written once more with scipy, as CORRUPTIONS of the benchmark describe it: affine map of three points, smooth noise."""
    side = 244 if constants == "imagenet-c" else 97
    alpha, sigma, affine = (side * share for share in CONSTANTS[constants]["elastic_transform"][severity - 1])
    rng = np.random.RandomState(4)
    corners = np.array([[60 + 32, 48 + 32], [60 + 32, 48 - 32], [60 - 32, 48 - 32]], np.float32)
    matrix = cv2.getAffineTransform(corners, corners + rng.uniform(-affine, affine, (3, 2)).astype(np.float32))
    warped = cv2.warpAffine(photo.astype(np.float32) / 255, matrix, (97, 120), borderMode=cv2.BORDER_REFLECT_101)
    right = ndimage.gaussian_filter(rng.uniform(-1, 1, (120, 97)), sigma, mode="reflect", truncate=3) * alpha
    down = ndimage.gaussian_filter(rng.uniform(-1, 1, (120, 97)), sigma, mode="reflect", truncate=3) * alpha
    rows, columns = np.mgrid[0:120, 0:97]
    places = [rows + down.astype(np.float32), columns + right.astype(np.float32)]
    channels = [ndimage.map_coordinates(warped[..., channel], places, order=1, mode="reflect") for channel in range(3)]
    expected = (np.stack(channels, axis=-1).clip(0, 1) * 255).astype(np.uint8).astype(int)
    result = _ours(photo, "elastic_transform", severity, constants, np.random.RandomState(4))
    assert np.abs(result - expected).max() <= 1


def test_frost_is_not_rescaled_and_never_the_sixth_photo():
    black = np.zeros((97, 97, 3), np.uint8)
    photos = [cv2.cvtColor(effects._frost_photo(number), cv2.COLOR_RGB2GRAY) for number in range(5)]
    found = set()
    for seed in range(12):
        part = effects.frost(black, np.random.RandomState(seed), 1, 1, 1).astype(np.uint8)
        grey = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY)
        scores = [cv2.matchTemplate(photo, grey, cv2.TM_SQDIFF).min() for photo in photos]
        assert min(scores) < 1e-6 * grey.size * 255**2
        found.add(int(np.argmin(scores)))
    assert len(found) >= 4


def test_frost_covers_an_image_larger_than_its_photos():
    image = np.zeros((700, 1500, 3), np.uint8)
    assert corrupt(image, "frost", 3).shape == (700, 1500, 3)


@pytest.mark.parametrize("constants", CONSTANT_SETS)
def test_spatter_without_a_drop_leaves_the_image(constants, recwarn):
    """At 32 pixels ImageNet-C's drops are larger than the image, so that there often is none; the package divides by zero."""
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    results = [corrupt(image, "spatter", 1, seed, constants) for seed in range(40)]
    assert all(np.abs(result.astype(int) - image).mean() < 60 for result in results)
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_names_in_the_tables():
    for constants in CONSTANT_SETS:
        assert sorted(CONSTANTS[constants]) == sorted(CORRUPTIONS) == sorted(effects.EFFECTS)
        assert all(len(levels) == 5 for levels in CONSTANTS[constants].values())
