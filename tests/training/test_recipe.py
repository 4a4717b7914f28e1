"""Recipes, and the augmentations they ask for."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import str_to_pil_interp

from overfocus.errors import TrainingError
from overfocus.preprocessing import Preprocess
from overfocus.training.augmentation import INTERPOLATIONS, Augmentation
from overfocus.training.settings import Recipe, load_recipe, recipe_names


def test_every_recipe_can_be_read() -> None:
    assert recipe_names() == ["fan", "finetune", "mae", "rvt", "segmentation", "segmentation_small", "small"]
    assert all(isinstance(load_recipe(name), Recipe) for name in recipe_names())


def test_the_papers_recipes() -> None:
    fan, rvt = load_recipe("fan"), load_recipe("rvt")
    assert (fan.epochs, fan.warmup_epochs, fan.drop_path, fan.adl, fan.adl_threshold) == (300, 10, 0.35, 1.0, 2.0)
    assert fan.rate(64 * 64) == pytest.approx(4e-3)
    assert rvt.rate(32 * 64) == pytest.approx(2e-3)
    assert (rvt.repeated_augmentation, rvt.patch_augmentation, rvt.minimum_rate) == (3, True, 1e-5)


def test_changes_are_read_as_in_a_file() -> None:
    changed = load_recipe("small").changed(
        {
            "learning_rate": "1e-3",
            "epochs": "3",
            "adl": "auto",
            "adl_layers": "[0, -1]",
            "crop_scale": "[0.5, 1]",
            "ema_warmup": "true",
        }
    )
    assert (changed.learning_rate, changed.epochs, changed.adl) == (1e-3, 3, "auto")
    assert (changed.adl_layers, changed.crop_scale, changed.ema_warmup) == ((0, -1), (0.5, 1.0), True)
    assert load_recipe("small").changed({"adl": "0.5"}).adl == 0.5
    assert load_recipe("finetune").changed({"layer_decay": None}).layer_decay is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rat": 1}, "did you mean learning_rate?"),
        ({"epochs": "1.5"}, "epochs must be a whole number, got 1.5"),
        ({"epochs": "many"}, "epochs must be a whole number, got 'many'"),
        ({"flip": "2"}, "flip must be at least 0 and at most 1, got 2"),
        ({"crop_scale": "[0.5]"}, "crop_scale must be 2 numbers, got [0.5]"),
        ({"crop_scale": "[0, 1]"}, "crop_scale must be above 0 and at most 1, got 0"),
        ({"adl": "-1"}, "adl must be at least 0, got -1"),
        ({"adl": "maybe"}, "adl must be a number or auto, got 'maybe'"),
        ({"adl_threshold": 0}, "adl_threshold must be above 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"precision": "int8"}, "precision must be auto, float32, bfloat16 or float16"),
        ({"mixup": 0.5, "batch_size": 7}, "expected an even batch_size, got 7"),
        ({"warmup_epochs": 10}, "a warm-up of 10 epochs leaves nothing of 10"),
        ({"ema_decay": 1.0}, "ema_decay must be above 0 and at most 0.9999999, got 1.0"),
        ({"flip": True}, "flip must be a number, got True"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, object], words: str) -> None:
    with pytest.raises(TrainingError, match=re.escape(words)):
        load_recipe("small").changed(changes)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("epochs: 1\nbatch_size: 2\nlearning_rate: 0.1\n")
    assert load_recipe(path).learning_rate == 0.1
    for text, words in (
        ("epochs: 1", "batch_size, learning_rate is missing"),
        ("- 1", "got list"),
        ("a: [", "expected a recipe in YAML"),
        ("a: &b [1]\nc: *b", "alias"),
        ("[" * 5000, "nested"),
    ):
        path.write_text(text)
        with pytest.raises(TrainingError, match=words):
            load_recipe(path)
    with pytest.raises(
        TrainingError, match="expected fan, finetune, mae, rvt, segmentation, segmentation_small, small or a YAML file"
    ):
        load_recipe("big")


IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 18, 3), np.uint8))


def augmentation(**changes: str | None) -> Augmentation:
    return Augmentation(Preprocess((3, 16, 16)), load_recipe("small").changed(changes))


def test_every_interpolation_is_one_of_timm() -> None:
    for name in INTERPOLATIONS:
        image, label = augmentation(interpolation=name, auto_augment=None)(IMAGE, 1)
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
def test_auto_augment_goes_with_interpolations_that_turn_images(name: str) -> None:
    try:
        turned = IMAGE.rotate(9, resample=Image.Resampling[name.upper().replace("RANDOM", "BICUBIC")])
    except ValueError:
        with pytest.raises(
            TrainingError, match=f"interpolation '{name}' cannot; set it to one of random, nearest, bilinear, bicub"
        ):
            augmentation(interpolation=name, auto_augment="v0")
    else:
        assert turned.size == IMAGE.size
        assert augmentation(interpolation=name, auto_augment="v0")(IMAGE, 0)[0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    "policy",
    [
        None, "rand", "rand-m9-mstd0.5-inc1", "rand-m9-n3-p0.7-mmax10-mstd101", "rand-m9-tweights", "rand-t3a", "augmix-m5-w4-d2",
        "augmix", "original-mstd0.5", "original", "originalr", "v0", "v0r", "3a",
    ],
)  # fmt: skip
def test_policies_of_timm(policy: str | None) -> None:
    assert augmentation(auto_augment=policy)(IMAGE, 0)[0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    "policy",
    [
        "randd", "imagenet", "v1", "Rand-m9", "original-m9", "rand-x9", "rand-m9x",
        # what timm passes over in silence
        "rand-mX", "rand-m9-inc", "rand-m9-", "rand-tweight", "augmix-w", "v0-mstd",
        "rand-m9-mmax12", "rand-m9-mmax11-mstd1",
    ],
)  # fmt: skip
def test_unknown_policies_are_told_with_examples(policy: str) -> None:
    words = f"auto_augment '{policy}'; expected null or such as rand-m9-mstd0.5-inc1, rand-m9-tweights, augmix-m5-w4-d2, original"
    with pytest.raises(TrainingError, match=words) as caught:
        augmentation(auto_augment=policy)
    assert "AssertionError" not in str(caught.value)
