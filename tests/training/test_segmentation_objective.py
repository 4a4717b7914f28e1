"""Loss, scores, ADL and learning rates of segmentation, against hand-made values and independent computations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import overfocus
from overfocus.checkpoints.build import create
from overfocus.errors import TrainingError
from overfocus.models import add_tap
from overfocus.training.diversity import Diversity
from overfocus.training.launch import synchronise_norms
from overfocus.training.objective import Segmentation
from overfocus.training.optimisation import LearningRate, make_optimizer
from overfocus.training.recipe import load_recipe

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
