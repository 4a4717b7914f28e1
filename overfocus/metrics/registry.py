"""The metrics by name, in the order of the tables."""

from collections.abc import Callable

from torch import Tensor

from overfocus.metrics.concentration import effective_tokens, gini, max_ratio, prefix_share, row_entropy, top_share
from overfocus.metrics.locality import attention_distance
from overfocus.metrics.similarity import diversification, token_cosine
from overfocus.metrics.stability import attention_cosine, js_divergence, rank_correlation, received_shift, top_overlap

METRICS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        top_share,
        max_ratio,
        gini,
        effective_tokens,
        row_entropy,
        prefix_share,
        token_cosine,
        diversification,
        attention_distance,
    )
}
"""Metrics of one map: `function(weights, *, prefix_tokens=0, ..., per_head=False)` -> (batch,) or (batch, heads)."""

STABILITY: dict[str, Callable[..., Tensor]] = {
    function.__name__: function for function in (top_overlap, rank_correlation, attention_cosine, js_divergence, received_shift)
}
"""Metrics of a clean and a corrupted map: `function(clean, corrupted, *, prefix_tokens=0, ..., per_head=False)`."""
