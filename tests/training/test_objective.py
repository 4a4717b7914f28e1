"""Losses, augmented patches, learning rate and the weight of ADL, against numpy and by hand."""

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from timm.models.vision_transformer import VisionTransformer

from overfocus.errors import TrainingError
from overfocus.losses import diversify
from overfocus.training.data import derived_seed, seed_all, seed_processor
from overfocus.training.loop import LearningRate, make_optimizer
from overfocus.training.objective import FIRST_PROBES_EVERY, PROBE_EVERY, Classification, Diversity, augment_patches
from overfocus.training.settings import Recipe, load_recipe

SMALL = load_recipe("small")


def small_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3)


def test_label_smoothing_against_numpy() -> None:
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1, 1, 2, 0])
    targets = np.full((6, 4), 0.1 / 4)
    targets[np.arange(6), labels] += 0.9
    expected = -(targets * log_softmax(logits.double().numpy(), axis=1)).sum(1).mean()
    assert Classification(SMALL, 4).loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)
    soft = torch.tensor(targets, dtype=torch.float32)
    assert Classification(SMALL, 4).loss(logits, soft).item() == pytest.approx(expected, rel=1e-6)


def test_mixed_targets_have_the_labels_of_both_images() -> None:
    objective = Classification(SMALL.changed({"mixup": 1.0, "label_smoothing": 0.0}), 4)
    images = torch.eye(4).view(4, 1, 1, 4).expand(4, 1, 4, 4).clone()
    seed_all(1)
    (part,) = objective.parts(images, torch.arange(4))
    assert part.diversified
    torch.testing.assert_close(part.inputs[:, 0, 0], part.targets)  # pixel i says how much of image i there is
    assert 0 < part.targets[0, 0] < 1
    assert part.targets[0, 0] + part.targets[0, 3] == pytest.approx(1)


def test_validation_sums_have_no_smoothing() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1, 1])
    objective = Classification(SMALL, 2)
    loss, right, count = objective.score(logits, labels).tolist()
    assert (right, count) == (2, 3)
    assert objective.summarise(torch.tensor([loss, right, count])) == {
        "validation_loss": pytest.approx(loss / 3),
        "validation_accuracy": pytest.approx(2 / 3),
    }
    assert loss == pytest.approx(math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(3)), rel=1e-6)


def test_patches_are_augmented_one_by_one() -> None:
    torch.manual_seed(0)
    images = torch.rand(40, 3, 40, 36)
    augmented = augment_patches(images, 16)
    assert torch.equal(augmented[:, :, 32:], images[:, :, 32:])
    assert torch.equal(augmented[:, :, :, 32:], images[:, :, :, 32:])
    changed = (augmented != images)[:, :, :32, :32].reshape(40, 3, 2, 16, 2, 16).any((1, 3, 5))
    assert 0.15 < changed.double().mean() < 0.4  # 1 − 0.9³ = 0.271 of 160 patches
    assert (augmented.amin((0, 2, 3)) >= images.amin((0, 2, 3))).all()
    assert (augmented.amax((0, 2, 3)) <= images.amax((0, 2, 3))).all()
    assert torch.equal(augment_patches(torch.ones(4, 1, 16, 16), 16), torch.ones(4, 1, 16, 16))


def test_rvt_takes_adl_of_the_plain_images_only() -> None:
    objective = Classification(load_recipe("rvt").changed({"mixup": 0, "cutmix": 0}), 2)
    images = torch.rand(2, 3, 16, 16)
    augmented, plain = objective.parts(images, torch.tensor([0, 1]))
    assert (augmented.diversified, plain.diversified) == (False, True)
    assert torch.equal(plain.inputs, images)


def test_learning_rate_is_warmed_up_and_follows_a_cosine() -> None:
    recipe = SMALL.changed({"epochs": 10, "warmup_epochs": 2, "warmup_rate": 1e-5, "minimum_rate": 1e-6, "cooldown_epochs": 1})
    rate = LearningRate(make_optimizer(small_vit(), recipe, 100), recipe, steps_per_epoch=5)
    assert rate.steps == 55
    top = recipe.learning_rate
    for step in range(55):
        low, half_turn = 1e-6, math.pi * min(step, 50) / 50
        expected = 1e-5 + (top - 1e-5) * step / 10 if step < 10 else low + (top - low) * (1 + math.cos(half_turn)) / 2
        assert rate.set(step) == pytest.approx(expected, rel=1e-6)
    assert rate.set(0) == pytest.approx(1e-5)


def test_learning_rate_is_scaled_with_the_images_of_a_step() -> None:
    assert make_optimizer(small_vit(), load_recipe("fan"), 512).param_groups[0]["lr"] == pytest.approx(4e-3 / 8)


def test_biases_norms_and_tokens_are_not_decayed() -> None:
    model = small_vit()
    groups = make_optimizer(model, SMALL, 100).param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert names == {name for name, _ in model.named_parameters() if name.endswith("weight") and "norm" not in name}


def test_unknown_optimisers_and_schedules() -> None:
    with pytest.raises(TrainingError, match="timm has no optimiser 'adamm'"):
        make_optimizer(small_vit(), SMALL.changed({"optimizer": "adamm"}), 100)
    recipe = SMALL.changed({"schedule": "cosin"})
    optimizer = make_optimizer(small_vit(), recipe, 100)
    with pytest.raises(TrainingError, match="no schedule 'cosin'"):
        LearningRate(optimizer, recipe, 5)


def test_weight_of_adl_rises_during_its_warmup() -> None:
    diversity = Diversity(SMALL.changed({"adl": 2.0, "adl_warmup": 4}), steps_per_epoch=10)
    assert [diversity.weight(step) for step in (0, 10, 20, 40, 100)] == [0.0, 0.5, 1.0, 2.0, 2.0]
    assert Diversity(SMALL.changed({"adl": 2.0}), 10).weight(0) == 2.0


def gradient_norm(loss: torch.Tensor, model: torch.nn.Module) -> float:
    model.zero_grad()
    loss.backward(retain_graph=True)
    parts = [parameter.grad.double().flatten() for parameter in model.parameters() if parameter.grad is not None]
    return float(np.linalg.norm(torch.cat(parts).numpy()))


def test_auto_keeps_the_gradient_of_adl_at_the_share_asked_for() -> None:
    recipe = SMALL.changed({"adl": "auto", "adl_share": 0.25, "adl_threshold": 0.5})
    model, diversity = small_vit(), Diversity(recipe, 10)
    for block in model.blocks:
        block.attn.qkv.weight.data *= 20  # attention that is far from even
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 1])
    with diversify(model, threshold=0.5) as adl:
        task = torch.nn.functional.cross_entropy(model(images), labels)
        other = adl.loss()
    diversity.learn(float(diversity.measure(task, other, model)))
    weight = diversity.weight(0)
    assert weight * gradient_norm(other, model) == pytest.approx(0.25 * gradient_norm(task, model), rel=1e-4)
    assert [step for step in range(120) if diversity.due(step)] == [0, PROBE_EVERY, 2 * PROBE_EVERY]


@pytest.mark.parametrize("measured", [float("nan"), float("inf"), 0.0, 1e30])
def test_auto_leaves_out_what_makes_no_sense(measured: float) -> None:
    diversity = Diversity(SMALL.changed({"adl": "auto"}), 10)
    diversity.learn(measured)
    assert diversity.weight(5) == 0.0
    assert [step for step in range(12) if diversity.due(step)] == [0, FIRST_PROBES_EVERY, 2 * FIRST_PROBES_EVERY]
    diversity.learn(3.0)
    diversity.learn(measured)
    assert diversity.weight(5) == pytest.approx(3.0)
    diversity.learn(6.0)
    assert 3.0 < diversity.weight(5) < 6.0


def test_auto_without_any_gradient_of_adl() -> None:
    recipe: Recipe = SMALL.changed({"adl": "auto", "adl_threshold": 16})  # no entry is above 16 times uniform attention
    model, diversity = small_vit(), Diversity(recipe, 10)
    with diversity.watch(model, active=True) as adl:
        task = model(torch.rand(2, 3, 16, 16)).square().mean()
        assert adl is not None
        other = adl.loss()
    assert other.item() == 0
    diversity.learn(float(diversity.measure(task, other, model)))
    assert diversity.weight(0) == 0


def test_seeds_differ_in_each_part() -> None:
    seeds = {derived_seed(seed, part, number) for seed in range(5) for part in range(5) for number in range(20)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("seeding", [seed_all, seed_processor])
def test_seeding_fixes_all_that_augmentations_draw_from(seeding: Callable[[int], None]) -> None:
    def drawn() -> list[float]:
        return [random.random(), float(np.random.random()), float(torch.rand(()))]  # noqa: NPY002

    seeding(2**62 + 5)
    first, second = drawn(), drawn()
    seeding(2**62 + 5)
    assert drawn() == first != second
    torch.manual_seed(2**62 + 5)
    assert float(torch.rand(())) == first[2]


@pytest.mark.gpu
def test_seeding_reaches_the_gpu() -> None:
    seed_all(3)
    first = torch.rand(4, device="cuda")
    seed_all(3)
    assert torch.equal(torch.rand(4, device="cuda"), first)
