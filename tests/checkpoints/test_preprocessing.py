"""The preprocessing equals timm's evaluation transform, in two steps."""

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from overfocus.preprocessing import Preprocess

RANDOM = np.random.default_rng(0)


def random_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (224, 224), (31, 47), (1, 1)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("interpolation", "crop_pct", "target"),
    [("bicubic", 0.9, (224, 224)), ("bilinear", 1.0, (96, 128)), ("bicubic", 0.95, (64, 64))],
)
def test_equals_timm(size, crop_mode, interpolation, crop_pct, target) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    preprocess = Preprocess((3, *target), mean, std, interpolation, crop_pct, crop_mode)
    transform = timm.data.create_transform(
        input_size=(3, *target), interpolation=interpolation, mean=mean, std=std, crop_pct=crop_pct, crop_mode=crop_mode
    )
    image = random_image(*size)
    torch.testing.assert_close(preprocess(image), transform(image), rtol=0, atol=1e-6)


def test_two_steps_are_the_whole() -> None:
    preprocess, image = Preprocess(), random_image(300, 200)
    pixels = preprocess.resize(image)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (224, 224, 3))
    torch.testing.assert_close(preprocess.normalize(pixels), preprocess(image), rtol=0, atol=0)


def test_normalize_by_hand() -> None:
    preprocess = Preprocess((3, 2, 2), (0.5, 0.5, 0.5), (0.5, 0.25, 1.0))
    pixels = np.full((2, 2, 3), (255, 0, 51), dtype=np.uint8)
    expected = torch.tensor([1.0, -2.0, -0.3]).view(3, 1, 1).expand(3, 2, 2)
    torch.testing.assert_close(preprocess.normalize(pixels), expected)


def test_one_channel_takes_luma() -> None:
    preprocess = Preprocess((1, 28, 28), (0.5,), (0.5,), crop_pct=1.0)
    image = random_image(28, 28)
    expected = (np.asarray(image.convert("L"), dtype=np.float32) / 255 - 0.5) / 0.5
    torch.testing.assert_close(preprocess(image)[0], torch.from_numpy(expected))


def test_grey_levels_survive_the_way_through_rgb() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    preprocess = Preprocess((1, 16, 16), (0.0,), (1.0,), crop_pct=1.0)
    torch.testing.assert_close(preprocess(Image.fromarray(levels))[0], torch.from_numpy(levels / 255).float())


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA", "I"])
def test_every_mode_of_pillow_becomes_rgb(mode: str) -> None:
    assert Preprocess()(random_image(40, 30).convert(mode)).shape == (3, 224, 224)


def test_preprocessing_can_be_sent_to_workers() -> None:
    import pickle

    preprocess, image = Preprocess(), random_image(50, 60)
    torch.testing.assert_close(pickle.loads(pickle.dumps(preprocess))(image), preprocess(image))


def test_mean_that_does_not_fit_the_channels() -> None:
    with pytest.raises(ValueError, match="per input channel"):
        Preprocess((1, 28, 28))
