"""Stability under corruption: heat maps by severity and by layer, and curves over severity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from overfocus.figures.style import (
    SEQUENTIAL,
    PlainFigure,
    legend_below,
    line_style,
    model_colour,
    model_dash,
)
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.statistics.intervals import Interval, interval_of
from overfocus.statistics.panel import LayerStatistics, Panel, mean_of_known, read_panel
from overfocus.statistics.retained import RETAINED, retained_interval, stable_metrics
from overfocus.statistics.verdicts import measure_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from overfocus.run import Run


@dataclass(frozen=True)
class Scale:
    """The one colour scale of a metric: both heat maps, all severities, all layers."""

    low: float
    high: float
    reverse: bool
    """Whether low values are the bright ones, because a low value means that attention changed."""

    @property
    def digits(self) -> int:
        """Digits after the point that tell the means apart."""
        return 2 if max(abs(self.low), abs(self.high)) >= 0.4 else 3

    @property
    def colour_map(self) -> str:
        """Name of the matplotlib colour map."""
        return SEQUENTIAL + ("_r" if self.reverse else "")


RETAINED_UNIT = "1: as if not corrupted, 0: another image"
"""What an axis of retained stability counts."""


def shows_retained(every: Sequence[LayerStatistics], metric: str) -> bool:
    """Whether a metric of stability is shown against the control: every run measured one that is more than noise."""
    return all(metric in one.retained and np.isfinite(one.retained[metric]["mean"]).any() for one in every)


def labels_of(metric: str, *, retained: bool) -> tuple[str, str]:
    """Title and unit of a metric of stability, or of what is retained of it."""
    return (measure_title(RETAINED + metric), RETAINED_UNIT) if retained else (title_of(metric), CATALOGUE[metric].unit)


def scale_of(every: Sequence[LayerStatistics], metric: str) -> Scale:
    """Smallest to largest mean over every run, corruption, severity and layer: of what is retained, where it is shown."""
    retained = shows_retained(every, metric)
    found = np.concatenate(
        [
            (one.means(metric, retained=True) if retained else one.values[metric]["mean"]).ravel()
            for one in every
            if metric in one.values
        ]
    )
    found = found[np.isfinite(found)]
    low, high = float(found.min()), float(found.max())
    return Scale(low, high if high > low else low + 1e-6, retained or CATALOGUE[metric].overfocused == "low")


def matrix_figure(
    every: Sequence[LayerStatistics],
    names: Sequence[str],
    metric: str,
    corruptions: Sequence[str],
    severity: int,
    width: float,
) -> PlainFigure:
    """Means over images at one severity; bright means that attention changed."""
    rows = 0.16 * len(corruptions) + 0.28
    figure = PlainFigure(figsize=(width, max(2.0, rows * len(every) + 0.75)), layout="constrained")
    axes = figure.subplots(len(every), 1, squeeze=False)[:, 0]
    scale, retained = scale_of(every, metric), shows_retained(every, metric)
    drawn = None
    for panel, statistics, name in zip(axes, every, names, strict=True):
        kept = [statistics.corruptions.index(corruption) for corruption in corruptions]
        values = statistics.matrix(metric, severity, retained=retained)[kept]
        drawn = panel.imshow(np.ma.masked_invalid(values), cmap=scale.colour_map, vmin=scale.low, vmax=scale.high, aspect="auto")
        panel.set_yticks(range(len(corruptions)), [corruption.replace("_", " ") for corruption in corruptions])
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        if len(every) > 1:
            panel.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=4)
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel(f"layer, severity {severity}")
    assert drawn is not None
    bar = figure.colorbar(drawn, ax=list(axes), aspect=max(6, 10 * len(every)), pad=0.02)
    title, unit = labels_of(metric, retained=retained)
    bar.set_label(f"{title}\n({unit})")
    bar.outline.set_visible(False)
    return figure


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
