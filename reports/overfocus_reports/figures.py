"""Draws every figure once and keeps it twice: as a PNG in the folder of the page and as SVG for the page."""

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from overfocus.figures.curves import layer_curves
from overfocus.figures.image_figures import image_figure, image_rows_figure
from overfocus.figures.publication import same_depth
from overfocus.figures.stability import Scale, heat_map, labels_of, scale_of, shows_retained
from overfocus.figures.style import INK, save_figure, styled
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.variants import CLEAN_VARIANT, Variant
from overfocus_reports.model import Model
from overfocus_reports.payload import metrics_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PIXELS_PER_POINT = 1.3
"""Size of figures on the page unless they fill their card; 9-point text comes out at 12 pixels."""


def inline_svg(figure: "Figure", name: str, description: str, **attributes: object) -> str:
    """The figure as one `<svg>` element.

    `name` prefixes every identifier, so that figures do not meet; `attributes` become `data-` attributes for the page's script.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'\b(d|x|y|transform|points|width|height)="([^"]*)"', rounded, text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", text)
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    text = text.replace(INK, "currentColor")
    text = re.sub(r">\s+<", "><", text)
    known = "".join(f' data-{key.replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items())
    label = html.escape(description)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box
    width = float(box[1].split()[2]) * PIXELS_PER_POINT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}"'
    head += f' style="width: {width:.0f}px"'
    return re.sub(r"^<svg[^>]*>", lambda _: f'{head} role="img" aria-label="{label}"{known}>', text).strip()


def rounded(match: re.Match[str]) -> str:
    """An attribute with its numbers cut to two digits after the point."""
    return f'{match[1]}="{re.sub(r"-?[0-9]+[.][0-9]{3,}", lambda number: f"{float(number[0]):.2f}", match[2])}"'


def plot_frame(figure: "Figure", axes: "Axes") -> dict[str, str]:
    """How data turn into positions in the SVG: x = left + layer · step, y = bottom − value · rise; in its own units (points)."""
    height = figure.get_figheight() * 72
    scale = 72 / figure.dpi
    (x0, y0), (x1, y1) = axes.transData.transform([(0, 0), (1, 1)]) * scale
    return {"left": f"{x0:.4f}", "step": f"{x1 - x0:.4f}", "bottom": f"{height - y0:.4f}", "rise": f"{y1 - y0:.6f}"}


LEGEND_INCHES, TITLE_INCHES = 2.0, 0.25
MOST_COLUMNS = 5
"""Versions of an image that stand side by side in its picture file."""


@dataclass
class Figures:
    """The SVG of each figure by metric."""

    curves: dict[str, str] = field(default_factory=dict)
    grids: dict[str, str] = field(default_factory=dict)
    """Corruption × severity, over all layers."""
    matrices: dict[str, dict[int, str]] = field(default_factory=dict)
    """Corruption × layer, at the severity shown first, by the number of layers: models that have as many share one."""


def draw_figures(models: Sequence[Model], picked: Variant, folder: Path) -> Figures:
    """Draw the curves of every metric and the heat maps of the stability metrics; PNGs go into `folder`."""
    found = Figures()
    with styled():
        for metric in metrics_of(models):
            having = [model for model in models if metric in model.statistics.values]
            found.curves[metric] = draw_curves(models, metric, picked, folder)
            if CATALOGUE[metric].group == "stability":
                every = [model.statistics for model in having]
                scale, retained = scale_of(every, metric), shows_retained(every, metric)
                found.grids[metric] = draw_grid(having[0], metric, scale, folder, retained=retained)
                found.matrices[metric] = {}
                for model in having:
                    layers = len(model.statistics.layers)
                    if layers not in found.matrices[metric]:
                        found.matrices[metric][layers] = draw_matrix(model, metric, picked, scale, folder, retained=retained)
    return found


def draw_curves(models: Sequence[Model], metric: str, picked: Variant, folder: Path) -> str:
    """The curves of one metric over the layers."""
    names = [model.name for model in models]
    figure, axes = layer_curves([model.statistics for model in models], names, metric, picked)
    name = f"curves-{metric}"
    description = f"{title_of(metric)} ({CATALOGUE[metric].unit}) of each layer, clean and under each corruption"
    svg = inline_svg(figure, name, description, metric=metric, **plot_frame(figure, axes))
    add_legend(figure, axes)
    axes.set_title(title_of(metric), fontsize=10, loc="left")
    save_figure(figure, folder / f"layers-{metric}.png")
    return svg


def add_legend(figure: "Figure", axes: "Axes") -> None:
    """Widen the figure for a legend at the right and a title above, the plot itself staying as large as it is."""
    width, height = figure.get_size_inches()
    box = axes.get_position()
    wider, higher = width + LEGEND_INCHES, height + TITLE_INCHES
    figure.set_size_inches(wider, higher)
    axes.set_position((box.x0 * width / wider, box.y0 * height / higher, box.width * width / wider, box.height * height / higher))
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)


def draw_grid(model: Model, metric: str, scale: Scale, folder: Path, *, retained: bool) -> str:
    """Corruption × severity of one metric of stability, or of what is retained of it."""
    statistics, (title, unit) = model.statistics, labels_of(metric, retained=retained)
    rows, severities = corruption_names(model), [str(severity) for severity in statistics.severities]
    return keep(
        lambda: heat_map(statistics.grid(metric, retained=retained), rows, severities, unit, "severity", scale),
        title, unit, metric, "severity", "mean over layers and images", folder,
    )  # fmt: skip


def draw_matrix(model: Model, metric: str, picked: Variant, scale: Scale, folder: Path, *, retained: bool) -> str:
    """Corruption × layer of one metric of stability, or of what is retained of it."""
    statistics, (title, unit) = model.statistics, labels_of(metric, retained=retained)
    rows, layers = corruption_names(model), [str(layer.number) for layer in statistics.layers]
    return keep(
        lambda: heat_map(statistics.matrix(metric, picked.severity, retained=retained), rows, layers, unit, "layer", scale),
        title, unit, metric, "layer", f"severity {picked.severity}, mean over images", folder, layers=len(layers),
    )  # fmt: skip


def corruption_names(model: Model) -> list[str]:
    """The corruptions in words."""
    return [corruption.replace("_", " ") for corruption in model.statistics.corruptions]


def keep(
    draw: "Callable[[], Figure]", title: str, unit: str, metric: str, across: str, what: str, folder: Path, **attributes: int
) -> str:
    """Draw a heat map, write it as PNG with a title, and return its SVG."""
    figure = draw()
    description = f"{title} ({unit}), corruption by {across}, {what}"
    name = "-".join([f"by-{across}-{metric}", *map(str, attributes.values())])
    svg = inline_svg(figure, name, description, metric=metric, across=across, **attributes)
    figure.axes[0].set_title(f"{title}: {what}", fontsize=9, loc="left")
    save_figure(figure, folder / f"{metric}-by-{across}.png", bbox_inches="tight", pad_inches=0.08)
    return svg


def draw_images(models: Sequence[Model], picked: Variant, folder: Path, high: float) -> None:
    """Write image-<number>.png for each displayed image: of one model clean, then the corruptions at the severity of `picked`;
    of several a row for each, clean and `picked`.

    `high` is the upper end of the colour scale, in powers of two of uniform attention; it is the same for all files.
    """
    first = models[0]
    variants = first.statistics.variants
    shown = list(dict.fromkeys([CLEAN_VARIANT, picked]))
    if len(models) == 1:
        shown = [CLEAN_VARIANT, *[variant for variant in variants if variant.severity and variant.severity == picked.severity]]
    place = first.statistics.layers.index(first.focus)
    layers = [
        model.statistics.layers[same_depth(place, len(first.statistics.layers), len(model.statistics.layers))] for model in models
    ]
    maps = [model.displayed.received_maps for model in models]
    with styled():
        for image in first.run.displayed:
            if len(models) == 1:
                figure = image_figure(maps[0], image, shown[:MOST_COLUMNS], layers[0], high)
            else:
                figure = image_rows_figure(maps, [model.name for model in models], [image] * len(models), shown, layers, high)
            save_figure(figure, folder / f"image-{image}.png", dpi=110)
