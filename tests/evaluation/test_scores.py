"""Scores, calibration and corruption errors against numpy, torchmetrics and by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.special import log_softmax
from timm.models.vision_transformer import VisionTransformer
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

import overfocus
from overfocus.corruptions import GROUPS
from overfocus.evaluation.corruption_error import ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS, corruption_error
from overfocus.evaluation.results import errors_of, measure_predictions
from overfocus.probes.predictions import PREDICTION, SCORES, score
from overfocus.runs.description import Pixels


def scored(*arguments):
    """The columns as arrays."""
    return {name: column.double().numpy() for name, column in score(*arguments).items()}


LOGITS = torch.randn(60, 7, generator=torch.Generator().manual_seed(0)) * 2
TARGETS = torch.randint(0, 7, (60,), generator=torch.Generator().manual_seed(1))


def test_scores_against_numpy() -> None:
    columns = scored(LOGITS, TARGETS, None)
    assert tuple(columns) == (*PREDICTION, *SCORES)
    logits, targets = LOGITS.double().numpy(), TARGETS.numpy()
    np.testing.assert_array_equal(columns["predicted"], logits.argmax(1))
    np.testing.assert_allclose(
        columns["negative_log_likelihood"], -log_softmax(logits, axis=1)[np.arange(60), targets], rtol=1e-5
    )
    five = np.argsort(-logits, axis=1)[:, :5]
    np.testing.assert_array_equal(columns["correct_top5"], (five == targets[:, None]).any(1))
    assert np.isnan(columns["agreement"]).all()


def test_restricted_predictions_leave_the_other_classes_out_before_the_softmax() -> None:
    allowed = torch.tensor([1, 4, 6])
    targets = allowed[torch.arange(60) % 3]
    columns = scored(LOGITS, targets, None, allowed)
    logits = LOGITS.double().numpy()[:, [1, 4, 6]]
    np.testing.assert_array_equal(columns["predicted"], np.array([1, 4, 6])[logits.argmax(1)])
    np.testing.assert_allclose(columns["confidence"], np.exp(log_softmax(logits, axis=1)).max(1), rtol=1e-5)
    expected = -log_softmax(logits, axis=1)[np.arange(60), np.arange(60) % 3]
    np.testing.assert_allclose(columns["negative_log_likelihood"], expected, rtol=1e-5, atol=1e-6)
    assert np.isnan(columns["correct_top5"]).all()


@pytest.mark.parametrize(("classes", "defined"), [(4, False), (5, False), (6, True)])
def test_top5_is_of_more_than_five_classes(classes: int, defined: bool) -> None:
    columns = scored(LOGITS[:, :classes], TARGETS % classes, None)
    assert np.isfinite(columns["correct_top5"]).all() == defined
    assert np.isfinite(measure_predictions(table_of(columns))["top5"].item()) == defined


def test_labels_that_mean_no_class_have_no_scores() -> None:
    columns = scored(LOGITS[:2], torch.tensor([3, -1]), None)
    for name in ("correct", "correct_top5", "negative_log_likelihood"):
        assert np.isnan(columns[name]).tolist() == [False, True]


def test_corrupted_images_are_compared_with_their_clean_one() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    columns = scored(logits, torch.tensor([0, 0, 0]), torch.tensor([0, 0, 0]))
    np.testing.assert_array_equal(columns["agreement"], [np.nan, 1, 0])
    before, after = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))
    np.testing.assert_allclose(columns["confidence_drop"], [np.nan, 0, before - after], atol=1e-6)
    np.testing.assert_allclose(columns["output_cosine"], [np.nan, 1, 0], atol=1e-6)


def table_of(columns: dict[str, np.ndarray], corruption: str = "clean", severity: int = 0) -> pd.DataFrame:
    return pd.DataFrame(columns).assign(corruption=corruption, severity=severity)


def test_accuracy_and_calibration_are_those_of_torchmetrics() -> None:
    (row,) = measure_predictions(table_of(scored(LOGITS, TARGETS, None))).to_dict("records")
    assert row["images"] == 60
    for name, top in (("top1", 1), ("top5", 5)):
        expected = multiclass_accuracy(LOGITS, TARGETS, num_classes=7, top_k=top, average="micro")
        assert row[name] == pytest.approx(float(expected))
    expected = multiclass_calibration_error(LOGITS.softmax(-1), TARGETS, num_classes=7, n_bins=15)
    assert row["ece"] == pytest.approx(float(expected), rel=1e-5)
    assert row["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(LOGITS, TARGETS)), rel=1e-5)


def test_errors_of_a_table() -> None:
    right, wrong = (
        {"correct": [share], "confidence": [0.5], "correct_top5": [1], "negative_log_likelihood": [1]} for share in (1, 0)
    )
    predictions = pd.concat([table_of(right), table_of(wrong, "fog", 3), table_of(right, "fog", 3)])
    assert errors_of(measure_predictions(predictions)) == ({("fog", 3): 0.5}, 0.0)


ALEXNET = {(name, severity): error for name, error in ALEXNET_ERRORS.items() for severity in range(1, 6)}


def test_alexnet_has_100_percent_of_its_own_errors() -> None:
    assert set(ALEXNET_ERRORS) == set(GROUPS["common"])
    found = corruption_error(ALEXNET, ALEXNET_CLEAN_ERROR, made="ImageNet-C", imagenet=True, baseline=None)
    assert (found.relative_to, found.mce, found.relative_mce) == ("AlexNet", pytest.approx(100), pytest.approx(100))
    assert "on the fly" not in found.note


def test_mce_is_the_mean_of_ratios_of_sums() -> None:
    own = {("fog", 1): 0.2, ("fog", 3): 0.4, ("snow", 1): 0.3, ("snow", 3): 0.3}
    base = {("fog", 1): 0.4, ("fog", 3): 0.8, ("snow", 1): 0.1, ("snow", 3): 0.5}
    found = corruption_error(own, 0.1, made="on-the-fly", imagenet=False, baseline=("first", base, 0.2))
    assert found.corruptions == {"snow": pytest.approx(100.0), "fog": pytest.approx(50.0)}
    assert found.mce == pytest.approx(75)
    assert found.relative_mce == pytest.approx((100 * 0.4 / 0.8 + 100 * 0.4 / 0.2) / 2)
    assert found.note == (
        "over 2 of the 15 common corruptions, severities 1, 3, on-the-fly; relative to first, not to AlexNet; "
        "snow approximates the benchmark: its constants, another algorithm"
    )
    assert found.relative_note == ""


def test_only_what_both_have_counts_and_the_note_says_so() -> None:
    own = {("fog", 1): 0.2, ("fog", 3): 0.9, ("fog", 5): 0.9, ("jpeg_compression", 1): 0.3, ("snow", 1): 0.9}
    base = {("fog", 1): 0.4, ("jpeg_compression", 1): 0.3, ("fog", 2): 0.1}
    found = corruption_error(own, 0.1, made="on-the-fly", imagenet=False, baseline=("first", base, 0.2))
    assert found.corruptions == {"fog": pytest.approx(50), "jpeg_compression": pytest.approx(100)}
    assert found.mce == pytest.approx(75)
    assert found.relative_mce == pytest.approx((100 * 0.1 / 0.2 + 100 * 0.2 / 0.1) / 2)
    assert found.note == (
        "over 2 of the 15 common corruptions, severity 1, on-the-fly; relative to first, not to AlexNet; "
        "left out, as first was not measured there: snow (1), fog (3, 5)"
    )
    mixed = corruption_error(
        own, 0.1, made="on-the-fly", imagenet=False, baseline=("first", base | {("fog", 3): 0.9, ("fog", 5): 0.5}, 0.2)
    )
    assert mixed.note.startswith(
        "over 2 of the 15 common corruptions, severities fog (1, 3, 5), jpeg compression (1), on-the-fly;"
    )
    none = corruption_error(own, 0.1, made="on-the-fly", imagenet=False, baseline=("first", {("frost", 1): 0.5}, 0.2))
    assert (none.mce, none.relative_to) == (None, "")
    assert "first was measured under none of these corruptions at these severities" in none.note


@pytest.mark.parametrize(
    ("clean", "base_clean", "base", "words"),
    [
        (None, 0.1, {1: 0.2, 3: 0.4}, "no clean images were measured; give those that the tree was made from (--clean)"),
        (0.1, None, {1: 0.2, 3: 0.4}, "first was measured without clean images; evaluate it with them (--clean)"),
        (0.1, 0.3, {1: 0.2, 3: 0.4}, "first makes no more errors under fog than without"),
        (0.1, 0.2, {1: 0.1 + 0.2, 3: 0.1}, "first makes no more errors under fog than without"),
    ],
)
def test_why_relative_mce_is_undefined(clean: float | None, base_clean: float | None, base: dict[int, float], words: str) -> None:
    own = {("fog", 1): 0.2, ("fog", 3): 0.4, ("snow", 1): 0.3}
    others = {("fog", level): error for level, error in base.items()} | {("snow", 1): 0.6}
    found = corruption_error(own, clean, made="tree of corruptions", imagenet=False, baseline=("first", others, base_clean))
    assert found.mce is not None
    assert (found.relative_mce, found.relative_note) == (None, f"no relative mCE: {words}")


def test_nothing_is_normalised_silently() -> None:
    three = {("fog", severity): 0.5 for severity in (1, 3, 5)}
    without = corruption_error(three, 0.1, made="on-the-fly", imagenet=False, baseline=None)
    assert (without.mce, without.relative_to) == (None, "")
    assert "AlexNet's errors are those of ImageNet's classes" in without.note
    partial = corruption_error(three, 0.1, made="ImageNet-C", imagenet=True, baseline=None)
    assert partial.mce is None
    assert "severities 1 to 5 were not all measured" in partial.note
    made = corruption_error(ALEXNET, None, made="on-the-fly", imagenet=True, baseline=None)
    assert "not the published benchmark" in made.note
    assert made.relative_mce is None
    bar = corruption_error({("sparkles", 1): 0.5}, None, made="ImageNet-C-bar", imagenet=True, baseline=None)
    assert bar.note == "no mCE and no relative mCE: none of the 15 common corruptions was measured"
    perfect = corruption_error(three, 0.1, made="on-the-fly", imagenet=False, baseline=("first", dict.fromkeys(three, 0.0), 0.0))
    assert perfect.mce is None
    assert perfect.note.endswith("; first makes no error under fog")
    small = corruption_error(ALEXNET, 0.2, made="on-the-fly", imagenet=True, baseline=None, constants="cifar-c")
    assert small.mce is None
    assert "AlexNet's errors are those with ImageNet-C's constants" in small.note
    tree = corruption_error(ALEXNET, 0.2, made="tree of corruptions", imagenet=True, baseline=None)
    assert tree.note.endswith("the tree does not hold ImageNet-C's corruptions alone, so it may not be the published benchmark")


def test_what_mce_rests_on_is_named() -> None:
    side = Pixels(height=160, width=160, interpolation="bicubic", crop_pct=0.9, crop_mode="center")
    made = {"made": "on-the-fly", "imagenet": True, "baseline": None, "constants": "imagenet-c", "pixels": side}
    note = corruption_error(ALEXNET, 0.4, **made).note
    assert "on-the-fly, ImageNet-C constants at 160 pixels; relative to AlexNet's" in note
    assert (
        "motion blur and snow approximate the benchmark: its constants, another algorithm, AlexNet's errors are those on" in note
    )
    fog = {("fog", level): 0.5 for level in range(1, 6)}
    assert "approximate" not in corruption_error(fog, 0.4, **made).note
    tree = {"made": "ImageNet-C", "imagenet": True, "baseline": None, "pixels": side}
    published = corruption_error(ALEXNET, 0.4, **tree, tree_geometry="as-is").note
    assert "ImageNet-C, images as they are at 160×160 pixels, not cropped; relative to AlexNet's" in published
    assert "approximate" not in published
    other = corruption_error(ALEXNET, 0.4, **tree, tree_geometry="model").note
    assert "images resized and cropped to 0.9 once more, which the published protocol does not" in other


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_output_that_is_no_number_has_no_class(value: float, tmp_path: Path) -> None:
    """Else the first class would be predicted everywhere, and every prediction kept."""
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=7)
    torch.nn.init.constant_(model.head.bias[3:4], value)
    loaded = overfocus.wrap(model.eval(), name="broken")
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    with pytest.raises(overfocus.RunError, match="broken: the model's output holds NaN or infinity"):
        overfocus.analyze(loaded, tmp_path / "image.png", ["fog"], [3], tmp_path / "run", workers=0, progress=False)
