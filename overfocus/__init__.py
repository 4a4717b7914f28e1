"""overfocus shows whether a Vision Transformer's attention depends on a few fragile tokens, and reduces it.

The route is one direction: checkpoint → `load_model` → `capture` → `AttentionMap` → `metrics` → table → run on disk → report.
Names are imported when they are first used, so that `import overfocus` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

from overfocus.errors import CaptureError, CheckpointError, CorruptionError, ImageError, OverfocusError, RunError, TrainingError
from overfocus.runs import notebook as _notebook
from overfocus.version import __version__

if TYPE_CHECKING:
    from overfocus import losses, metrics, models
    from overfocus.ablation import ablate
    from overfocus.analysis import analyze
    from overfocus.attention import AttentionMap, attention_rollout
    from overfocus.capturing import capture
    from overfocus.checkpoints.load import load_model
    from overfocus.checkpoints.loaded import LoadedModel, wrap
    from overfocus.corruptions import corrupt
    from overfocus.evaluation.evaluate import evaluate
    from overfocus.evaluation.results import Evaluation
    from overfocus.heatmaps import heatmap
    from overfocus.inspection import inspect
    from overfocus.monitoring import monitor
    from overfocus.results.ablation import Ablation
    from overfocus.results.compare import compare
    from overfocus.results.comparison import Comparison
    from overfocus.run import Run
    from overfocus.training.train import Training, train
    from overfocus.verification import verify

_HOME = {
    "Ablation": "overfocus.results.ablation",
    "AttentionMap": "overfocus.attention",
    "Comparison": "overfocus.results.comparison",
    "Evaluation": "overfocus.evaluation.results",
    "LoadedModel": "overfocus.checkpoints.loaded",
    "Run": "overfocus.run",
    "Training": "overfocus.training.train",
    "attention_rollout": "overfocus.attention",
    "ablate": "overfocus.ablation",
    "analyze": "overfocus.analysis",
    "capture": "overfocus.capturing",
    "compare": "overfocus.results.compare",
    "corrupt": "overfocus.corruptions",
    "evaluate": "overfocus.evaluation.evaluate",
    "heatmap": "overfocus.heatmaps",
    "inspect": "overfocus.inspection",
    "load_model": "overfocus.checkpoints.load",
    "losses": "overfocus",
    "metrics": "overfocus",
    "monitor": "overfocus.monitoring",
    "models": "overfocus",
    "train": "overfocus.training.train",
    "verify": "overfocus.verification",
    "wrap": "overfocus.checkpoints.loaded",
}

__all__ = [
    "Ablation",
    "AttentionMap",
    "CaptureError",
    "CheckpointError",
    "Comparison",
    "CorruptionError",
    "Evaluation",
    "ImageError",
    "LoadedModel",
    "OverfocusError",
    "Run",
    "RunError",
    "Training",
    "TrainingError",
    "__version__",
    "ablate",
    "analyze",
    "attention_rollout",
    "capture",
    "compare",
    "corrupt",
    "evaluate",
    "heatmap",
    "inspect",
    "load_model",
    "losses",
    "metrics",
    "models",
    "monitor",
    "train",
    "verify",
    "wrap",
]


def _figures() -> object:
    from overfocus.figures import draw

    return draw


_notebook.figures = _figures


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'overfocus' has no attribute {name!r}")
    if home == "overfocus":
        return importlib.import_module(f"overfocus.{name}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
