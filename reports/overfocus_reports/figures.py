"""Draws every figure once and keeps it twice: as a PNG in the run's folder and as SVG for the page."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from overfocus.figures.curves import layer_curves
from overfocus.figures.image_versions import image_figure
from overfocus.figures.layer_statistics import LayerStatistics
from overfocus.figures.layers import Layer
from overfocus.figures.stability_map import heat_map, scale_of
from overfocus.figures.style import styled
from overfocus.figures.variants import CLEAN, Variant
from overfocus.figures.wording import title_of, unit_of
from overfocus.metrics.catalogue import CATALOGUE
from overfocus_reports.displayed import Displayed
from overfocus_reports.svg import inline_svg, plot_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGEND_INCHES, TITLE_INCHES = 2.0, 0.25
MOST_COLUMNS = 5
"""Versions of an image that stand side by side in its picture file."""


@dataclass
class Figures:
    """The SVG of each figure by metric."""

    curves: dict[str, str] = field(default_factory=dict)
    grids: dict[str, str] = field(default_factory=dict)
    """Corruption × severity, over all layers."""
    matrices: dict[str, str] = field(default_factory=dict)
    """Corruption × layer, at the severity shown first."""


def draw_figures(statistics: LayerStatistics, picked: Variant, folder: Path) -> Figures:
    """Draw the curves of every metric and the heat maps of the stability metrics; PNGs go into `folder`."""
    found = Figures()
    with styled():
        for metric in statistics.metrics:
            found.curves[metric] = draw_curves(statistics, metric, picked, folder)
            if CATALOGUE[metric].group == "stability":
                found.grids[metric], found.matrices[metric] = draw_heat_maps(statistics, metric, picked, folder)
    return found


def draw_curves(statistics: LayerStatistics, metric: str, picked: Variant, folder: Path) -> str:
    """The curves of one metric over the layers."""
    figure, axes = layer_curves(statistics, metric, picked)
    name = f"curves-{metric}"
    description = f"{title_of(metric)} ({unit_of(metric)}) of each layer, clean and under each corruption"
    svg = inline_svg(figure, name, description, metric=metric, **plot_frame(figure, axes))
    add_legend(figure, axes)
    axes.set_title(title_of(metric), fontsize=10, loc="left")
    figure.savefig(folder / f"layers-{metric}.png")
    return svg


def add_legend(figure: "Figure", axes: "Axes") -> None:
    """Widen the figure for a legend at the right and a title above, the plot itself staying as large as it is."""
    width, height = figure.get_size_inches()
    box = axes.get_position()
    wider, higher = width + LEGEND_INCHES, height + TITLE_INCHES
    figure.set_size_inches(wider, higher)
    axes.set_position((box.x0 * width / wider, box.y0 * height / higher, box.width * width / wider, box.height * height / higher))
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)


def draw_heat_maps(statistics: LayerStatistics, metric: str, picked: Variant, folder: Path) -> tuple[str, str]:
    """Corruption × severity and corruption × layer of one stability metric."""
    scale = scale_of([statistics], metric)
    rows = [corruption.replace("_", " ") for corruption in statistics.corruptions]
    severities = [str(severity) for severity in statistics.severities]
    layers = [str(layer.number) for layer in statistics.layers]
    kinds: list[tuple[str, Callable[[], Figure], str]] = [
        (
            "severity",
            lambda: heat_map(statistics.grid(metric), rows, severities, metric, "severity", scale),
            "mean over layers and images",
        ),
        (
            "layer",
            lambda: heat_map(statistics.matrix(metric, picked.severity), rows, layers, metric, "layer", scale),
            f"severity {picked.severity}, mean over images",
        ),
    ]
    svgs = []
    for across, draw, what in kinds:
        figure = draw()
        description = f"{title_of(metric)} ({unit_of(metric)}), corruption by {across}, {what}"
        svgs.append(inline_svg(figure, f"by-{across}-{metric}", description, metric=metric, across=across))
        figure.axes[0].set_title(f"{title_of(metric)}: {what}", fontsize=9, loc="left")
        save(figure, folder / f"{metric}-by-{across}.png")
    return svgs[0], svgs[1]


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG as large as what is drawn, its title included."""
    figure.savefig(path, bbox_inches="tight", pad_inches=0.08)


def draw_images(displayed: Displayed, picked: Variant, layer: Layer, folder: Path, high: float) -> None:
    """Write image-<number>.png for each displayed image: clean, then the corruptions at the severity of `picked`.

    `high` is the upper end of the colour scale, in powers of two of uniform attention; it is the same for all files.
    """
    shown = [CLEAN, *[variant for variant in displayed.variants if variant.severity == picked.severity]][:MOST_COLUMNS]
    with styled():
        for image in displayed.run.displayed:
            figure = image_figure(displayed.received_maps, image, shown, layer, high)
            figure.savefig(folder / f"image-{image}.png", dpi=110)
