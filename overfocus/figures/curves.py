"""One metric over the depth of the model: the clean curve with its band, each corruption, uniform attention and chance."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from overfocus.figures.colours import INK, line_style
from overfocus.figures.layer_statistics import LayerStatistics
from overfocus.figures.variants import CLEAN, Variant
from overfocus.figures.wording import unit_of
from overfocus.intervals import value_range
from overfocus.metrics.catalogue import CATALOGUE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.3, 2.5)
"""Inches; about as wide as a card of the page, so that 9-point text stays legible there."""


def layer_curves(statistics: LayerStatistics, metric: str, picked: Variant) -> "tuple[Figure, Axes]":
    """Draw a metric's curves at the severity of `picked`, whose own curve gets a band; call inside `styled()`.

    Groups of the SVG carry names for the page's script: clean-line, clean-band, line-<corruption>, picked-band, picked-layer.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE)
    axes = figure.add_axes((0.62 / SIZE[0], 0.42 / SIZE[1], 1 - 0.72 / SIZE[0], 1 - 0.52 / SIZE[1]))
    values = statistics.values[metric]
    layers = np.arange(len(statistics.layers))
    axes.grid(axis="y")
    draw_references(axes, statistics, metric)
    axes.axvline(0, color=INK, alpha=0.35, linewidth=1, linestyle=(0, (1, 2)), gid="picked-layer", visible=True)
    for number, corruption in enumerate(statistics.corruptions):
        variant = Variant(corruption, picked.severity)
        if variant not in statistics.variants:
            continue
        row = statistics.variants.index(variant)
        colour, dash = line_style(number)
        chosen = corruption == picked.corruption
        if chosen:
            low, high = values["low"][0, row], values["high"][0, row]
            axes.fill_between(layers, low, high, color=colour, alpha=0.22, linewidth=0, gid="picked-band")
        width, alpha = (2.0, 1.0) if chosen else (1.1, 0.55)
        draw_line(axes, layers, values["mean"][0, row], colour, dash, width, alpha, f"line-{number}", variant.label)
    clean = statistics.variants.index(CLEAN)
    if np.isfinite(values["mean"][0, clean]).any():
        axes.fill_between(
            layers, values["low"][0, clean], values["high"][0, clean], color=INK, alpha=0.18, linewidth=0, gid="clean-band"
        )
        draw_line(axes, layers, values["mean"][0, clean], INK, "-", 1.8, 1.0, "clean-line", "clean (band: 95 % interval)")
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_ylim(*value_limits(statistics, metric))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=min(12, max(1, len(layers))), integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("layer, from input to output", labelpad=2)
    axes.set_ylabel(unit_of(metric))
    return figure, axes


def draw_line(
    axes: "Axes",
    at: npt.NDArray[Any],
    mean: npt.NDArray[np.float64],
    colour: str,
    dash: str,
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
        solid_joinstyle="round",
    )  # fmt: skip


def draw_references(axes: "Axes", statistics: LayerStatistics, metric: str) -> None:
    """Dashed: what uniform attention would give; dotted: chance. Each only where the catalogue knows one."""
    layers = np.arange(len(statistics.layers))
    stable = CATALOGUE[metric].group == "stability"
    uniform = [math.nan] * len(layers) if stable else statistics.uniform(metric)
    for values, dash, label in ((uniform, (0, (5, 3)), "uniform attention"), (statistics.chance(metric), (0, (1, 2)), "chance")):
        measured = np.isfinite(statistics.values[metric]["mean"][0]).any(axis=0)
        shown = np.where(measured, np.array(values, dtype=float), np.nan)
        if np.isfinite(shown).any():
            axes.step(layers, shown, where="mid", color=INK, linestyle=dash, linewidth=1, alpha=0.6, label=label)
            axes.hlines(  # a step line ends in the middle of the first and last layer; this draws the rest
                shown[[0, -1]], [-0.5, len(layers) - 1], [0, len(layers) - 0.5], color=INK, linestyle=dash, linewidth=1, alpha=0.6
            )


def value_limits(statistics: LayerStatistics, metric: str) -> tuple[float, float]:
    """Limits that hold every severity and head and the reference lines, so that picking another one moves no axis."""
    parts = [statistics.values[metric][part].ravel() for part in ("mean", "low", "high")]
    parts.append(np.array(statistics.chance(metric)))
    if CATALOGUE[metric].group != "stability":
        parts.append(np.array(statistics.uniform(metric)))
    found = np.concatenate(parts)
    found = found[np.isfinite(found)]
    low, high = float(found.min()), float(found.max())
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    lowest, highest = value_range(metric)
    return max(low - margin, lowest - 0.3 * margin), min(high + margin, highest + 0.3 * margin)
