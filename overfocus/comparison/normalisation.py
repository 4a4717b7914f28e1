"""Metrics made comparable between layers that have different numbers of tokens."""

from typing import Any

import numpy as np

from overfocus.figures.layers import Layer
from overfocus.metrics.catalogue import metric_named
from overfocus.metrics.expectation import TokenCounts

Array = np.ndarray[Any, Any]


def normalise(name: str, values: Array, layer: Layer) -> Array:
    """Rescale a metric whose range depends on the layer's number of tokens N, so that 0 and 1 mean the same for every N.

    0 and 1 are what the metric's row in the catalogue calls its scale: the ends of its range, chance and 1 for `top_overlap`,
    0 and the mean distance between two patches for `attention_distance`. Other metrics stay as they are. NaN where the scale is
    empty or not known.
    """
    scale = metric_named(name).scale
    if scale is None:
        return values
    counts = TokenCounts(layer.tokens, layer.key_prefix_tokens, layer.grid, layer.top_fraction)
    low, high = (end.value(counts) for end in scale)
    scaled: Array = (values - low) / (high - low) if high > low else np.full_like(values, np.nan)
    return scaled
