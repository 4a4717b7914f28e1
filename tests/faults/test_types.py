"""Arguments of another type than a function or setting takes: an error of ours in one line before any work, nothing else."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import overfocus
from overfocus.errors import OverfocusError
from overfocus.limits import CheckSettings
from overfocus.settings import Settings
from overfocus.sweep import settings as sweeps
from overfocus.training.settings import Recipe, TrainSettings
from overfocus_cli.draw import CurvesSettings, FigureSettings, ReportSettings

WRONG = (
    None, 3, -7, 2.5, float("nan"), float("inf"), True, "", "zebra", "\x1b[31m", "a\0b", "\ud800", "k" * 100_000, b"abc", [],
    [None], {"a": 1}, {1: 2}, {1, 2}, object(), int, len, np.zeros((2, 3)), torch.zeros(3), 3j, 10**400, Path("nowhere"),
    ("a", None),
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
        (lambda: overfocus.analyze(3), "source must be"),
        (lambda: overfocus.compare(3), "at least two"),
        (lambda: overfocus.compare(groups=["a"]), "groups must be"),
        (lambda: overfocus.Run(None), "path must be a text or a path"),
        (lambda: overfocus.Ablation(b"run"), "path must be"),
        (lambda: overfocus.Evaluation([]), "path must be"),
        (lambda: overfocus.Comparison("run"), "runs must be"),
        (lambda: overfocus.Comparison([1, 2]), "overfocus.Run"),
        (lambda: overfocus.heatmap(None, seed="x"), "seed must be a whole number"),
        (lambda: overfocus.corrupt(np.zeros((8, 8, 3), np.uint8), "fog", 3, 2.5), "whole number as seed"),
        (lambda: overfocus.capture(5), "model must be a torch.nn.Module"),
        (lambda: overfocus.monitor(vit(), "photo.png"), "images must be"),
        (lambda: overfocus.models.add_tap(vit(), branches="4"), "branches must be a whole number"),
        (lambda: overfocus.verify(None), "model must be"),
    ],
)
def test_functions(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(OverfocusError, match=words.replace(".", r"\.")):
        call()
