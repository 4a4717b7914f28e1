"""The line beside each metric: its formula, what high means, and the values that uniform attention and another image give."""

import math
from dataclasses import dataclass

from overfocus.figures.stability import shows_retained
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.statistics.layers import LayerStatistics


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
    control: str
    """Between two different clean images, over layers; empty where there is no control."""
    retained: bool
    """Whether its maps show what is retained against the control."""
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
        control=span_of(statistics.another_image(metric)) if known.group == "stability" else "",
        retained=known.group == "stability" and shows_retained([statistics], metric),
        skipped=skipped_values(statistics, metric),
    )


def with_numbers(symbols: str, values: list[float]) -> str:
    """An expectation in symbols and, where those hide a number, that number: "k/N = 0.051"."""
    numbers = span_of(values)
    return symbols if not numbers or symbols.replace("−", "-").lstrip("-").isdigit() else f"{symbols} = {numbers}"


def span_of(values: list[float]) -> str:
    """Smallest and largest value over layers, "0.051" or "0.02 … 0.06, by layer"; empty for none."""
    known = sorted(value for value in values if math.isfinite(value))
    if not known:
        return ""
    low, high = f"{known[0]:.3g}", f"{known[-1]:.3g}"
    return low if low == high else f"{low} … {high}, by layer"


def skipped_values(statistics: LayerStatistics, metric: str) -> str:
    """The count of values left out of the means; layers in which a metric has no value at all do not count."""
    parts = statistics.values[metric]
    measured = parts["count"][0] > 0
    skipped = int(parts["skipped"][0][measured].sum())
    total = skipped + int(parts["count"][0][measured].sum())
    return f"{skipped} of {total} values are undefined (NaN) and left out of the means." if skipped else ""
