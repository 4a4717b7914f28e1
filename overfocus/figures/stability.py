"""Stability under corruption: heat maps by severity and by layer, and curves over severity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from overfocus.figures.style import (
    CHARACTER,
    INK,
    SEQUENTIAL,
    PlainFigure,
    axis_label,
    every_few,
    legend_below,
    line_style,
    model_colour,
    model_dash,
    name_lines,
    small_multiples,
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
        """Digits after the point that distinguish the means."""
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
    import seaborn

    # seaborn leaves a third of a narrow figure to the labels of the rows, and as much to the scale
    titles = [name_lines(name, max(12, int((width - 1.9) / 0.075))) if len(every) > 1 else [] for name in names]
    rows = (0.16 * len(corruptions) + 0.28) * len(every) + 0.14 * sum(map(len, titles))
    figure = PlainFigure(figsize=(width, max(2.0, rows + 0.75)), layout="constrained")
    axes = figure.subplots(len(every), 1, squeeze=False)[:, 0]
    scale, retained = scale_of(every, metric), shows_retained(every, metric)
    words = [corruption.replace("_", " ") for corruption in corruptions]
    for panel, statistics, title in zip(axes, every, titles, strict=True):
        kept = [statistics.corruptions.index(corruption) for corruption in corruptions]
        layers = [layer.number for layer in statistics.layers]
        seaborn.heatmap(
            statistics.matrix(metric, severity, retained=retained)[kept], ax=panel, cbar=False, cmap=scale.colour_map,
            vmin=scale.low, vmax=scale.high, xticklabels=layers, yticklabels=words, rasterized=True,
        )  # fmt: skip
        panel.set_xticks(*every_few(panel.get_xticks(), layers, width))
        panel.tick_params(length=0, rotation=0)
        panel.set_title("\n".join(title), loc="left", pad=3)
    axes[-1].set_xlabel(f"layer, severity {severity}")
    bar = figure.colorbar(axes[-1].collections[0], ax=list(axes), aspect=max(6, 10 * len(every)), pad=0.02)
    bar.set_label(axis_label(*labels_of(metric, retained=retained)))
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
    single = len(severities) == 1
    labels = [name.replace("_", " ") for name in corruptions] if single else [str(severity) for severity in severities]
    longest = CHARACTER * max(map(len, labels))
    steep = len(labels) * 0.3 > min(width, 2.2)  # slanted labels would stand on one another
    figure, axes = small_multiples(len(metrics), width, 2.2, longest * (1.0 if steep else 0.6) if single else 0.0)
    panels = [read_panel(run) for run in runs]
    for panel, metric in zip(axes, metrics, strict=True):
        curves = _curves(panels, names, metric, corruptions, severities)
        if single:
            _bars(panel, curves)
        else:
            _points(panel, curves)
        panel.set_ylabel(axis_label(*labels_of(metric, retained=metric in stable_metrics(panels))))
        panel.set_xlabel(f"corruption, severity {severities[0]}" if single else "severity")
        panel.set_xticks(range(len(labels)), labels)
        if single:
            panel.tick_params("x", rotation=90 if steep else 35)
            for label in panel.get_xticklabels():
                label.set(ha="center" if steep else "right", rotation_mode="default" if steep else "anchor")
        panel.set_xlim(-0.5, len(labels) - 0.5)
        panel.grid(axis="y")
    handles, labels = axes[0].get_legend_handles_labels()
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


def _points(panel: "Axes", curves: Sequence[tuple[str, str, str, list[Interval]]]) -> None:
    """Curves over severity; points of one severity stand a little apart, so that their intervals are distinct."""
    apart = min(0.06, 0.4 / len(curves))
    for number, (label, colour, dash, values) in enumerate(curves):
        means, ends = _means_and_ends(values)
        at = np.arange(len(values)) + (number - (len(curves) - 1) / 2) * apart
        panel.errorbar(
            at, means, yerr=ends, color=colour, linestyle=dash, marker="o", markersize=3, capsize=2, elinewidth=0.8, label=label
        )


def _bars(panel: "Axes", curves: Sequence[tuple[str, str, str, list[Interval]]]) -> None:
    """Bars side by side, for values that no line connects."""
    thick = 0.8 / len(curves)
    for number, (label, colour, _, values) in enumerate(curves):
        means, ends = _means_and_ends(values)
        at = np.arange(len(values)) + (number - (len(curves) - 1) / 2) * thick
        panel.bar(
            at, means, thick, yerr=ends, color=colour, label=label, error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": INK}
        )
    panel.axhline(0, color=INK, linewidth=0.6)


def _means_and_ends(values: Sequence[Interval]) -> tuple[Any, Any]:
    """Means, and the lengths of the intervals below and above them, (2, n)."""
    means = np.array([value.mean for value in values])
    return means, np.array([[value.mean - value.low, value.high - value.mean] for value in values]).T
