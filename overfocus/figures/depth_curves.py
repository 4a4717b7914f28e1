"""Metrics over the depth of one or several models, as small multiples: clean and under a corruption."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from overfocus.figures.colours import INK, line_style
from overfocus.figures.curves import draw_line, draw_references, is_relative, positions, value_limits
from overfocus.figures.legend import legend_below
from overfocus.figures.model_colours import model_colour
from overfocus.figures.plain_figure import PlainFigure
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.statistics.layers import LayerStatistics
from overfocus.variants import CLEAN_VARIANT, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
