"""Arguments of another type than a function or setting takes: an error of ours in one line before any work, nothing else."""

import os
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import overfocus
from overfocus import metrics
from overfocus.errors import OverfocusError
from overfocus.limits import CheckSettings
from overfocus.settings import Settings
from overfocus.sweep import settings as sweeps
from overfocus.training.settings import Recipe, TrainSettings
from overfocus_cli.draw import CurvesSettings, FigureSettings, ReportSettings


class Hostile(str):
    """A text, a path, a number and a list that raises whatever is asked of it."""

    def _raise(self, *_: object) -> Any:
        raise KeyError("hostile")

    __repr__ = __str__ = __bool__ = __len__ = __fspath__ = __iter__ = __index__ = __float__ = _raise


class HostileObject(os.PathLike[str]):
    """The same, but no text."""

    __repr__ = __str__ = __bool__ = __len__ = __eq__ = __fspath__ = __iter__ = __index__ = __float__ = Hostile._raise  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


WRONG = (
    None, 3, -7, 2.5, float("nan"), float("inf"), True, "", "zebra", "\x1b[31m", "a\0b", "\ud800", "k" * 100_000, b"abc", [],
    [None], {"a": 1}, {1: 2}, {1, 2}, object(), int, len, np.zeros((2, 3)), torch.zeros(3), 3j, 10**400, Path("nowhere"),
    ("a", None), Hostile("a"), HostileObject(), bytearray(b"a"), memoryview(b"a"), {"a", "b"}, np.array(["a"]), np.array(3),
    torch.zeros(3, device="meta"), [[]], range(3), ..., np.bool_(True), 10**5000, "a/" * 5000,
)  # fmt: skip
SETTINGS: dict[type[Settings], dict[str, Any]] = {
    sweeps.InspectSettings: {},
    sweeps.AnalyzeSettings: {},
    sweeps.CompareSettings: {},
    sweeps.AblateSettings: {},
    sweeps.EvaluateSettings: {"checkpoints": ["a.pth"], "data": "photos"},
    sweeps.HeatMapSettings: {},
    Recipe: {"epochs": 1, "batch_size": 2, "learning_rate": 0.1},
    TrainSettings: {"data": "photos", "init": "a.pth"},
    CheckSettings: {"run": "run"},
    FigureSettings: {"kind": "layers", "runs": ["run"]},
    ReportSettings: {"folders": ["run"]},
    CurvesSettings: {"log": "log.csv"},
}


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_settings(kind: type[Settings]) -> None:
    for field in fields(kind):
        for value in WRONG if field.init else ():
            said = ""
            try:
                made = kind(**SETTINGS[kind] | {field.name: value})
                if isinstance(made, TrainSettings):
                    made.whole_recipe()
            except OverfocusError as error:
                said = str(error)
            assert said.isprintable()
            assert len(said) < 2200


def vit() -> torch.nn.Module:
    model: torch.nn.Module = timm.create_model("test_vit", img_size=32)
    return model


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: overfocus.load_model(3), "source must be a text or a path, got 3"),
        (lambda: overfocus.load_model("a.pth", image_size="32"), "image_size must be"),
        (lambda: overfocus.load_model("a.pth", model_args=5), "model_args must be"),
        (lambda: overfocus.load_model("a.pth", weights=b"x"), "weights must be a text"),
        (lambda: overfocus.wrap("model.pth"), "module must be a torch.nn.Module"),
        (lambda: overfocus.wrap(vit(), class_names=7), "class_names must be a list of texts"),
        (lambda: overfocus.wrap(vit(), input_size=np.zeros(3)), "input_size must be a whole number or a list of whole numbers"),
        (lambda: overfocus.wrap(vit(), input_size=32, mean={0.1, 0.2, 0.3}), "mean must be a list of numbers"),
        (lambda: overfocus.wrap(vit(), input_size=32, mean=(123.7, 116.3, 103.5)), "values from 0 to 1"),
        (lambda: overfocus.wrap(vit(), input_size=32, std=[]), "a mean and std per input channel"),
        (
            lambda: overfocus.wrap(vit(), input_size=32, class_names=["cat", "dog"]),
            "a class name for each of 1000 outputs, got 2",
        ),
        (lambda: overfocus.load_model("a.pth", num_classes=-7), "num_classes must be between 0 and"),
        (lambda: overfocus.load_model("k" * 300), "shorter path"),
        (lambda: overfocus.analyze(3), "checkpoint must be"),
        (lambda: overfocus.analyze(metrics=np.zeros((2, 3))), "metrics must be a list of texts or functions"),
        (lambda: overfocus.analyze(probes=[3]), "probes must be a list of probes"),
        (lambda: overfocus.analyze(corruptions={"fog", "snow"}), "corruptions must be"),
        (lambda: overfocus.analyze(output="a" * 300), "shorter path"),
        (lambda: overfocus.compare(3), "sources must be a list of"),
        (lambda: overfocus.compare(["a.pth"]), "at least two"),
        (
            lambda: overfocus.compare(groups={"a": 3, "b": 4}),
            "groups must be a dict from names to lists of texts or paths",
        ),
        (lambda: overfocus.compare(groups=["a"]), "groups must be"),
        (lambda: overfocus.Run(None), "path must be a text or a path"),
        (lambda: overfocus.Ablation(b"run"), "path must be"),
        (lambda: overfocus.Evaluation([]), "path must be"),
        (lambda: overfocus.Comparison("run"), "runs must be"),
        (lambda: overfocus.Comparison([1, 2]), "overfocus.Run"),
        (
            lambda: overfocus.Comparison({"a": 1}),
            "runs must be a list of runs (overfocus.Run) or a dict from names to lists of runs",
        ),
        (lambda: overfocus.Training(3), "path must be"),
        (lambda: overfocus.Run("k" * 300), "shorter path"),
        (lambda: overfocus.heatmap(None, corruptions=np.zeros(3)), "corruptions must be a text or a list of texts"),
        (lambda: overfocus.heatmap(None, seed=2**80), "seed must be a whole number of at most 64 bits"),
        (lambda: overfocus.corrupt(np.zeros((8, 8, 3), np.uint8), "fog", 3, 10**5000), "seed must be a whole number"),
        (lambda: overfocus.heatmap(None, seed="x"), "seed must be a whole number"),
        (lambda: overfocus.corrupt(np.zeros((8, 8, 3), np.uint8), "fog", 3, 2.5), "seed must be a whole number"),
        (lambda: overfocus.capture(5), "model must be a torch.nn.Module"),
        (lambda: overfocus.monitor(vit(), "photo.png"), "images must be"),
        (lambda: overfocus.monitor(vit(), torch.tensor(3)), "expected inputs (images"),
        (lambda: overfocus.monitor(vit(), torch.rand(2, 3, 32, 32), quiet=True)(loss=[]), "loss must be"),
        (lambda: overfocus.monitor(vit(), torch.rand(2, 3, 32, 32), quiet=True)(step="3"), "step must be a whole number"),
        (lambda: overfocus.models.add_tap(vit(), branches="4"), "branches must be a whole number"),
        (lambda: overfocus.verify(None), "model must be"),
    ],
)
def test_functions(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(OverfocusError, match=re.escape(words)):
        call()


@pytest.mark.parametrize("value", WRONG, ids=range(len(WRONG)))
def test_metrics(value: Any) -> None:
    """Functions of attention weights raise a ValueError in one line for another type."""
    weights = torch.full((1, 1, 4, 4), 0.25)
    for call in (
        lambda: metrics.METRICS["gini"](value),
        lambda: metrics.METRICS["gini"](weights, prefix_tokens=value),
        lambda: metrics.STABILITY["js_divergence"](weights, value),
        lambda: metrics.measure(value),
        lambda: metrics.received_attention(value),
        lambda: metrics.top_tokens(value),
        lambda: metrics.top_tokens(torch.ones(4), value),
        lambda: metrics.select_metrics(value),
        lambda: metrics.register_metric(value),
        lambda: metrics.uniform_value("gini", 16, grid=value),
        lambda: metrics.chance_level(value, 16),
        lambda: metrics.Metric(name=value),
        lambda: overfocus.attention_rollout(value),
        lambda: overfocus.attention_rollout([], discard_ratio=value),
    ):
        said = ""
        try:
            call()
        except (ValueError, OverfocusError) as error:
            said = str(error)
        assert len(said) < 2200
