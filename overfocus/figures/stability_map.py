"""Stability at a glance: one metric as corruption × severity and as corruption × layer; bright means that attention changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from overfocus.figures.colours import MISSING, SEQUENTIAL, lookup_table, reads_dark
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.statistics.layers import LayerStatistics
from overfocus.statistics.retained import RETAINED
from overfocus.statistics.wording import measure_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def heat_map(
    values: npt.NDArray[np.float64], rows: list[str], columns: list[str], unit: str, across: str, scale: Scale
) -> "Figure":
    """Draw (rows, columns) means with their numbers; call inside `styled()`.

    In the SVG the cells are the children of the group "cells", row by row, and their numbers the groups value-<number>.
    """
    import seaborn
    from matplotlib.figure import Figure

    left = 0.2 + 0.075 * max(len(row) for row in rows)
    cell = 0.42 if values.size <= 400 else 0.3
    width = max(left + cell * len(columns) + 1.05, 3.4)
    height = 0.26 * len(rows) + 0.62
    if height < 1.7:
        height = 1.7
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, 0.46 / height, (width - left - 1.05) / width, (height - 0.54) / height))
    bar = figure.add_axes(((width - 0.9) / width, 0.46 / height, 0.12 / width, (height - 0.54) / height))
    seaborn.heatmap(
        values, ax=axes, cbar_ax=bar, vmin=scale.low, vmax=scale.high, cmap=scale.colour_map,
        xticklabels=columns, yticklabels=rows, linewidths=0, rasterized=False,
    )  # fmt: skip
    axes.collections[0].set_gid("cells")
    for colours in bar.collections:
        colours.set_rasterized(True)  # 256 paths otherwise
    bar.set_ylabel(unit, fontsize=8)
    bar.tick_params(labelsize=8, length=2)
    axes.tick_params(length=0, rotation=0)
    axes.set_xlabel(across, labelpad=2)
    table = lookup_table(scale.colour_map)
    size = 8 if len(columns) <= 16 else 6.5
    for number, value in enumerate(values.ravel()):
        row, column = divmod(number, len(columns))
        known = bool(np.isfinite(value))
        shade = table[int(np.clip(255 * (value - scale.low) / (scale.high - scale.low), 0, 255))] if known else None
        dark = shade is not None and reads_dark(shade)
        text = short(value, scale.digits) if known else "–"
        colour = "#ffffff" if dark else ("#000000" if known else MISSING)
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=size, color=colour, gid=f"value-{number}")
    return figure


def short(value: float, digits: int) -> str:
    """A mean without the zero before its point.

    >>> short(0.876, 2), short(-0.5, 2), short(1.0, 2)
    ('.88', '−.50', '1.00')
    """
    text = f"{abs(value):.{digits}f}".removeprefix("0")
    return f"−{text}" if value < 0 and text.strip(".0") else text
