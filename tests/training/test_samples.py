import random
from typing import Any

import numpy as np
import torch
from PIL import Image

from overfocus.preprocessing import Preprocess
from overfocus.training.augmentation import Augmentation, measure_statistics
from overfocus.training.data import AugmentedImages, Draw, PlainImages, StepOrder, collate
from overfocus.training.settings import load_recipe


class NoiseImages:
    def __init__(self, count: int) -> None:
        self.class_names = ["even", "odd"]
        self.channels = 3
        self.labels = np.arange(count) % 2

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (24, 24, 3), np.uint8))

    def name(self, index: int) -> str:
        return str(index)


def order(**changes: Any) -> StepOrder:
    return StepOrder(np.arange(100, 143), **({"batch_size": 4, "epochs": 3, "seed": 1} | changes))


def test_an_epoch_takes_each_image_at_most_once_and_all_but_a_rest() -> None:
    batches = list(order())
    assert len(batches) == len(order()) == 30
    for epoch in range(3):
        drawn = [draw.index for batch in batches for draw in batch if draw.epoch == epoch]
        assert len(set(drawn)) == len(drawn) == 40
        assert set(drawn) <= set(range(100, 143))
    assert [draw.index for draw in batches[0]] != [draw.index for draw in batches[10]]


def test_continuing_gives_the_rest_of_the_order() -> None:
    whole = list(order(accumulation=2))
    for start in (0, 1, 5, 7, 15):
        assert list(order(accumulation=2, start=start)) == whole[2 * start :]


def test_two_processes_share_the_steps_of_one_with_twice_the_batch() -> None:
    one = list(order(batch_size=8))
    two = [list(order(process=process, processes=2)) for process in (0, 1)]
    assert [first + second for first, second in zip(*two, strict=True)] == one


def test_accumulated_batches_share_the_steps_of_one_large_batch() -> None:
    parts = list(order(accumulation=2))
    assert [first + second for first, second in zip(parts[::2], parts[1::2], strict=True)] == list(order(batch_size=8))


def test_repeated_augmentation_shows_images_in_a_row_in_epochs_as_long() -> None:
    batches = list(order(batch_size=6, repeats=3, epochs=1))
    assert len(batches) == 7
    for batch in batches:
        first, second = batch[:3], batch[3:]
        assert len({draw.index for draw in first}) == len({draw.index for draw in second}) == 1
        assert len({draw.position for draw in batch}) == 6


def test_augmentation_depends_on_the_draw_and_the_seed_alone() -> None:
    recipe = load_recipe("fan")
    images = AugmentedImages(NoiseImages(4), Augmentation(Preprocess((3, 16, 16)), recipe), seed=3)
    draws = [Draw(0, 0, 1), Draw(0, 1, 1), Draw(1, 0, 1), Draw(0, 0, 2)]
    first = [images[draw][0] for draw in draws]
    random.seed(9)
    torch.manual_seed(9)
    again = [images[draw][0] for draw in reversed(draws)][::-1]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert len({tensor.sum().item() for tensor in first}) == 4
    other_seed = AugmentedImages(NoiseImages(4), Augmentation(Preprocess((3, 16, 16)), recipe), seed=4)
    assert not torch.equal(other_seed[draws[0]][0], first[0])


def test_every_recipe_augments_grey_and_colour() -> None:
    for name in ("fan", "rvt", "finetune", "small"):
        for channels in (1, 3):
            preprocess = Preprocess((channels, 16, 12), (0.4,) * channels, (0.2,) * channels)
            images = AugmentedImages(NoiseImages(6), Augmentation(preprocess, load_recipe(name)), seed=0)
            inputs, labels = collate([images[Draw(0, place, place)] for place in range(6)])
            assert inputs.shape == (6, channels, 16, 12)
            assert labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_without_augmentation_the_image_is_that_of_the_preprocessing() -> None:
    recipe = load_recipe("small").changed({"crop_scale": [1, 1], "crop_ratio": [1, 1], "flip": 0, "interpolation": "bicubic"})
    preprocess = Preprocess((3, 16, 16), crop_pct=1.0)
    image = NoiseImages(1).image(0)
    assert torch.allclose(Augmentation(preprocess, recipe)(image, 0)[0], preprocess(image), atol=1e-6)


def test_statistics_are_those_of_all_pixels() -> None:
    images = NoiseImages(5)
    pixels = np.stack([np.asarray(images.image(index)) for index in range(5)]) / 255
    mean, std = measure_statistics(images, Preprocess((3, 24, 24), crop_pct=1.0))
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), atol=1e-4)


class MaskedImages:
    """Images of given sizes, whose masks are all of class 1."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes
        self.class_names = ["a", "b"]
        self.channels = 3

    def __len__(self) -> int:
        return len(self.sizes)

    def size(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(np.full((*self.sizes[index], 3), 51, np.uint8))

    def mask(self, index: int) -> Any:
        return np.ones(self.sizes[index], np.uint8)


def test_images_are_validated_with_others_of_their_size() -> None:
    sizes = [(8, 6), (8, 6), (8, 6), (6, 8), (8, 6), (2048, 2048), (2048, 2048), (4096, 4096), (4096, 4096)]
    plain = PlainImages(MaskedImages(sizes), Preprocess((3, 16, 16), (0.1,) * 3, (0.5,) * 3))
    assert plain.batches(2, 0, 1) == [[0, 1], [2], [3], [4], [5], [6], [7], [8]]
    assert plain.batches(4, 0, 2) == [[0, 2, 4], [6], [8]]
    assert plain.batches(4, 1, 2) == [[1], [3], [5], [7]]
    images, masks = collate([plain[0], plain[1]])
    assert images.shape == (2, 3, 8, 6)
    assert torch.allclose(images, torch.tensor(0.2))
    assert torch.equal(masks, torch.ones(2, 8, 6, dtype=torch.uint8))
    assert PlainImages(NoiseImages(5), Preprocess((3, 16, 16))).batches(2, 0, 1) == [[0, 1], [2, 3], [4]]
