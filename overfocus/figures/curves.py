"""Metrics over depth: one metric as a card of the page, and several as small multiples for a paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from overfocus.figures.style import INK, PlainFigure, legend_below, line_style, model_colour
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.statistics.intervals import value_range
from overfocus.statistics.panel import LayerStatistics
from overfocus.variants import CLEAN_VARIANT, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SIZE = (4.3, 2.5)
"""Inches; about as wide as a card of the page, so that 9-point text stays legible there."""


def layer_curves(every: Sequence[LayerStatistics], names: Sequence[str], metric: str, picked: Variant) -> "tuple[Figure, Axes]":
    """Draw a metric's curves at the severity of `picked`, whose own curve gets a band; call inside `styled()`.

    Of one model all corruptions are drawn; of several the clean curve (dotted) and the picked one, a colour for each model.
    Groups of the SVG carry names for the page's script: clean-line-<model>, clean-band-<model>, line-<model>-<corruption>,
    line-<model>-picked, picked-band-<model>, picked-layer.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE)
    axes = figure.add_axes((0.62 / SIZE[0], 0.42 / SIZE[1], 1 - 0.72 / SIZE[0], 1 - 0.52 / SIZE[1]))
    axes.grid(axis="y")
    relative = is_relative(every)
    draw_references(axes, every[0], metric, relative=relative)
    axes.axvline(0, color=INK, alpha=0.35, linewidth=1, linestyle=(0, (1, 2)), gid="picked-layer", visible=True)
    for number, (statistics, name) in enumerate(zip(every, names, strict=True)):
        if metric in statistics.values:
            curves = Curves(axes, statistics, metric, number, positions(statistics, relative=relative))
            if len(every) == 1:
                curves.draw_corruptions(picked)
                curves.draw_clean(INK, "-", 1.8, "clean (band: 95 % interval)")
            else:
                curves.draw_picked(picked, model_colour(number), name)
                curves.draw_clean(model_colour(number), (0, (1, 1.2)), 1.4, f"{name}, clean")
    last = 1.0 if relative else len(every[0].layers) - 1
    margin = 0.04 if relative else 0.5
    axes.set_xlim(-margin, last + margin)
    limits = np.array([value_limits(one, metric) for one in every if metric in one.values])
    axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    ticks = 5 if relative else min(12, max(1, round(last)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=ticks, integer=not relative, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xlabel("relative depth, from input to output" if relative else "layer, from input to output", labelpad=2)
    axes.set_ylabel(CATALOGUE[metric].unit)
    return figure, axes


def is_relative(every: Sequence[LayerStatistics]) -> bool:
    """Whether depth has to be relative, because models differ in their number of layers."""
    return len({len(one.layers) for one in every}) > 1


def positions(statistics: LayerStatistics, *, relative: bool) -> npt.NDArray[np.float64]:
    """Where layers stand on the axis: their number, or from 0 at the input to 1 at the output."""
    count = len(statistics.layers)
    return np.arange(count) / (max(1, count - 1) if relative else 1)


@dataclass(frozen=True)
class Curves:
    """The curves of one model."""

    axes: "Axes"
    statistics: LayerStatistics
    metric: str
    number: int
    """Of the model."""
    at: npt.NDArray[np.float64]

    def draw_corruptions(self, picked: Variant) -> None:
        """Every corruption at the severity of the picked one."""
        for number, corruption in enumerate(self.statistics.corruptions):
            variant = Variant(corruption, picked.severity)
            if variant in self.statistics.variants:
                colour, dash = line_style(number)
                chosen = corruption == picked.corruption
                if chosen:
                    self.band(variant, colour, 0.22, f"picked-band-{self.number}")
                width, alpha = (2.0, 1.0) if chosen else (1.1, 0.55)
                self.line(variant, colour, dash, width, alpha, f"line-{self.number}-{number}", variant.label)

    def draw_picked(self, picked: Variant, colour: str, label: str) -> None:
        """The picked corruption alone."""
        if picked.severity:
            self.band(picked, colour, 0.18, f"picked-band-{self.number}")
            self.line(picked, colour, "-", 1.8, 1.0, f"line-{self.number}-picked", f"{label}, {picked.label}")

    def draw_clean(self, colour: str, dash: Any, width: float, label: str) -> None:
        """The clean images, for metrics that they have."""
        if np.isfinite(self.statistics.values[self.metric]["mean"][0, self.statistics.variants.index(CLEAN_VARIANT)]).any():
            self.band(CLEAN_VARIANT, colour, 0.18 if colour == INK else 0.1, f"clean-band-{self.number}")
            self.line(CLEAN_VARIANT, colour, dash, width, 1.0, f"clean-line-{self.number}", label)

    def band(self, variant: Variant, colour: str, alpha: float, gid: str) -> None:
        """The 95 % interval."""
        values, row = self.statistics.values[self.metric], self.statistics.variants.index(variant)
        self.axes.fill_between(
            self.at, values["low"][0, row], values["high"][0, row], color=colour, alpha=alpha, linewidth=0, gid=gid
        )

    def line(self, variant: Variant, colour: str, dash: Any, width: float, alpha: float, gid: str, label: str) -> None:
        """The mean."""
        row = self.statistics.variants.index(variant)
        draw_line(self.axes, self.at, self.statistics.values[self.metric]["mean"][0, row], colour, dash, width, alpha, gid, label)


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
        solid_joinstyle="round",
    )  # fmt: skip


def draw_references(axes: "Axes", statistics: LayerStatistics, metric: str, *, relative: bool = False) -> None:
    """Dashed: what uniform attention would give; dotted: another image, the control. Each only where there is one.

    Where depth is relative, only values that are the same in every layer have a line.
    """
    layers = np.arange(len(statistics.layers))
    stable = CATALOGUE[metric].group == "stability"
    uniform = [math.nan] * len(layers) if stable else statistics.uniform(metric)
    control = statistics.another_image(metric)
    for values, dash, label in ((uniform, (0, (5, 3)), "uniform attention"), (control, (0, (1, 2)), "another image")):
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


def value_limits(statistics: LayerStatistics, metric: str) -> tuple[float, float]:
    """Limits that hold every severity and head and the reference lines, so that picking another one moves no axis."""
    parts = [statistics.values[metric][part].ravel() for part in ("mean", "low", "high")]
    parts.append(np.array(statistics.another_image(metric)))
    if CATALOGUE[metric].group != "stability":
        parts.append(np.array(statistics.uniform(metric)))
    found = np.concatenate(parts)
    found = found[np.isfinite(found)]
    low, high = float(found.min()), float(found.max())
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    lowest, highest = value_range(metric)
    return max(low - margin, lowest - 0.3 * margin), min(high + margin, highest + 0.3 * margin)


def depth_figure(
    every: Sequence[LayerStatistics],
    names: Sequence[str],
    metrics: Sequence[str],
    shown: Sequence[Variant],
    width: float,
) -> PlainFigure:
    """One panel per metric; bands are 95 % intervals over images.

    One run: the clean curve and one per variant. Several: a colour per model, solid when clean, dashed under each variant
    (stability metrics, which have no clean value, are solid); depth is relative where the models differ in their layers.
    """
    across = min(len(metrics), max(1, round(width / 2.4)))
    down = -(-len(metrics) // across)
    figure = PlainFigure(figsize=(width, down * min(2.1, 0.72 * width / across + 0.5) + 0.35), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    relative = is_relative(every)
    for place, metric in enumerate(metrics):
        panel = axes[divmod(place, across)]
        if len(every) == 1:
            _one_model(panel, every[0], metric, shown)
        else:
            _several_models(panel, every, names, metric, shown, relative=relative)
        limits = np.array([value_limits(one, metric) for one in every])
        panel.set_ylim(limits[:, 0].min(), limits[:, 1].max())
        panel.set_xlabel("relative depth" if relative else "layer")
        panel.set_ylabel(f"{title_of(metric)}\n({CATALOGUE[metric].unit})")
        panel.xaxis.get_major_locator().set_params(integer=not relative)
        panel.grid(axis="y")
    for place in range(len(metrics), down * across):
        axes[divmod(place, across)].set_axis_off()
    handles: dict[str, Any] = {}
    for panel in axes.flat:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    legend_below(figure, list(handles.values()), list(handles), width)
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
    *,
    relative: bool,
) -> None:
    stable = CATALOGUE[metric].group == "stability"
    dashes = ["-", "--", ":", "-."] if stable else ["--", ":", "-."]
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
