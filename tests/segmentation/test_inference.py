"""Images whole, in windows, mirrored and at several scales."""

import re
from collections.abc import Iterator

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from overfocus.errors import RunError
from overfocus.models.segmentation import segmentation_model
from overfocus.segmentation.inference import Inference, only_size, sliding_logits


def random_images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def vit(**arguments: object) -> nn.Module:
    torch.manual_seed(0)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2} | arguments
    return segmentation_model(VisionTransformer(**settings), num_classes=3).eval()  # type: ignore[arg-type]


class Pixels(nn.Module):
    """A model of any size: logits of a pixel follow from its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images)
        return logits


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_a_image_of_the_window_is_taken_as_it_is() -> None:
    model = vit()
    inference = Inference((32, 32), (24, 24), together=1, only=only_size(model))
    images = random_images(32, 32)
    torch.testing.assert_close(inference.logits(model, images), model(images))
    assert inference.logits(model, images).shape[2:] == (4, 4)  # not upsampled
    assert inference.windows((32, 32)) == 1


def test_larger_images_go_in_windows() -> None:
    model = vit()
    inference = Inference((32, 32), (24, 24), together=3, only=(32, 32))
    images = random_images(40, 64)
    torch.testing.assert_close(inference.logits(model, images), sliding_logits(model, images, (32, 32), (24, 24), 4))
    assert inference.windows((40, 64)) == 2 * 3


def test_a_smaller_image_makes_the_window_smaller() -> None:
    model = Pixels()
    inference = Inference((32, 32), (24, 24), together=2)
    torch.testing.assert_close(inference.logits(model, random_images(20, 30)), model(random_images(20, 30)))
    found = inference.logits(model, random_images(20, 40))
    torch.testing.assert_close(found, sliding_logits(model, random_images(20, 40), (20, 32), (20, 24), 2))


def test_a_model_of_one_size_sees_a_smaller_image_padded() -> None:
    model = vit()
    inference = Inference((32, 32), (24, 24), together=2, only=only_size(model))
    found = inference.logits(model, random_images(20, 30))
    whole = model(F.pad(random_images(20, 30), (0, 2, 0, 12)))
    expected = F.interpolate(whole, size=(32, 32), mode="bilinear")[:, :, :20, :30]
    torch.testing.assert_close(found, expected)
    assert inference.logits(model, random_images(20, 50)).shape == (2, 3, 20, 50)


def test_mirrored_and_scaled_versions_average_their_probabilities() -> None:
    model = Pixels()
    images = random_images(16, 24)
    inference = Inference(None, (0, 0), together=2, flip=True, scales=(1.0, 0.5))
    small = F.interpolate(images, size=(8, 12), mode="bilinear", antialias=True)
    versions = [
        model(images),
        model(images.flip(3)).flip(3),
        F.interpolate(model(small), size=(16, 24), mode="bilinear"),
        F.interpolate(model(small.flip(3)), size=(16, 24), mode="bilinear").flip(3),
    ]
    expected = torch.stack([version.softmax(1) for version in versions]).mean(0)
    torch.testing.assert_close(inference.logits(model, images).softmax(1), expected)


def test_flipping_alone_is_symmetric() -> None:
    model = Pixels()
    inference = Inference((16, 16), (12, 12), together=2, flip=True)
    images = random_images(16, 30)
    torch.testing.assert_close(inference.logits(model, images.flip(3)).flip(3), inference.logits(model, images))


def test_which_models_take_one_size_only() -> None:
    assert only_size(vit()) == (32, 32)
    assert only_size(vit(dynamic_img_size=True)) is None
    assert only_size(segmentation_model(timm.create_model("resnet10t"), 3)) is None


def test_what_a_model_cannot_take() -> None:
    with pytest.raises(RunError, match=re.escape("takes 32×32 pixels only, got an image of 40×32 to be taken whole")):
        Inference(None, (0, 0), together=1, only=(32, 32)).logits(vit(), random_images(32, 40))
    with pytest.raises(RunError, match=re.escape("the model takes no inputs of 20×32 pixels")):
        Inference(None, (0, 0), together=1).logits(vit(dynamic_img_size=True), random_images(32, 20))
