"""Metrics made comparable between layers that have different numbers of tokens."""

import math
from typing import Any

import numpy as np

from overfocus.figures.layers import Layer
from overfocus.metrics.expectation import chance_level, uniform_value

Array = np.ndarray[Any, Any]

NORMALISED = ("top_share", "max_ratio", "gini", "effective_tokens", "top_overlap", "attention_distance")
"""The metrics whose range depends on the number of tokens."""


def normalise(name: str, values: Array, layer: Layer) -> Array:
    """Rescale a metric whose range depends on the layer's number of tokens N, so that 0 and 1 mean the same for every N.

    0 and 1 are the ends of its range (`top_share` k/N … 1, `max_ratio` 1 … N, `gini` 0 … 1 − 1/N, `effective_tokens` 1/N … 1);
    chance and 1 for `top_overlap`; 0 and the mean distance between two patches for `attention_distance`. Other metrics stay as
    they are. NaN where the range is empty or not known.
    """
    if name not in NORMALISED:
        return values
    low, high = _ends(name, layer)
    scaled: Array = (values - low) / (high - low) if high > low else np.full_like(values, np.nan)
    return scaled


def _ends(name: str, layer: Layer) -> tuple[float, float]:
    tokens = layer.tokens
    if name == "attention_distance":
        return 0.0, uniform_value(name, tokens, grid=layer.grid) if layer.grid else math.nan
    if name == "top_overlap":
        return chance_level(name, tokens, top_fraction=layer.top_fraction), 1.0
    return {
        "top_share": (layer.top / tokens, 1.0),
        "max_ratio": (1.0, float(tokens)),
        "gini": (0.0, 1 - 1 / tokens),
        "effective_tokens": (1 / tokens, 1.0),
    }[name]
