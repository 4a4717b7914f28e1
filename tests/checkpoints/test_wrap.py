"""Modules in memory: how images become their input, and what is told where that cannot be known."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import overfocus
from overfocus import CheckpointError
from overfocus.checkpoints.load import resolve_model
from overfocus.preprocessing import IMAGENET_MEAN, Preprocess

NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8))


def to_array(image: Image.Image) -> np.ndarray:
    """A preprocessing of the user's own: squashed to 32 × 48, (value / 255 − 0.4) / 0.2, as numpy."""
    pixels = np.asarray(image.convert("RGB").resize((48, 32)), dtype=np.float32) / 255
    return ((pixels - 0.4) / 0.2).transpose(2, 0, 1)


def test_a_timm_model_says_everything_itself(vit: nn.Module) -> None:
    loaded = resolve_model(vit)
    config = timm.get_pretrained_cfg("test_vit")
    assert (loaded.input_size, loaded.mean, loaded.notes, loaded.lenient) == ((3, 160, 160), config.mean, (), False)
    assert loaded.model is vit
    assert loaded.num_classes == 1000
    assert loaded.sha256 == overfocus.wrap(vit).sha256


def test_other_weights_have_another_hash(vit: nn.Module) -> None:
    other = timm.create_model("test_vit")
    assert overfocus.wrap(vit).sha256 != overfocus.wrap(other).sha256


@pytest.mark.parametrize(
    "transform",
    [to_array, lambda image: torch.from_numpy(to_array(image))[None], lambda image: {"pixel_values": [to_array(image)]}],
)
def test_a_function_is_taken_apart_into_resizing_and_normalising(transform) -> None:
    loaded = overfocus.wrap(nn.Conv2d(3, 8, 4, 4), transform, name="mine", class_names=list("abcdefgh"))
    assert (loaded.name, loaded.input_size, loaded.num_classes) == ("mine", (3, 32, 48), 8)
    np.testing.assert_allclose(loaded.mean, 0.4, atol=1e-5)
    np.testing.assert_allclose(loaded.std, 0.2, atol=1e-5)
    np.testing.assert_array_equal(loaded.preprocess.resize(NOISE), np.asarray(NOISE.resize((48, 32))))
    torch.testing.assert_close(loaded.preprocess(NOISE), torch.from_numpy(to_array(NOISE)), rtol=0, atol=1e-5)


def test_a_transform_of_timm_gives_what_it_gave() -> None:
    transform = timm.data.create_transform((3, 64, 64), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), crop_pct=0.9)
    preprocess = Preprocess.from_callable(transform)
    torch.testing.assert_close(preprocess(NOISE), transform(NOISE), rtol=0, atol=1e-5)
    assert preprocess == Preprocess.from_callable(transform)


def test_grey_input() -> None:
    preprocess = Preprocess.from_callable(lambda image: np.asarray(image.convert("L").resize((28, 28)))[None] / 255.0)
    assert preprocess.input_size == (1, 28, 28)
    np.testing.assert_allclose(preprocess(NOISE)[0] * 255, np.asarray(NOISE.convert("L").resize((28, 28))), atol=0.51)


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (lambda _: torch.rand(3, 8, 8), "random"),
        (lambda image: np.asarray(image).transpose(2, 0, 1) / 255, "other sizes"),
        (lambda image: (to_array(image) * 0.2 + 0.4) ** 2, "something else"),
        (lambda image: to_array(image)[::-1].copy(), "exchanges or mixes"),
        (lambda image: to_array(image).transpose(1, 2, 0), "1 or 3, height, width"),
        (lambda image: image.no_such_thing, "no_such_thing"),
        (lambda _: None, "1 or 3, height, width"),
    ],
)
def test_functions_that_are_no_preprocessing_of_one_image(transform, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        overfocus.wrap(nn.Conv2d(3, 8, 4), transform)
    assert "\n" not in str(caught.value)


def test_sizes_and_assumptions() -> None:
    loaded = overfocus.wrap(nn.Conv2d(3, 8, 4), input_size=(32, 64), std=(0.5,))
    assert (loaded.input_size, loaded.mean, loaded.std) == ((3, 32, 64), IMAGENET_MEAN, (0.5, 0.5, 0.5))
    assert loaded.notes == ("preprocessing assumed: ImageNet's mean; the module does not say (pass preprocess=, or mean=)",)
    assert loaded.num_classes == 0
    for size, words in ((None, "input_size=224"), (0, "1 to"), ((3, 4, 5, 6), "input_size=224"), (10**9, "1 to")):
        with pytest.raises(CheckpointError, match=words):
            overfocus.wrap(nn.Conv2d(3, 8, 4), input_size=size)
    with pytest.raises(CheckpointError, match="either preprocess or"):
        overfocus.wrap(nn.Conv2d(3, 8, 4), Preprocess(), input_size=3)
    with pytest.raises(CheckpointError, match=r"torch\.nn\.Module"):
        overfocus.wrap("model.pth")  # type: ignore[arg-type]


def test_what_is_in_memory_is_not_loaded_again(vit: nn.Module) -> None:
    loaded = overfocus.wrap(vit, name="mine")
    assert resolve_model(loaded) is loaded
    assert not vit.training
    with pytest.raises(CheckpointError, match="image_size: options of loading"):
        resolve_model(vit, image_size=96)
    assert resolve_model(None).name == "VisionTransformer"
    for empty in ("", " "):
        with pytest.raises(CheckpointError, match="got an empty string"):
            resolve_model(empty)
