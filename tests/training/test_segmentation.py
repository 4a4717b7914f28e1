"""Segmentation: augmentation with masks, loss, scores, ADL and learning rates against hand-made values, and what is refused."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import overfocus
from overfocus.checkpoints.build import create
from overfocus.datasets import is_segmented
from overfocus.errors import OverfocusError, TrainingError
from overfocus.models import add_tap
from overfocus.preprocessing import Preprocess
from overfocus.training.augmentation import MaskAugmentation, distort, largest_share
from overfocus.training.data import seed_all
from overfocus.training.loop import LearningRate, make_optimizer
from overfocus.training.objective import Diversity, Segmentation
from overfocus.training.session import synchronise_norms
from overfocus.training.settings import load_recipe
from overfocus.training.train import Training

SMALL = load_recipe("segmentation_small")
PAPER = load_recipe("segmentation")
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}


def masks_of(shape: tuple[int, ...], classes: int, ignored: float = 0.3) -> torch.Tensor:
    random = np.random.default_rng(0)
    masks = random.integers(0, classes, shape)
    masks[random.random(shape) < ignored] = 255
    return torch.from_numpy(masks.astype(np.uint8))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_mean_over_counted_pixels_of_upsampled_logits(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 4, 5), masks_of((2, 16, 20), 3)
    loss = Segmentation(SMALL.changed({"label_smoothing": smoothing}), 3).loss(logits, masks)
    full = F.interpolate(logits, size=(16, 20), mode="bilinear", align_corners=False).log_softmax(1).numpy()
    expected = []
    for image, row, column in np.argwhere(masks.numpy() != 255):
        pixel = full[image, :, row, column]
        expected.append(-(1 - smoothing) * pixel[masks[image, row, column]] - smoothing * pixel.mean())
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)


def test_batch_without_counted_pixels_gives_zero_and_no_gradient() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = Segmentation(SMALL, 3).loss(logits, torch.full((1, 8, 8), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_scores_of_a_set_add_up_over_batches() -> None:
    torch.manual_seed(0)
    objective, logits, masks = Segmentation(SMALL, 4), torch.randn(3, 4, 8, 8), masks_of((3, 8, 8), 3)
    logits[:, 3] = -100  # a class that neither occurs nor is predicted
    sums = objective.score(logits[:2], masks[:2]).double() + objective.score(logits[2:], masks[2:]).double()
    assert len(sums) == objective.sums
    columns = objective.summarise(sums)
    predicted, truth = logits.argmax(1).numpy(), masks.numpy()
    counted = truth != 255
    ious = [
        np.sum((predicted == number) & (truth == number)) / np.sum(((predicted == number) | (truth == number)) & counted)
        for number in range(3)
    ]
    assert columns["validation_miou"] == pytest.approx(np.mean(ious))
    assert columns["validation_accuracy"] == pytest.approx(np.mean(predicted[counted] == truth[counted]))
    expected = F.cross_entropy(logits, masks.long(), ignore_index=255).item()
    assert columns["validation_loss"] == pytest.approx(expected, rel=1e-5)
    right, answers = objective.right(logits, masks).tolist()
    assert (right, answers) == (np.sum((predicted == truth) & counted), counted.sum())


def test_a_set_without_counted_pixels_has_no_score() -> None:
    objective = Segmentation(SMALL, 3)
    columns = objective.summarise(objective.score(torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255, dtype=torch.uint8)))
    assert columns["validation_loss"] == 0
    assert math.isnan(columns["validation_miou"])


def test_adl_counts_at_one_image() -> None:
    torch.manual_seed(0)
    model = create("VisionTransformer_segformer", VIT).train()
    diversity, objective = Diversity(SMALL.changed({"adl": 1.0, "adl_threshold": 0.5}), 1), Segmentation(SMALL, 3)
    images = torch.randn(2, 3, 32, 32)
    losses = []
    for batch in (images[:1], images[1:], images):
        with diversity.watch(objective.network(model), active=True) as adl:
            model.eval()(batch)
            assert adl is not None
            losses.append(adl.loss())
    first, second, both = losses
    assert first.item() > 0.1
    assert both.item() == pytest.approx((first.item() + second.item()) / 2, rel=1e-5)
    first.backward()
    gradient = model.backbone.model.blocks[0].attn.qkv.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_backbones_without_attention_have_nothing_to_diversify() -> None:
    model = create("resnet18_segformer", {"num_classes": 2})
    with Diversity(PAPER, 1).watch(model, active=True) as adl:
        model.eval()(torch.zeros(1, 3, 32, 32))
        assert adl is not None
        with pytest.raises(TrainingError, match="adl: no layer of SegmentationModel attends between tokens") as caught:
            adl.loss()
    assert "\n" not in str(caught.value)


def test_synchronised_norms_keep_parameters_and_output() -> None:
    model = create("fan_tiny_8_p4_hybrid_segformer", {"num_classes": 2}).eval()
    block = model.backbone.blocks[0]
    model_of_vit = add_tap(create("VisionTransformer_segformer", VIT).eval(), branches=2)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = model(images), model_of_vit(images)
    parameters = dict(model.named_parameters())
    for one in (model, model_of_vit):
        synchronise_norms(one)
    assert isinstance(model.decode_head.linear_fuse.bn, torch.nn.SyncBatchNorm)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in block.mlp.modules())
    kinds = {type(module) for module in model_of_vit.backbone.model.blocks[0].dilation_predictor.modules()}
    assert torch.nn.SyncBatchNorm not in kinds
    assert torch.nn.BatchNorm2d in kinds
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == {
        name: id(parameter) for name, parameter in parameters.items()
    }
    with torch.no_grad():
        assert torch.equal(model(images), before[0])
        assert torch.equal(model_of_vit(images), before[1])


def test_the_papers_recipe() -> None:
    assert (PAPER.iterations, PAPER.epochs, PAPER.batch_size, PAPER.learning_rate) == (160_000, None, 1, 6e-5)
    assert (PAPER.schedule, PAPER.power, PAPER.warmup_iterations, PAPER.weight_decay) == ("poly", 1.0, 1500, 0.01)
    assert (PAPER.head_rate, PAPER.largest_share, PAPER.resize_scale, PAPER.adl) == (10, 0.75, (0.5, 2.0), 1.0)


def test_learning_rates_of_the_paper() -> None:
    model = create("VisionTransformer_segformer", VIT)
    optimizer = make_optimizer(model, PAPER, 4)
    rate = LearningRate(optimizer, PAPER, steps_per_epoch=743)
    assert rate.steps == 160_000
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for step in (0, 1, 750, 1499, 1500, 80_000, 159_999):
        expected = 6e-5 * (1e-6 + (1 - 1e-6) * step / 1500 if step < 1500 else 1 - step / 160_000)
        assert rate.set(step) == pytest.approx(10 * expected, rel=1e-5)
        for group in optimizer.param_groups:
            heads = {names[id(parameter)].startswith("decode_head.") for parameter in group["params"]}
            assert len(heads) == 1
            assert group["lr"] == pytest.approx(expected * (10 if heads.pop() else 1), rel=1e-5)
    listed = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(map(id, listed)) == sorted(map(id, trained))
    undecayed = {names[id(p)] for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert {"backbone.model.pos_embed", "backbone.model.cls_token", "decode_head.linear_pred.bias"} <= undecayed
    assert "decode_head.linear_pred.weight" not in undecayed


def test_epochs_and_iterations_take_each_others_place() -> None:
    by_epochs = PAPER.changed({"epochs": 3, "warmup_epochs": 1})
    assert (by_epochs.epochs, by_epochs.iterations, by_epochs.warmup_iterations) == (3, None, None)
    by_steps = SMALL.changed({"iterations": 70, "warmup_iterations": 7})
    assert (by_steps.epochs, by_steps.iterations, by_steps.warmup_epochs) == (None, 70, 0)
    optimizer = make_optimizer(create("VisionTransformer_segformer", VIT), by_steps, 8)
    assert LearningRate(optimizer, by_steps, steps_per_epoch=20).steps == 70
    with pytest.raises(TrainingError, match="either epochs or iterations"):
        SMALL.changed({"epochs": 2, "iterations": 9})
    with pytest.raises(TrainingError, match="a warm-up of 70 steps leaves nothing of 70"):
        LearningRate(optimizer, by_steps.changed({"warmup_iterations": 70}), 20)
    with pytest.raises(TrainingError, match="head_rate needs a schedule"):
        PAPER.changed({"schedule": "none"})


def test_adl_of_a_trained_backbone_is_that_of_its_attention() -> None:
    """The loss that training sees is that of the maps that `capture` gives."""
    model = create("VisionTransformer_segformer", VIT).eval()
    images = torch.randn(1, 3, 32, 32)
    with Diversity(PAPER, 1).watch(model, active=True) as adl:
        model(images)
        assert adl is not None
        loss = adl.loss()
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(images)
    expected = overfocus.losses.AttentionDiversificationLoss(2.0)([one.weights for one in captured.maps], prefix_tokens=1)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


PREPROCESS = Preprocess((3, 24, 32), crop_pct=1.0)


def coordinates(height: int, width: int) -> tuple[Image.Image, np.ndarray[Any, Any]]:
    """An image whose red value is its mask's class: whatever happens to one must have happened to the other."""
    numbers = np.add.outer(np.arange(height) // 8, 2 * (np.arange(width) // 8)).astype(np.uint8)
    return Image.fromarray(np.stack([numbers * 10] * 3, -1)), numbers


@pytest.mark.parametrize(("height", "width"), [(40, 60), (24, 32), (10, 80), (7, 5)])
def test_image_and_mask_stay_together(height: int, width: int) -> None:
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


def test_scaled_image_and_mask_stay_together() -> None:
    """Inside the 8×8 squares, away from their borders, a scaled image must show the colour of its mask's class."""
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
    image = Image.fromarray(np.zeros((24, 400, 3), np.uint8))
    shares = {}
    for limit in (0.75, 1.0):
        augment = MaskAugmentation(PREPROCESS, SMALL.changed({"resize_scale": [1.0, 1.0], "largest_share": limit}))
        seed_all(1)
        shares[limit] = [largest_share(augment(image, mask)[1]) for _ in range(60)]
    within = {limit: np.mean(np.array(found) < 0.75) for limit, found in shares.items()}
    # a random crop shows enough of class 1 in about a tenth of the cases, ten attempts miss it in a third
    assert within[1.0] < 0.3
    assert within[0.75] > 0.45


def test_share_of_the_largest_class() -> None:
    assert largest_share(torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)) == pytest.approx(2 / 3)
    assert largest_share(torch.full((2, 2), 255, dtype=torch.uint8)) == 1


def test_photometric_distortion_changes_colours_only() -> None:
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.integers(60, 190, (3, 20, 20)).astype(np.uint8))
    seed_all(0)
    versions = [distort(image) for _ in range(40)]
    assert all(version.shape == image.shape and version.dtype == torch.uint8 for version in versions)
    unchanged = sum(torch.equal(version, image) for version in versions)
    assert 0 <= unchanged < 10  # one in sixteen
    means = np.array([version.float().mean().item() for version in versions]) / image.float().mean().item()
    assert 0.8 < means.min() < 0.97 < 1.03 < means.max() < 1.2


def test_grey_models_get_grey_images() -> None:
    preprocess = Preprocess((1, 24, 32), (0.5,), (0.5,), crop_pct=1.0)
    image, _ = MaskAugmentation(preprocess, SMALL)(*coordinates(40, 60))
    assert image.shape == (1, 24, 32)


Train = Callable[..., Training]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "detection"}, "task must be classification or segmentation, got 'detection'"),
        ({"objective": "mae"}, "objective mae trains no segmentation"),
        ({"recipe": "fan"}, "mixup changes images but not their masks"),
        ({"changes": {"erasing": 0.2}}, "erasing changes images but not their masks"),
        ({"model": "vit_tiny_patch16_225", "model_args": {}}, "no architecture 'vit_tiny_patch16_225'; the nearest are vit_tiny"),
        ({"model": "resnet18", "model_args": {}, "changes": {"adl": 1}}, "adl: no layer of SegmentationModel attends"),
        ({"model_args": {"deepness": 3}}, "VisionTransformer_segformer cannot be built with"),
        ({"task": "classification"}, "holds images with masks; train on them with --task segmentation"),
        ({"class_names": ["a"]}, "expected from 2 to 254 classes, got 1"),
        ({"changes": {"resize_scale": [0, 1]}}, "resize_scale must be above 0 and at most 16, got 0.0"),
        ({"changes": {"interpolation": "cubist"}}, "no interpolation 'cubist' for segmentation; there are"),
        ({"changes": {"resize_scale": [2, 1]}}, "resize_scale must go from small to large, got 2.0 to 1.0"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(train_masks: Train, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OverfocusError, match=re.escape(words)) as caught:
        train_masks(**options)
    assert "\n" not in str(caught.value)


def test_a_segmentation_model_is_no_classifier(train_masks: Train, shapes_folder: Path) -> None:
    with pytest.raises(OverfocusError, match="is a segmentation model; train it with --task segmentation"):
        train_masks(task="classification", data=shapes_folder, model="VisionTransformer_segformer", recipe="small")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((40, 47), np.uint8), "its image's 48×40 pixels, got 47×40"),
        (np.full((40, 48), 3, np.uint8), "holds 3, not among the 3 classes"),
        (np.zeros((40, 48, 3), np.uint8), "got colours (RGB)"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_mask_that_does_not_fit_is_named(
    train_masks: Train, squares: Path, tmp_path: Path, mask: Any, words: str, split: str
) -> None:
    data = shutil.copytree(squares, tmp_path / "data")
    Image.fromarray(mask).save(data / "masks" / split / "3.png")
    assert is_segmented(data)
    with pytest.raises(OverfocusError, match=re.escape(words)) as caught:
        train_masks(data=data)
    assert str(caught.value).startswith(str(data / "masks" / split / "3.png"))
    assert "\n" not in str(caught.value)


def test_other_settings_do_not_continue_a_training(train_masks: Train) -> None:
    training = train_masks()
    settings = json.loads((training.path / "training.json").read_text())["settings"]
    assert settings["task"] == "segmentation"
    with pytest.raises(OverfocusError, match="photometric True there, False asked for"):
        train_masks(changes={"photometric": False})
