"""How much attention is overfocused: pure functions of attention weights, and `measure`, which computes them together.

`METRICS` needs one map, `STABILITY` a clean and a corrupted one; `CATALOGUE` describes each (without importing torch).
Names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overfocus.metrics.catalogue import CATALOGUE, Metric, chance_level, register_metric, select_metrics, uniform_value
    from overfocus.metrics.formulas import METRICS, STABILITY
    from overfocus.metrics.measuring import ForwardMeasurement, LayerValues, measure
    from overfocus.metrics.received import received_attention, top_tokens

_HOME = {
    "CATALOGUE": "catalogue",
    "ForwardMeasurement": "measuring",
    "LayerValues": "measuring",
    "METRICS": "formulas",
    "STABILITY": "formulas",
    "Metric": "catalogue",
    "chance_level": "catalogue",
    "measure": "measuring",
    "received_attention": "received",
    "register_metric": "catalogue",
    "select_metrics": "catalogue",
    "top_tokens": "received",
    "uniform_value": "catalogue",
}

__all__ = [
    "CATALOGUE",
    "METRICS",
    "STABILITY",
    "ForwardMeasurement",
    "LayerValues",
    "Metric",
    "chance_level",
    "measure",
    "received_attention",
    "register_metric",
    "select_metrics",
    "top_tokens",
    "uniform_value",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'overfocus.metrics' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"overfocus.metrics.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
