"""Class maps and confidence against numpy."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from timm.models.vision_transformer import VisionTransformer

from overfocus import RunError
from overfocus.models.segmentation import segmentation_model
from overfocus.segmentation.inference import class_map, is_segmentation, pixel_confidence, predict_pixels


def bilinear(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(classes, rows, columns) at another size: pixel centres at (i + ½)·ratio − ½, clamped to the border."""
    for axis, count in zip((1, 2), size, strict=True):
        there = values.shape[axis]
        place = np.clip((np.arange(count) + 0.5) * there / count - 0.5, 0, there - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, there - 1)
        shape = [1, 1, 1]
        shape[axis] = count
        share = (place - low).reshape(shape)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


@pytest.mark.parametrize("size", [(12, 20), (3, 5), (7, 9)])
def test_class_map_is_the_arg_max_of_bilinear_logits(size: tuple[int, int]) -> None:
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = class_map(logits, size)
    assert found.dtype == torch.uint8
    for number in range(2):
        np.testing.assert_array_equal(found[number].numpy(), bilinear(logits[number].numpy(), size).argmax(0))


@pytest.mark.parametrize("size", [(300, 5), (3, 5)])
def test_confidence_is_the_mean_probability(size: tuple[int, int]) -> None:
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    shares = softmax(bilinear(logits.double().numpy(), size), axis=0)
    assert pixel_confidence(logits, size) == pytest.approx(shares.max(0).mean(), abs=1e-6)
    classes = np.random.default_rng(0).integers(0, 4, size, np.uint8)
    expected = np.take_along_axis(shares, classes[None].astype(int), 0).mean()
    assert pixel_confidence(logits, size, torch.from_numpy(classes)) == pytest.approx(expected, abs=1e-6)


def test_confidence_of_half_precision_is_computed_in_single() -> None:
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    assert pixel_confidence(logits.bfloat16(), (3, 5)) == pytest.approx(pixel_confidence(logits, (3, 5)), abs=5e-3)


def test_what_is_a_segmentation_model() -> None:
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    assert is_segmentation(segmentation_model(vit, num_classes=3))
    assert not is_segmentation(vit)
    assert not is_segmentation(vit, torch.zeros(1, 3))
    assert is_segmentation(vit, torch.zeros(1, 3, 4, 4))
    assert not is_segmentation(vit, torch.zeros(1, 4, 4, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_have_no_class(value: float) -> None:
    logits = torch.zeros(4, 3, 5)
    logits[2, 1, 1] = value
    with pytest.raises(RunError, match="holds NaN or infinity"):
        predict_pixels(logits, (6, 10))
