"""Stability against severity: how fast attention changes as the pictures get worse, for one or several models."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from overfocus.figures.colours import line_style
from overfocus.figures.legend import legend_below
from overfocus.figures.model_colours import model_colour, model_dash
from overfocus.figures.plain_figure import PlainFigure
from overfocus.statistics.intervals import Interval, interval_of
from overfocus.metrics.catalogue import CATALOGUE, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from overfocus.run import Run


def severity_figure(
    runs: Sequence["Run"],
    names: Sequence[str],
    metrics: Sequence[str],
    corruptions: Sequence[str],
    severities: Sequence[int],
    width: float,
) -> PlainFigure:
    """One panel per metric: means over layers and images with 95 % intervals over images.

    One run: a curve per corruption. Several: a curve per model, corruptions averaged for each image first. Where there is one
    severity only, the corruptions stand on the axis instead.
    """
    across = min(len(metrics), max(1, round(width / 2.2)))
    down = -(-len(metrics) // across)
    figure = PlainFigure(figsize=(width, down * min(2.1, 0.72 * width / across + 0.5) + 0.35), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    single = len(severities) == 1
    for place, metric in enumerate(metrics):
        panel = axes[divmod(place, across)]
        for label, colour, dash, values in _curves(runs, names, metric, corruptions, severities):
            _points(panel, values, label, colour, " " if single else dash)
        panel.set_ylabel(f"{title_of(metric)}\n({CATALOGUE[metric].unit})")
        panel.set_xlabel(f"corruption, severity {severities[0]}" if single else "severity")
        labels = [name.replace("_", " ") for name in corruptions] if single else [str(severity) for severity in severities]
        panel.set_xticks(range(len(labels)), labels, rotation=30 if single else 0, ha="right" if single else "center")
        panel.set_xlim(-0.4, len(labels) - 0.6)
        panel.grid(axis="y")
    for place in range(len(metrics), down * across):
        axes[divmod(place, across)].set_axis_off()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if len(labels) > 1:
        legend_below(figure, handles, labels, width)
    return figure


def _curves(
    runs: Sequence["Run"], names: Sequence[str], metric: str, corruptions: Sequence[str], severities: Sequence[int]
) -> list[tuple[str, str, str, list[Interval]]]:
    """(label, colour, dash, one interval per place on the axis)."""
    found = []
    if len(severities) == 1:
        for number, (run, name) in enumerate(zip(runs, names, strict=True)):
            values = [mean_of(run, metric, [corruption], severities[0]) for corruption in corruptions]
            found.append((name, model_colour(number), model_dash(number), values))
    elif len(runs) == 1:
        for number, corruption in enumerate(corruptions):
            colour, dash = line_style(number)
            values = [mean_of(runs[0], metric, [corruption], severity) for severity in severities]
            found.append((corruption.replace("_", " "), colour, dash, values))
    else:
        for number, (run, name) in enumerate(zip(runs, names, strict=True)):
            values = [mean_of(run, metric, corruptions, severity) for severity in severities]
            found.append((name, model_colour(number), model_dash(number), values))
    return found


def mean_of(run: "Run", metric: str, corruptions: Sequence[str], severity: int) -> Interval:
    """Mean over images, each image averaged over layers and corruptions first."""
    table: pd.DataFrame = run.table
    rows = table[(table["severity"] == severity) & table["corruption"].isin(list(corruptions))]
    return interval_of(rows.groupby("image")[metric].mean(), metric)


def _points(panel: "Axes", values: list[Interval], label: str, colour: str, dash: str) -> None:
    means = np.array([value.mean for value in values])
    ends: Any = np.array([[value.mean - value.low, value.high - value.mean] for value in values]).T
    panel.errorbar(
        np.arange(len(values)), means, yerr=ends, color=colour, linestyle=dash, marker="o", markersize=3, capsize=2,
        elinewidth=0.8, label=label,
    )  # fmt: skip
