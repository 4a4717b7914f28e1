import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import str_to_pil_interp

from overfocus.errors import TrainingError
from overfocus.preprocessing import Preprocess
from overfocus.training.augmentation import INTERPOLATIONS, Augmentation
from overfocus.training.recipe import load_recipe

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 18, 3), np.uint8))


def augmentation(**changes: str | None) -> Augmentation:
    return Augmentation(Preprocess((3, 16, 16)), load_recipe("small").changed(changes))


def test_every_interpolation_is_one_of_timm() -> None:
    for name in INTERPOLATIONS:
        image, label = augmentation(interpolation=name, auto_augment=None)(PICTURE, 1)
        assert (image.shape, label) == ((3, 16, 16), 1)
        assert torch.isfinite(image).all()
    for name in set(INTERPOLATIONS) - {"random"}:
        assert str_to_pil_interp(name).name.lower() == name


def test_an_unknown_interpolation_is_told_with_those_there_are() -> None:
    with pytest.raises(
        TrainingError, match="no interpolation 'cubist'; there are random, nearest, bilinear, bicubic, box, hamming"
    ):
        augmentation(interpolation="cubist")


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_auto_augment_goes_with_interpolations_that_turn_pictures(name: str) -> None:
    try:
        turned = PICTURE.rotate(9, resample=Image.Resampling[name.upper().replace("RANDOM", "BICUBIC")])
    except ValueError:
        with pytest.raises(
            TrainingError, match=f"interpolation '{name}' cannot; set it to one of random, nearest, bilinear, bicub"
        ):
            augmentation(interpolation=name, auto_augment="v0")
    else:
        assert turned.size == PICTURE.size
        assert augmentation(interpolation=name, auto_augment="v0")(PICTURE, 0)[0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    "policy",
    [
        None, "rand", "rand-m9-mstd0.5-inc1", "rand-m9-n3-p0.7-mmax12-mstd101", "rand-m9-tweights", "rand-t3a", "augmix-m5-w4-d2",
        "augmix", "original-mstd0.5", "original", "originalr", "v0", "v0r", "3a",
    ],
)  # fmt: skip
def test_policies_of_timm(policy: str | None) -> None:
    assert augmentation(auto_augment=policy)(PICTURE, 0)[0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    "policy",
    [
        "randd", "imagenet", "v1", "Rand-m9", "original-m9", "rand-x9", "rand-m9x",
        # what timm passes over in silence
        "rand-mX", "rand-m9-inc", "rand-m9-", "rand-tweight", "augmix-w", "v0-mstd",
    ],
)  # fmt: skip
def test_unknown_policies_are_told_with_examples(policy: str) -> None:
    words = f"auto_augment '{policy}'; expected null or such as rand-m9-mstd0.5-inc1, rand-m9-tweights, augmix-m5-w4-d2, original"
    with pytest.raises(TrainingError, match=words) as caught:
        augmentation(auto_augment=policy)
    assert "AssertionError" not in str(caught.value)
