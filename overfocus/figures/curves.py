"""Metrics over depth, as small multiples."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from overfocus.figures.style import (
    INK,
    PlainFigure,
    axis_label,
    every_few,
    legend_below,
    line_style,
    model_colour,
    small_multiples,
)
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.statistics.intervals import value_range
from overfocus.statistics.panel import LayerStatistics
from overfocus.variants import CLEAN_VARIANT, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes


UNIFORM, ANOTHER_IMAGE = "uniform attention", "another image"
"""Labels of the reference lines."""


def is_relative(every: Sequence[LayerStatistics]) -> bool:
    """Whether depth has to be relative, because models differ in their number of layers."""
    return len({len(one.layers) for one in every}) > 1


def positions(statistics: LayerStatistics, *, relative: bool) -> npt.NDArray[np.float64]:
    """Positions of layers on the axis: their number, or from 0 at the input to 1 at the output."""
    count = len(statistics.layers)
    return np.arange(count) / (max(1, count - 1) if relative else 1)


def draw_line(
    axes: "Axes",
    at: npt.NDArray[Any],
    mean: npt.NDArray[np.float64],
    colour: str,
    dash: Any,
    width: float,
    alpha: float,
    gid: str,
    label: str,
) -> None:
    """One curve; a layer whose neighbours have no value gets a dot, since no line reaches it."""
    known = np.isfinite(np.concatenate([[np.nan], mean, [np.nan]]))
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])
    axes.plot(
        at, mean, color=colour, linestyle=dash, linewidth=width, alpha=alpha, gid=gid or None, label=label,
        marker="o" if len(alone) else None, markersize=4, markevery=alone.tolist(), solid_capstyle="round",
        solid_joinstyle="round", clip_on=False,
    )  # fmt: skip


def draw_references(axes: "Axes", statistics: LayerStatistics, metric: str, *, relative: bool = False) -> None:
    """Dashed: what uniform attention would give; dotted: another image, the control. Each only where there is one.

    Where depth is relative, only values that are the same in every layer have a line.
    """
    layers = np.arange(len(statistics.layers))
    stable = CATALOGUE[metric].group == "stability"
    uniform = [math.nan] * len(layers) if stable else statistics.uniform(metric)
    control = statistics.another_image(metric)
    for values, dash, label in ((uniform, (0, (5, 3)), UNIFORM), (control, (0, (1, 2)), ANOTHER_IMAGE)):
        measured = metric in statistics.values and np.isfinite(statistics.values[metric]["mean"][0]).any(axis=0)
        shown = np.where(measured, np.array(values, dtype=float), np.nan)
        if not np.isfinite(shown).any():
            continue
        style: Any = {"color": INK, "linestyle": dash, "linewidth": 1, "alpha": 0.6}
        if relative:
            if np.ptp(shown[np.isfinite(shown)]) == 0:
                axes.axhline(float(np.nanmax(shown)), label=label, **style)
            continue
        axes.step(layers, shown, where="mid", label=label, **style)
        # a step line ends in the middle of the first and last layer; this draws the rest
        axes.hlines(shown[[0, -1]], [-0.5, len(layers) - 1], [0, len(layers) - 0.5], **style)


def depth_figure(
    every: Sequence[LayerStatistics],
    names: Sequence[str],
    metrics: Sequence[str],
    shown: Sequence[Variant],
    width: float,
) -> PlainFigure:
    """One panel per metric; bands are 95 % intervals over images.

    One run: the clean curve and one per variant. Several: a colour per model, solid when clean, a dash per variant (solid, too,
    where no metric has a clean value); depth is relative where the models differ in their layers.
    """
    figure, panels = small_multiples(len(metrics), width, 2.4)
    relative = is_relative(every)
    # one dash a variant in all panels, so that one legend is right for all
    stable = all(CATALOGUE[metric].group == "stability" for metric in metrics)
    dashes = ["-", "--", ":", "-."] if stable else ["--", ":", "-."]
    for panel, metric in zip(panels, metrics, strict=True):
        if len(every) == 1:
            _one_model(panel, every[0], metric, shown)
        else:
            _several_models(panel, every, names, metric, shown, dashes, relative=relative)
        lowest, highest = value_range(metric)
        panel.set_ylim(*np.clip(panel.get_ylim(), lowest, highest))
        panel.set_xlabel("relative depth" if relative else "layer")
        panel.set_ylabel(axis_label(title_of(metric), CATALOGUE[metric].unit))
        if not relative:
            numbers = [layer.number for layer in every[0].layers]
            panel.set_xticks(*every_few(range(len(numbers)), numbers, min(width, 2.4)))
            panel.set_xlim(-0.5, len(numbers) - 0.5)
        panel.grid(axis="y")
    handles: dict[str, Any] = {}
    for panel in panels:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    order = {"clean": -1, UNIFORM: 1, ANOTHER_IMAGE: 2}
    labels = sorted(handles, key=lambda label: order.get(label, 0))
    legend_below(figure, [handles[label] for label in labels], labels, width)
    return figure


def _one_model(panel: "Axes", statistics: LayerStatistics, metric: str, shown: Sequence[Variant]) -> None:
    draw_references(panel, statistics, metric)
    for number, variant in enumerate(shown):
        colour, dash = line_style(number)
        _curve(panel, statistics, metric, variant, np.arange(len(statistics.layers)), colour, dash, variant.label)
    if CATALOGUE[metric].group != "stability":
        _curve(panel, statistics, metric, CLEAN_VARIANT, np.arange(len(statistics.layers)), INK, "-", "clean")


def _several_models(
    panel: "Axes",
    every: Sequence[LayerStatistics],
    names: Sequence[str],
    metric: str,
    shown: Sequence[Variant],
    dashes: Sequence[str],
    *,
    relative: bool,
) -> None:
    stable = CATALOGUE[metric].group == "stability"
    for number, (statistics, name) in enumerate(zip(every, names, strict=True)):
        at = positions(statistics, relative=relative)
        if not stable:
            _curve(panel, statistics, metric, CLEAN_VARIANT, at, model_colour(number), "-", f"{name}, clean")
        for variant, dash in zip(shown, dashes, strict=False):
            _curve(panel, statistics, metric, variant, at, model_colour(number), dash, f"{name}, {variant.label}")


def _curve(
    panel: "Axes",
    statistics: LayerStatistics,
    metric: str,
    variant: Variant,
    at: npt.NDArray[Any],
    colour: str,
    dash: str,
    label: str,
) -> None:
    parts = statistics.values[metric]
    row = statistics.variants.index(variant)
    if not np.isfinite(parts["mean"][0, row]).any():
        return
    panel.fill_between(at, parts["low"][0, row], parts["high"][0, row], color=colour, alpha=0.18, linewidth=0)
    draw_line(panel, at, parts["mean"][0, row], colour, dash, 1.3, 1.0, "", label)
