"""Augmentation of pictures with masks: what happens to one happens to the other."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from overfocus.preprocessing import Preprocess
from overfocus.training.mask_augmentation import MaskAugmentation, distort, largest_share
from overfocus.training.randomness import seed_all
from overfocus.training.recipe import load_recipe

SMALL = load_recipe("segmentation_small")
PREPROCESS = Preprocess((3, 24, 32), crop_pct=1.0)


def coordinates(height: int, width: int) -> tuple[Image.Image, np.ndarray[Any, Any]]:
    """A picture whose red value is its mask's class: whatever happens to one must have happened to the other."""
    numbers = np.add.outer(np.arange(height) // 8, 2 * (np.arange(width) // 8)).astype(np.uint8)
    return Image.fromarray(np.stack([numbers * 10] * 3, -1)), numbers


@pytest.mark.parametrize(("height", "width"), [(40, 60), (24, 32), (10, 80), (7, 5)])
def test_picture_and_mask_stay_together(height: int, width: int) -> None:
    preprocess = Preprocess((3, 24, 32), (0.0,) * 3, (1.0,) * 3, crop_pct=1.0)
    recipe = SMALL.changed({"photometric": False, "resize_scale": [1.0, 1.0]})
    augment = MaskAugmentation(preprocess, recipe)
    for seed in range(6):
        seed_all(seed)
        image, mask = augment(*coordinates(height, width))
        assert (tuple(image.shape), tuple(mask.shape), mask.dtype) == ((3, 24, 32), (24, 32), torch.uint8)
        inside = mask != 255
        assert torch.allclose(image[0][inside] * 25.5, mask[inside].float(), atol=1e-4)
        assert (image[:, ~inside] == 0).all()
        assert int(inside.sum()) == min(height, 24) * min(width, 32)


def test_scaled_picture_and_mask_stay_together() -> None:
    """Inside the 8×8 squares, away from their borders, a scaled picture must show the colour of its mask's class."""
    preprocess = Preprocess((3, 64, 64), (0.0,) * 3, (1.0,) * 3, crop_pct=1.0)
    augment = MaskAugmentation(
        preprocess, SMALL.changed({"photometric": False, "resize_scale": [2.0, 2.0], "largest_share": 1.0})
    )
    seed_all(0)
    image, mask = augment(*coordinates(48, 48))
    assert (mask != 255).all()
    same = torch.ones_like(mask, dtype=torch.bool)
    for axis in (0, 1):
        for shift in (-2, 2):
            same &= mask.roll(shift, axis) == mask
    inner = same[4:-4, 4:-4]
    assert 0.4 < inner.float().mean() < 0.9
    difference = (image[0] * 25.5 - mask)[4:-4, 4:-4].abs()
    assert difference[inner].max() < 0.06
    assert difference.mean() < 0.15  # borders are blurred, not moved


def test_mask_scales_as_pillow_does() -> None:
    _, numbers = coordinates(40, 60)
    recipe = SMALL.changed({"photometric": False, "resize_scale": [0.6, 0.6], "flip": 0.0})
    _, mask = MaskAugmentation(PREPROCESS, recipe)(Image.fromarray(np.zeros((40, 60, 3), np.uint8)), numbers)
    whole = np.asarray(Image.fromarray(numbers).resize((36, 24), Image.Resampling.NEAREST))
    assert any(np.array_equal(mask, whole[:, left : left + 32]) for left in range(5))


def test_flips_happen_to_both() -> None:
    image, mask = coordinates(24, 32)
    recipe = SMALL.changed({"photometric": False, "resize_scale": [1.0, 1.0], "flip": 1.0})
    flipped = MaskAugmentation(PREPROCESS, recipe)(image, mask)
    assert torch.equal(flipped[0], PREPROCESS.normalize(np.asarray(image)[:, ::-1]))
    assert np.array_equal(flipped[1], mask[:, ::-1])


def test_crops_of_one_class_are_avoided() -> None:
    mask = np.zeros((24, 400), np.uint8)
    mask[:, 200:216] = 1
    picture = Image.fromarray(np.zeros((24, 400, 3), np.uint8))
    shares = {}
    for limit in (0.75, 1.0):
        augment = MaskAugmentation(PREPROCESS, SMALL.changed({"resize_scale": [1.0, 1.0], "largest_share": limit}))
        seed_all(1)
        shares[limit] = [largest_share(augment(picture, mask)[1]) for _ in range(60)]
    within = {limit: np.mean(np.array(found) < 0.75) for limit, found in shares.items()}
    # a random crop shows enough of class 1 in about a tenth of the cases, ten attempts miss it in a third
    assert within[1.0] < 0.3
    assert within[0.75] > 0.45


def test_share_of_the_largest_class() -> None:
    assert largest_share(torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)) == pytest.approx(2 / 3)
    assert largest_share(torch.full((2, 2), 255, dtype=torch.uint8)) == 1


def test_photometric_distortion_changes_colours_only() -> None:
    random = np.random.default_rng(0)
    picture = torch.from_numpy(random.integers(60, 190, (3, 20, 20)).astype(np.uint8))
    seed_all(0)
    versions = [distort(picture) for _ in range(40)]
    assert all(version.shape == picture.shape and version.dtype == torch.uint8 for version in versions)
    unchanged = sum(torch.equal(version, picture) for version in versions)
    assert 0 <= unchanged < 10  # one in sixteen
    means = np.array([version.float().mean().item() for version in versions]) / picture.float().mean().item()
    assert 0.8 < means.min() < 0.97 < 1.03 < means.max() < 1.2


def test_grey_models_get_grey_pictures() -> None:
    preprocess = Preprocess((1, 24, 32), (0.5,), (0.5,), crop_pct=1.0)
    image, _ = MaskAugmentation(preprocess, SMALL)(*coordinates(40, 60))
    assert image.shape == (1, 24, 32)
