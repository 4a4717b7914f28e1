"""The line beside each metric: its formula, what high means, and the values that uniform attention and chance would give."""

import math
from dataclasses import dataclass

from overfocus.statistics.layers import LayerStatistics
from overfocus.metrics.catalogue import CATALOGUE, title_of


@dataclass(frozen=True)
class Reading:
    """How one metric is read."""

    metric: str
    title: str
    unit: str
    formula: str
    range: str
    high: str
    uniform: str
    chance: str
    skipped: str
    """How many values were undefined, in words; empty where none was."""


def reading_of(statistics: LayerStatistics, metric: str) -> Reading:
    """How `metric` is read in this run: expectations in symbols and as the number that they come to here."""
    known = CATALOGUE[metric]
    return Reading(
        metric=metric,
        title=title_of(metric),
        unit=CATALOGUE[metric].unit,
        formula=known.formula,
        range=f"{known.lowest} … {known.highest}",
        high=known.high,
        uniform=with_numbers(known.uniform, statistics.uniform(metric)),
        chance=with_numbers(known.chance, statistics.chance(metric)),
        skipped=skipped_values(statistics, metric),
    )


def with_numbers(symbols: str, values: list[float]) -> str:
    """An expectation in symbols and, where those hide a number, that number: "k/N = 0.051"."""
    known = sorted(value for value in values if math.isfinite(value))
    if not known or symbols.replace("−", "-").lstrip("-").isdigit():
        return symbols
    low, high = f"{known[0]:.3g}", f"{known[-1]:.3g}"
    return f"{symbols} = {low}" + (f" … {high}, by layer" if high != low else "")


def skipped_values(statistics: LayerStatistics, metric: str) -> str:
    """The count of values left out of the means; layers in which a metric has no value at all do not count."""
    parts = statistics.values[metric]
    measured = parts["count"][0] > 0
    skipped = int(parts["skipped"][0][measured].sum())
    total = skipped + int(parts["count"][0][measured].sum())
    return f"{skipped} of {total} values are undefined (NaN) and left out of the means." if skipped else ""
