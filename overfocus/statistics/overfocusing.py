"""Does a model overfocus? One rule for one run, judged against uniform attention.

The rule was fixed before the networks were measured that `tests/scripts/overfocusing_rule.py` reports on:

1. Take the layers in which patches attend patches (kinds global, window and pooled), and of each the mean of `effective_tokens`
   over clean images: the share of the patches that attention effectively reaches, 1 where attention is uniform.
2. Of the most concentrated third of these layers (at least one), the lowest ones, take the mean E.
3. E below 0.5: it overfocuses strongly, fewer than half of the patches are in use. E from 0.5 and below 0.8: mildly. From 0.8 on:
   no. From 0.95 on attention is nearly uniform, as in an untrained network.

A third of the layers, because attention of most networks is even in some depths and concentrated in others, and one layer alone
may be chance. Concentration may be judged from a single image; the interval says how far images differ.
"""

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from overfocus.metrics.catalogue import PATCH_KINDS
from overfocus.statistics.intervals import Interval, interval_of
from overfocus.statistics.layers import RunTables
from overfocus.variants import CLEAN

STRONG = 0.5
"""Effective tokens below which a model overfocuses strongly."""
MILD = 0.8
"""Effective tokens below which it overfocuses mildly; from here on it does not, and the order of its tokens is mostly noise."""
NEARLY_UNIFORM = 0.95
"""Effective tokens from which attention is called nearly uniform."""
METRIC = "effective_tokens"


@dataclass(frozen=True)
class Overfocusing:
    """The answer for one run."""

    answer: Literal["strongly", "mildly", "no"] | None
    """None where concentration is undefined in every layer."""
    effective: Interval
    """Mean over images of the effective tokens of the most concentrated third of the layers; uniform attention has 1."""
    layers: tuple[int, ...]
    """Numbers of these layers, in the order of the model."""

    @property
    def nearly_uniform(self) -> bool:
        """Whether attention is spread as evenly as in an untrained network."""
        return self.effective.mean >= NEARLY_UNIFORM


def judge_overfocusing(run: RunTables) -> Overfocusing:
    """Apply the rule of this module to the clean images of a run."""
    kinds = {layer.number: layer.kind for layer in run.description.layers}
    table = run.table
    rows = table[(table["corruption"] == CLEAN) & table["layer"].map(kinds).isin(PATCH_KINDS)]
    if METRIC not in table or not rows[METRIC].notna().any():
        return Overfocusing(None, interval_of(pd.Series(dtype=float), METRIC), ())
    by_layer = rows.groupby(["image", "layer"])[METRIC].mean().unstack()
    means = by_layer.mean().dropna().sort_values(kind="stable")
    lowest = means.index[: max(1, math.ceil(len(means) / 3))]
    effective = interval_of(by_layer[lowest].mean(axis=1), METRIC)
    answer: Literal["strongly", "mildly", "no"] = (
        "strongly" if effective.mean < STRONG else "mildly" if effective.mean < MILD else "no"
    )
    return Overfocusing(answer, effective, tuple(sorted(int(number) for number in lowest)))
