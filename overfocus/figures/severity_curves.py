"""Stability against severity, as retained against the control where there is one: how fast attention changes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from overfocus.figures.colours import line_style
from overfocus.figures.legend import legend_below
from overfocus.figures.model_colours import model_colour, model_dash
from overfocus.figures.plain_figure import PlainFigure
from overfocus.figures.stability_map import labels_of
from overfocus.statistics.intervals import Interval, interval_of
from overfocus.statistics.layers import mean_of_known
from overfocus.statistics.panel import Panel, read_panel
from overfocus.statistics.retained import retained_interval, stable_metrics

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
    """One panel per metric: means over layers and images with 95 % intervals over images; what is retained of a metric of
    stability, where all runs measured the control.

    One run: a curve per corruption. Several: a curve per model, corruptions averaged for each image first. Where there is one
    severity only, the corruptions stand on the axis instead.
    """
    across = min(len(metrics), max(1, round(width / 2.2)))
    down = -(-len(metrics) // across)
    figure = PlainFigure(figsize=(width, down * min(2.1, 0.72 * width / across + 0.5) + 0.35), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    single = len(severities) == 1
    panels = [read_panel(run) for run in runs]
    for place, metric in enumerate(metrics):
        panel = axes[divmod(place, across)]
        for label, colour, dash, values in _curves(panels, names, metric, corruptions, severities):
            _points(panel, values, label, colour, " " if single else dash)
        title, unit = labels_of(metric, retained=metric in stable_metrics(panels))
        panel.set_ylabel(f"{title}\n({unit})")
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
    panels: Sequence[Panel], names: Sequence[str], metric: str, corruptions: Sequence[str], severities: Sequence[int]
) -> list[tuple[str, str, str, list[Interval]]]:
    """(label, colour, dash, one interval per place on the axis)."""
    retained = metric in stable_metrics(panels)
    found = []
    if len(severities) == 1:
        for number, (panel, name) in enumerate(zip(panels, names, strict=True)):
            values = [mean_of(panel, metric, [corruption], severities[0], retained=retained) for corruption in corruptions]
            found.append((name, model_colour(number), model_dash(number), values))
    elif len(panels) == 1:
        for number, corruption in enumerate(corruptions):
            colour, dash = line_style(number)
            values = [mean_of(panels[0], metric, [corruption], severity, retained=retained) for severity in severities]
            found.append((corruption.replace("_", " "), colour, dash, values))
    else:
        for number, (panel, name) in enumerate(zip(panels, names, strict=True)):
            values = [mean_of(panel, metric, corruptions, severity, retained=retained) for severity in severities]
            found.append((name, model_colour(number), model_dash(number), values))
    return found


def mean_of(panel: Panel, metric: str, corruptions: Sequence[str], severity: int, *, retained: bool) -> Interval:
    """Mean over images, each image averaged over layers and corruptions first; or what is retained of that."""
    variants = [variant for variant in panel.variants if variant.severity == severity and variant.corruption in corruptions]
    if retained and variants:
        return retained_interval(panel, metric, variants)
    places = [panel.variants.index(variant) for variant in variants]
    by_image = mean_of_known(mean_of_known(panel.values[metric][:, places], 2), 1)
    return interval_of(pd.Series(by_image), metric)


def _points(panel: "Axes", values: list[Interval], label: str, colour: str, dash: str) -> None:
    means = np.array([value.mean for value in values])
    ends: Any = np.array([[value.mean - value.low, value.high - value.mean] for value in values]).T
    panel.errorbar(
        np.arange(len(values)), means, yerr=ends, color=colour, linestyle=dash, marker="o", markersize=3, capsize=2,
        elinewidth=0.8, label=label,
    )  # fmt: skip
