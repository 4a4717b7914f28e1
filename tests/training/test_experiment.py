"""The intervals of the experiments, by hand and by simulation."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

Interval = Callable[[np.ndarray], tuple[float, float]]


@pytest.fixture
def crossed_interval(monkeypatch: pytest.MonkeyPatch) -> Interval:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    found: Interval = importlib.import_module("experiment_intervals").crossed_interval
    return found


def test_one_seed_is_students_interval_over_images(crossed_interval: Interval) -> None:
    values = np.random.default_rng(0).normal(1, 2, (1, 50))
    expected = stats.ttest_1samp(values[0], 0).confidence_interval()
    assert crossed_interval(values) == pytest.approx((expected.low, expected.high))


def test_seeds_that_differ_decide_with_their_few_degrees_of_freedom(crossed_interval: Interval) -> None:
    values = np.repeat(np.array([[0.1], [0.2], [0.6]]), 500, axis=1)
    expected = stats.ttest_1samp(values[:, 0], 0).confidence_interval()
    assert crossed_interval(values) == pytest.approx((expected.low, expected.high))


def test_nothing_that_varies(crossed_interval: Interval) -> None:
    assert crossed_interval(np.full((3, 10), 0.5)) == (0.5, 0.5)
    assert np.isnan(crossed_interval(np.zeros((3, 1)))).all()


@pytest.mark.parametrize(("of_seed", "of_image", "rest"), [(0.3, 1.0, 1.0), (0.02, 1.0, 2.0), (0.5, 0.1, 0.5)])
def test_the_interval_holds_at_least_what_it_says(
    crossed_interval: Interval, of_seed: float, of_image: float, rest: float
) -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        values = random.normal(0, of_seed, (3, 1)) + random.normal(0, of_image, (1, 80)) + random.normal(0, rest, (3, 80))
        low, high = crossed_interval(values)
        hits += low <= 0 <= high
    assert 0.94 <= hits / 1000 <= 0.999


def test_linearised_iou_has_the_mean_and_the_spread_of_the_iou(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    linearised_iou = importlib.import_module("stamps_tables").linearised_iou
    random = np.random.default_rng(0)
    unions = random.integers(0, 400, (200, 4)) * (random.random((200, 4)) < 0.6)
    unions[:, 3] = 0  # a class that does not occur
    intersections = (unions * random.random((200, 4))).astype(int)

    def iou(chosen: np.ndarray) -> float:
        return float((intersections[chosen].sum(0)[:3] / unions[chosen].sum(0)[:3]).mean())

    values = linearised_iou(intersections, unions)
    assert values.mean() == pytest.approx(iou(np.arange(200)))
    resampled = [iou(random.integers(0, 200, 200)) for _ in range(3000)]
    assert values.std() / np.sqrt(200) == pytest.approx(np.std(resampled), rel=0.08)


def test_flips_of_a_run_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    flips = importlib.import_module("experiment_sweep").flips
    keys = {"name": list("abab"), "corruption": ["fog"] * 4, "severity": [1, 1, 3, 3]}
    clean = {"name": list("ab"), "corruption": ["clean"] * 2, "severity": [0, 0]}
    predictions = pd.concat([pd.DataFrame(clean | {"agreement": 1.0}), pd.DataFrame(keys | {"agreement": [1.0, 1.0, 0.0, 1.0]})])
    layers = [
        pd.DataFrame(keys | {"received_shift": moved}) for moved in ([0.1, 0.2, 0.2, 0.3], [0.1, 0.2, 0.4, 0.1])
    ]  # means over the layers: 0.1, 0.2, 0.3 and 0.2
    table = pd.concat([pd.DataFrame(clean | {"received_shift": np.nan}), *layers])
    assert flips(SimpleNamespace(table=table, predictions=predictions)) == {"flipped": 0.25, "flip_auroc": 1.0}


def test_each_model_of_the_sweep_has_the_baseline_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    experiment = importlib.import_module("experiment")
    assert experiment.reference("TAP+ADL, 3 epochs") == "baseline, 3 epochs"
    assert experiment.reference("ADL, λ = 3") == experiment.reference("TAP") == "baseline"
    assert set(map(experiment.reference, experiment.SWEEP)) <= {*experiment.SWEEP, *experiment.VARIANTS}
