"""Pixel scores against numpy by hand and torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from overfocus.segmentation import class_iou, mean_iou, pixel_accuracy, pixel_scores


def random_maps(seed: int, classes: int, ignored: float = 0.2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    predicted, mask, clean = random.integers(0, classes, (3, 9, 7), np.uint8)
    mask[random.random(mask.shape) < ignored] = 255
    return predicted, mask, clean


def test_by_hand() -> None:
    predicted = np.array([[0, 0, 1, 2]], np.uint8)
    mask = np.array([[0, 1, 1, 255]], np.uint8)
    clean = np.array([[0, 1, 1, 1]], np.uint8)
    scores = pixel_scores(predicted, mask, clean, 4)
    assert scores.intersections.tolist() == [1, 1, 0, 0]
    assert scores.unions.tolist() == [2, 2, 0, 0]  # class 2 stands where the mask ignores
    assert scores.pixel_accuracy == pytest.approx(2 / 3)
    assert scores.image_iou == 0.5
    assert scores.agreement == pytest.approx(2 / 3)


def test_without_a_mask_only_agreement_is_known() -> None:
    scores = pixel_scores(np.array([[0, 1]], np.uint8), None, np.array([[0, 0]], np.uint8), 2)
    assert scores.agreement == 0.5
    assert np.isnan([scores.pixel_accuracy, scores.image_iou]).all()
    assert scores.intersections.dtype == scores.unions.dtype == np.int64
    assert not scores.unions.any()


def test_a_mask_that_ignores_everything() -> None:
    empty = np.full((2, 2), 255, np.uint8)
    scores = pixel_scores(np.zeros((2, 2), np.uint8), empty, np.zeros((2, 2), np.uint8), 2)
    assert np.isnan([scores.pixel_accuracy, scores.image_iou, scores.agreement]).all()
    assert scores.unions.tolist() == [0, 0]


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_against_pixel_by_pixel_sets(seed: int, classes: int) -> None:
    predicted, mask, clean = random_maps(seed, classes)
    scores = pixel_scores(predicted, mask, clean, classes)
    counted = mask != 255
    ratios = []
    for number in range(classes):
        ours, theirs = (predicted == number) & counted, (mask == number) & counted
        assert scores.intersections[number] == (ours & theirs).sum()
        assert scores.unions[number] == (ours | theirs).sum()
        if (ours | theirs).any():
            ratios.append((ours & theirs).sum() / (ours | theirs).sum())
    assert scores.image_iou == pytest.approx(np.mean(ratios))
    assert scores.pixel_accuracy == pytest.approx((predicted == mask)[counted].mean())
    assert scores.agreement == pytest.approx((predicted == clean)[counted].mean())


def test_a_set_agrees_with_torchmetrics() -> None:
    classes = 5
    jaccard = MulticlassJaccardIndex(classes, average="macro", ignore_index=255)
    per_class = MulticlassJaccardIndex(classes, average="none", ignore_index=255)
    accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=255)
    intersections, unions = np.zeros((2, classes), np.int64)
    for seed in range(4):
        # class 4 never occurs: it must not pull the mean down
        predicted, mask, _ = random_maps(seed, classes - 1)
        scores = pixel_scores(predicted, mask, None, classes)
        intersections, unions = intersections + scores.intersections, unions + scores.unions
        for metric in (jaccard, per_class, accuracy):
            metric.update(torch.from_numpy(predicted.astype(np.int64)), torch.from_numpy(mask.astype(np.int64)))
    assert float(mean_iou(intersections, unions)) == pytest.approx(float(jaccard.compute()), abs=1e-6)
    np.testing.assert_allclose(class_iou(intersections, unions)[:4], per_class.compute()[:4], atol=1e-6)
    assert np.isnan(class_iou(intersections, unions)[4])
    assert float(pixel_accuracy(intersections, unions)) == pytest.approx(float(accuracy.compute()), abs=1e-6)


def test_several_sets_at_once() -> None:
    random = np.random.default_rng(0)
    unions = random.integers(1, 50, (6, 4))
    intersections = (unions * random.random((6, 4))).astype(np.int64)
    unions[2] = intersections[2] = 0
    found = mean_iou(intersections, unions)
    assert np.isnan(found[2])
    assert found[0] == pytest.approx(np.mean(intersections[0] / unions[0]))


@pytest.mark.parametrize(
    ("mask", "clean", "words"),
    [
        (np.zeros((2, 3), np.uint8), None, r"expected a mask of the prediction's size \(2, 2\), got \(2, 3\)"),
        (None, np.zeros((3, 2), np.uint8), r"expected a clean prediction of the prediction's size \(2, 2\), got \(3, 2\)"),
        (np.full((2, 2), 7, np.uint8), None, "expected classes 0 … 2 in the mask, got 7"),
    ],
)
def test_what_makes_no_sense(mask: np.ndarray | None, clean: np.ndarray | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pixel_scores(np.zeros((2, 2), np.uint8), mask, clean, 3)
