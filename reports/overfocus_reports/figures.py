"""Draws the page's figures: curves and heat maps straight as SVG, the displayed images as PNG.

A page holds some thirty figures that its script moves afterwards; as plain SVG each takes a millisecond, in matplotlib a
second. What is drawn once, for a paper or a section of its own, comes from matplotlib and enters the page by `inline_svg`.
"""

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from overfocus.figures.curves import is_relative, positions
from overfocus.figures.draw import same_depth
from overfocus.figures.images import attention_norm, blended, multiple, outlined, scale_ticks, top_places
from overfocus.figures.stability import Scale, labels_of, scale_of, shows_retained
from overfocus.figures.style import INK, MISSING, SEQUENTIAL, line_style, lookup_table, model_colour, reads_dark
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.statistics.intervals import value_range
from overfocus.statistics.panel import LayerStatistics
from overfocus.variants import CLEAN_VARIANT, Variant
from overfocus_reports.displayed import image_uri
from overfocus_reports.model import Model
from overfocus_reports.payload import metrics_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = npt.NDArray[np.float64]

PIXELS_PER_POINT = 1.3
"""Size of figures on the page unless they fill their card; 9-point text comes out at 12 pixels."""
DASHED = {"-": "", "--": "3.7 1.6", ":": "0.1 2", "-.": "6.4 1.6 1 1.6"}
"""Dash patterns in multiples of the line's width."""
CARD = (310.0, 180.0)
"""Points of the figure of curves: about as wide as a card of the page, so that 9-point text stays legible there."""
MARGINS = (45.0, 7.0, 7.0, 30.0)
"""Of the plot in it: left, top, right, bottom."""


def element(tag: str, body: str = "", /, **attributes: object) -> str:
    """One SVG element; underscores in names of attributes become hyphens, values are escaped, None is left out."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(f"{value:.2f}" if isinstance(value, float) else str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{written}>{body}</{tag}>" if body or tag in ("g", "text") else f"<{tag}{written}/>"


def text(x: float, y: float, words: str, size: float = 9.0, anchor: str = "middle", **attributes: object) -> str:
    """A label whose baseline starts, ends or is centred at (x, y)."""
    return element(
        "text", html.escape(words), x=x, y=y, font_size=size, text_anchor=anchor, **{"fill": "currentColor"} | attributes
    )


def drawing(width: float, height: float, description: str, body: str, **attributes: object) -> str:
    """A whole `<svg>`; `attributes` become `data-` attributes for the page's script."""
    known = {f"data_{name}": value for name, value in attributes.items()}
    return element(
        "svg", body, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width:g} {height:g}",
        style=f"width: {width * PIXELS_PER_POINT:.0f}px; font-family: var(--sans)", role="img", aria_label=description, **known,
    )  # fmt: skip


def standalone(svg: str) -> str:
    """The same as a file of its own: sized, dark on white, without the page's variables."""
    sized = svg.replace("var(--sans)", "sans-serif").replace(' style="', f' style="color: {INK}; background: white; ', 1)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{sized}\n'


def ticks_between(low: float, high: float, most: int = 5) -> dict[float, str]:
    """At most about `most` round values within the limits, with their labels.

    >>> list(ticks_between(-0.01, 1.02).values())
    ['0.00', '0.25', '0.50', '0.75', '1.00']
    """
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999) * size
    places = next(places for places in range(20) if abs(step * 10**places - round(step * 10**places)) < 1e-6 * step * 10**places)
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return {number * step: f"{number * step:,.{places}f}".replace("-", "−") for number in numbers}


RING = " m -2.5 0 a 2.5 2.5 0 1 0 5 0 a 2.5 2.5 0 1 0 -5 0"
"""Around the point that a path has come to; the page's script draws the same."""


@dataclass(frozen=True)
class Plot:
    """Where values are in a figure of curves: x = left + layer · step, y = bottom − value · rise, in points."""

    left: float
    step: float
    bottom: float
    rise: float

    @classmethod
    def between(cls, x: tuple[float, float], y: tuple[float, float]) -> "Plot":
        """With these limits on a card."""
        left, top, right, bottom = MARGINS
        step = (CARD[0] - left - right) / (x[1] - x[0])
        rise = (CARD[1] - top - bottom) / (y[1] - y[0])
        return cls(left - x[0] * step, step, CARD[1] - bottom + y[0] * rise, rise)

    def at(self, x: float, y: float) -> str:
        """A point of a path."""
        return f"{self.left + x * self.step:.2f} {self.bottom - y * self.rise:.2f}"

    def line(self, at: Values, values: Values) -> str:
        """A path through the known values; a value whose neighbours are unknown becomes a ring."""
        known = np.isfinite(np.concatenate([[np.nan], values, [np.nan]]))
        parts = []
        for place in np.flatnonzero(known[1:-1]):
            begins, ends = not known[place], not known[place + 2]
            parts.append(("M " if begins else "L ") + self.at(at[place], values[place]) + (RING if begins and ends else ""))
        return " ".join(parts)

    def band(self, at: Values, low: Values, high: Values) -> str:
        """The outline of each unbroken stretch between the ends of intervals."""
        known = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
        stretches = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(known) else []
        outlines = [
            [*(self.at(at[place], low[place]) for place in part), *(self.at(at[place], high[place]) for place in part[::-1])]
            for part in stretches
        ]
        return " ".join(f"M {' L '.join(points)} Z" for points in outlines)

    def frame(self) -> dict[str, str]:
        """For the page's script."""
        return {
            "left": f"{self.left:.4f}",
            "step": f"{self.step:.4f}",
            "bottom": f"{self.bottom:.4f}",
            "rise": f"{self.rise:.6f}",
        }


def stroke(colour: str, width: float, dash: str = "-", opacity: float = 1.0) -> str:
    """The style of a line."""
    pattern = " ".join(f"{float(length) * width:.1f}" for length in DASHED[dash].split())
    dashed = f"; stroke-dasharray: {pattern}" if pattern else ""
    line = f"fill: none; stroke: {colour}; stroke-width: {width:g}; stroke-opacity: {opacity:g}"
    return f"{line}; stroke-linecap: round; stroke-linejoin: round{dashed}"


def line_keys(model: Model) -> list[tuple[str, str]]:
    """Each corruption in words and the style of its curves, for a legend."""
    return [(name, stroke(line_style(place)[0], 2.0, line_style(place)[1])) for place, name in enumerate(corruption_names(model))]


def curves_svg(models: Sequence[Model], metric: str, picked: Variant) -> str:
    """A metric's curves over the layers at the severity of `picked`, whose own curve has a band.

    Of one model all corruptions are drawn; of several the clean curve (dotted) and the picked one, a colour for each model.
    Groups carry names for the page's script: clean-line-<model>, clean-band-<model>, line-<model>-<corruption>,
    line-<model>-picked, picked-band-<model>, picked-layer.
    """
    every = [model.statistics for model in models]
    relative = is_relative(every)
    last, margin = (1.0, 0.04) if relative else (float(len(every[0].layers) - 1), 0.5)
    limits = np.array([value_limits(one, metric) for one in every if metric in one.values])
    low, high = float(limits[:, 0].min()), float(limits[:, 1].max())
    plot = Plot.between((-margin, last + margin), (low, high))
    name = f"curves-{metric}"
    body = axes_of(plot, metric, low, high, last, relative=relative) + references(plot, every[0], metric, relative=relative)
    marker = f"M {plot.at(0, low)} L {plot.at(0, high)}"
    body += element("g", element("path", d=marker, style=stroke("currentColor", 1, ":", 0.4)), id=f"{name}-picked-layer")
    for number, statistics in enumerate(every):
        if metric in statistics.values:
            body += model_curves(plot, statistics, metric, number, picked, relative=relative, several=len(models) > 1)
    description = f"{title_of(metric)} ({CATALOGUE[metric].unit}) of each layer, clean and under each corruption"
    attributes: dict[str, object] = {"metric": metric, **plot.frame()}
    return drawing(CARD[0], CARD[1], description, body, **attributes)


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
    return max(low - margin, lowest), min(high + margin, highest)


def axes_of(plot: Plot, metric: str, low: float, high: float, last: float, *, relative: bool) -> str:
    """Grid, spines, ticks and labels."""
    left, top, right, bottom = MARGINS[0], MARGINS[1], CARD[0] - MARGINS[2], CARD[1] - MARGINS[3]
    body, ticks = "", ticks_between(low, high)
    if max((len(label) for label in ticks.values()), default=1) > 5:
        ticks = ticks_between(low, high, 3)
    longest = max((len(label) for label in ticks.values()), default=1)
    size = 9 * min(1, 5 / longest)  # room is left for five characters beside the axis label
    for value, label in ticks.items():
        y = plot.bottom - value * plot.rise
        body += element("path", d=f"M {left} {y:.2f} H {right}", style=stroke("currentColor", 0.6, opacity=0.12))
        body += text(left - 4, y + 3, label, size, anchor="end")
    layers = {0.0: "0", 0.25: "0.25", 0.5: "0.5", 0.75: "0.75", 1.0: "1"} if relative else layer_ticks(int(last))
    for value, label in layers.items():
        x = plot.left + value * plot.step
        body += element("path", d=f"M {x:.2f} {bottom} v 3", style=stroke("currentColor", 0.7))
        body += text(x, bottom + 12, label)
    body += element("path", d=f"M {left} {top} V {bottom} H {right}", style=stroke("currentColor", 0.7))
    words = "relative depth, from input to output" if relative else "layer, from input to output"
    body += text((left + right) / 2, CARD[1] - 4, words)
    x, y = max(8.0, left - 12 - 5.2 * min(longest, 5)), (top + bottom) / 2
    return body + text(x, y, CATALOGUE[metric].unit, transform=f"rotate(-90 {x:.1f} {y:.1f})")


def layer_ticks(last: int) -> dict[float, str]:
    """Every layer, or every second, fifth or tenth where there are many."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if last / step <= 12 or step == 100)
    return {float(number): str(number) for number in range(0, last + 1, step)}


def references(plot: Plot, statistics: LayerStatistics, metric: str, *, relative: bool) -> str:
    """Dashed: what uniform attention would give; dotted: another image, the control. Each only where there is one.

    Where depth is relative, only values that are the same in every layer have a line.
    """
    layers = len(statistics.layers)
    stable = CATALOGUE[metric].group == "stability"
    uniform = [math.nan] * layers if stable else statistics.uniform(metric)
    body = ""
    for values, dash in ((uniform, "--"), (statistics.another_image(metric), ":")):
        measured = metric in statistics.values and np.isfinite(statistics.values[metric]["mean"][0]).any(axis=0)
        shown = np.where(measured, np.array(values, dtype=float), np.nan)
        known = shown[np.isfinite(shown)]
        if not len(known) or (relative and np.ptp(known)):
            continue
        if relative:
            path = f"M {plot.at(-0.04, known[0])} L {plot.at(1.04, known[0])}"
        else:
            steps = [np.repeat(shown, 2), (np.arange(2 * layers) + 1) // 2 - 0.5]
            path = plot.line(steps[1], steps[0])
        body += element("path", d=path, style=stroke("currentColor", 1, dash, 0.6))
    return body


def model_curves(
    plot: Plot, statistics: LayerStatistics, metric: str, number: int, picked: Variant, *, relative: bool, several: bool
) -> str:
    """The lines and bands of one model; groups of variants that were not measured stay out."""
    parts, at = statistics.values[metric], positions(statistics, relative=relative)

    def line(variant: Variant, part: str, colour: str, width: float, dash: str = "-", opacity: float = 1.0) -> str:
        row = parts["mean"][0, statistics.variants.index(variant)]
        path = element("path", d=plot.line(at, row), style=stroke(colour, width, dash, opacity))
        return element("g", path, id=f"curves-{metric}-{part}")

    def band(variant: Variant, part: str, colour: str, opacity: float) -> str:
        row = statistics.variants.index(variant)
        path = plot.band(at, parts["low"][0, row], parts["high"][0, row])
        style = f"fill: {colour}; fill-opacity: {opacity:g}; stroke: none"
        return element("g", element("path", d=path, class_="band", style=style), id=f"curves-{metric}-{part}")

    body = ""
    if several and picked.severity:
        body += band(picked, f"picked-band-{number}", model_colour(number), 0.18)
        body += line(picked, f"line-{number}-picked", model_colour(number), 1.8)
    for place, corruption in enumerate([] if several else statistics.corruptions):
        variant = Variant(corruption, picked.severity)
        if variant in statistics.variants:
            colour, dash = line_style(place)
            chosen = corruption == picked.corruption
            if chosen:
                body += band(variant, f"picked-band-{number}", colour, 0.22)
            body += line(variant, f"line-{number}-{place}", colour, 2.0 if chosen else 1.1, dash, 1.0 if chosen else 0.55)
    if np.isfinite(parts["mean"][0, statistics.variants.index(CLEAN_VARIANT)]).any():
        colour = model_colour(number) if several else "currentColor"
        body += band(CLEAN_VARIANT, f"clean-band-{number}", colour, 0.1 if several else 0.18)
        body += line(CLEAN_VARIANT, f"clean-line-{number}", colour, 1.4 if several else 1.8, ":" if several else "-")
    return body


@dataclass(frozen=True)
class Table:
    """Numbers with names for rows and columns, to be coloured on one scale."""

    values: Values
    """(rows, columns); NaN where nothing was measured."""
    rows: Sequence[str]
    columns: Sequence[str]
    across: str
    """What the columns are."""


def heat_map(table: Table, unit: str, scale: Scale, name: str, description: str, **attributes: object) -> str:
    """Coloured cells with their numbers and the colour scale; what is low and what is high stand beside it.

    The cells are the children of the group <name>-cells, row by row, and their numbers the groups <name>-value-<number>.
    """
    left = 14 + 5.4 * max(len(row) for row in table.rows)
    cell, tall = (30.0 if table.values.size <= 400 else 22.0), 19.0
    right, bottom = left + cell * len(table.columns), tall * len(table.rows)
    height = max(bottom, 100.0)
    colours = lookup_table(scale.colour_map)
    size = 8.0 if len(table.columns) <= 16 else 6.5
    cells = numbers = ""
    for number, value in enumerate(table.values.ravel()):
        row, column = divmod(number, len(table.columns))
        known = bool(np.isfinite(value))
        shade = colours[int(np.clip(255 * (value - scale.low) / (scale.high - scale.low), 0, 255))] if known else None
        fill = "none" if shade is None else f"#{bytes(shade).hex()}"
        cells += element("rect", x=left + cell * column, y=tall * row, width=cell, height=tall, style=f"fill: {fill}")
        ink = MISSING if shade is None else "#ffffff" if reads_dark(shade) else "#000000"
        written = short(value, scale.digits) if known else "–"
        label = text(left + cell * (column + 0.5), tall * (row + 0.5) + 3, written, size, style=f"fill: {ink}", fill=None)
        numbers += element("g", label, id=f"{name}-value-{number}", pointer_events="none")
    body = element("g", cells, id=f"{name}-cells") + numbers
    for row, label in enumerate(table.rows):
        body += text(left - 5, tall * (row + 0.5) + 3, label, anchor="end")
    for column, label in enumerate(table.columns):
        body += text(left + cell * (column + 0.5), bottom + 11, label)
    body += text((left + right) / 2, bottom + 24, table.across)
    body += colour_bar(right + 14, height, unit, scale, f"{name}-scale")
    return drawing(right + 75, height + 32, description, f'<g transform="translate(0 4)">{body}</g>', **attributes)


def colour_bar(x: float, height: float, unit: str, scale: Scale, name: str) -> str:
    """The colour scale as a bar that ends upwards at the high value, with its unit."""
    colours = lookup_table(scale.colour_map)[:: 255 // 15]
    stops = "".join(
        element("stop", offset=place / (len(colours) - 1), stop_color=f"#{bytes(colour).hex()}")
        for place, colour in enumerate(colours)
    )
    body = element("linearGradient", stops, id=name, x1=0, x2=0, y1=1, y2=0)
    body += element("rect", x=x, y=0, width=8, height=height, fill=f"url(#{name})")
    for value, label in ticks_between(scale.low, scale.high, 4).items():
        y = height * (1 - (value - scale.low) / (scale.high - scale.low))
        body += text(x + 11, min(max(y + 3, 6.0), height), label, 8.0, "start")
    lines = unit.split(", ") if len(unit) * 4 > height else [unit]
    for place, line in enumerate(lines):
        at = x + 46 + 9 * place - 4 * (len(lines) - 1)
        body += text(at, height / 2, line, 8.0, transform=f"rotate(-90 {at:.1f} {height / 2:.1f})")
    return body


def short(value: float, digits: int) -> str:
    """A mean without the zero before its point.

    >>> short(0.876, 2), short(-0.5, 2), short(1.0, 2)
    ('.88', '−.50', '1.00')
    """
    written = f"{abs(value):.{digits}f}".removeprefix("0")
    return f"−{written}" if value < 0 and written.strip(".0") else written


@dataclass
class Figures:
    """The SVG of each figure by metric."""

    curves: dict[str, str] = field(default_factory=dict)
    grids: dict[str, str] = field(default_factory=dict)
    """Corruption × severity, over all layers."""
    matrices: dict[str, dict[int, str]] = field(default_factory=dict)
    """Corruption × layer, at the severity shown first, by the number of layers: models that have as many share one."""


def draw_figures(models: Sequence[Model], picked: Variant, folder: Path) -> Figures:
    """Draw the curves of every metric and the heat maps of the metrics of stability; each stands in `folder` as SVG, too."""
    found = Figures()
    for metric in metrics_of(models):
        having = [model for model in models if metric in model.statistics.values]
        found.curves[metric] = curves_svg(models, metric, picked)
        write_svg(folder / f"layers-{metric}.svg", found.curves[metric])
        if CATALOGUE[metric].group != "stability":
            continue
        every = [model.statistics for model in having]
        scale, retained = scale_of(every, metric), shows_retained(every, metric)
        found.grids[metric] = draw_grid(having[0], metric, scale, retained=retained)
        write_svg(folder / f"{metric}-by-severity.svg", found.grids[metric])
        found.matrices[metric] = {}
        for model in having:
            layers = len(model.statistics.layers)
            if layers not in found.matrices[metric]:
                found.matrices[metric][layers] = draw_matrix(model, metric, picked, scale, retained=retained)
        write_svg(folder / f"{metric}-by-layer.svg", found.matrices[metric][len(every[0].layers)])
    return found


def write_svg(path: Path, svg: str) -> None:
    """Keep a figure of the page as a file of its own."""
    path.write_text(standalone(svg), encoding="utf-8")


def draw_grid(model: Model, metric: str, scale: Scale, *, retained: bool) -> str:
    """Corruption × severity of one metric of stability, or of what is retained of it."""
    statistics, (title, unit) = model.statistics, labels_of(metric, retained=retained)
    severities = [str(severity) for severity in statistics.severities]
    table = Table(statistics.grid(metric, retained=retained), corruption_names(model), severities, "severity")
    description = f"{title} ({unit}), corruption by severity, mean over layers and images"
    return heat_map(table, unit, scale, f"by-severity-{metric}", description, metric=metric, across="severity")


def draw_matrix(model: Model, metric: str, picked: Variant, scale: Scale, *, retained: bool) -> str:
    """Corruption × layer of one metric of stability, or of what is retained of it."""
    statistics, (title, unit) = model.statistics, labels_of(metric, retained=retained)
    layers = [str(layer.number) for layer in statistics.layers]
    values = statistics.matrix(metric, picked.severity, retained=retained)
    table = Table(values, corruption_names(model), layers, "layer")
    description = f"{title} ({unit}), corruption by layer, severity {picked.severity}, mean over images"
    name = f"by-layer-{metric}-{len(layers)}"
    return heat_map(table, unit, scale, name, description, metric=metric, across="layer", layers=len(layers))


def corruption_names(model: Model) -> list[str]:
    """The corruptions in words."""
    return [corruption.replace("_", " ") for corruption in model.statistics.corruptions]


TILE, GAP, HEAD, BAR = 224, 8, 22, 96
"""Pixels of an image in its file, between images, of a line of text, and of the colour scale at the right."""
MOST_COLUMNS = 5
"""Variants of an image side by side in its file."""


def draw_images(models: Sequence[Model], picked: Variant, folder: Path, high: float) -> None:
    """Write image-<number>.png for each displayed image under its received attention, a row for each model: of one model clean,
    then the corruptions at the severity of `picked`; of several clean and `picked`.

    `high` is the upper end of the colour scale, in powers of two of uniform attention; it is the same for all files.
    """
    first = models[0]
    shown = list(dict.fromkeys([CLEAN_VARIANT, picked]))
    if len(models) == 1:
        same = [variant for variant in first.statistics.variants if variant.severity and variant.severity == picked.severity]
        shown = [CLEAN_VARIANT, *same][:MOST_COLUMNS]
    for image in first.run.displayed:
        rows = [
            (model, [overlaid(model, image, variant, layer_beside(first, model), high) for variant in shown]) for model in models
        ]
        sheet(rows, first, shown, high).save(folder / f"image-{image}.png")


def pair_of(model: Model, high: float) -> dict[str, Any] | None:
    """The displayed image whose attention moved most under the most damaging corruption, clean and corrupted, for the first
    screen; None where no image is displayed.
    """
    displayed, damaging = model.run.displayed, model.most_damaging
    if not displayed:
        return None
    image, shown = displayed[0], [CLEAN_VARIANT]
    if damaging is not None:
        number = model.statistics.variants.index(damaging)
        image = max(displayed, key=lambda image: np.nan_to_num(model.values.moved(number, image), nan=-1.0))
        shown.append(damaging)
    layer, place = model.focus, model.statistics.layers.index(model.focus)
    images = [
        {
            "label": variant.label,
            "alt": f"attention received in layer {layer.number}, {variant.label}",
            "uri": image_uri(overlaid(model, image, variant, place, high), 384, 80),
        }
        for variant in shown
    ]
    words = f"Attention that each patch receives in layer {layer.number}, the most concentrated one"
    words += f"; outlined: the {layer.top} most attended of {layer.tokens}" if layer.top > 1 else "; outlined: the most attended"
    if damaging is not None and len(displayed) > 1:
        words += f". Of {len(displayed)} displayed images this is the one where most attention moves under {damaging.words}"
    return {"images": images, "caption": words + "."}


def layer_beside(first: Model, model: Model) -> int:
    """Place of the model's layer at the depth of the first model's most overfocused one."""
    place = first.statistics.layers.index(first.focus)
    return same_depth(place, len(first.statistics.layers), len(model.statistics.layers))


def overlaid(model: Model, image: int, variant: Variant, place: int, high: float) -> npt.NDArray[np.uint8]:
    """An image under the received attention of one layer, its top k outlined; bare where that was not kept."""
    kept = model.run.maps(image, ())
    pixels = kept.pixels[kept.variants.index(variant)]
    profile = model.displayed.received_maps(image, variant)[place]
    if profile is None:
        return np.asarray(pixels, dtype=np.uint8)
    layer = model.statistics.layers[place]
    mixed = blended(pixels, profile * profile.size, attention_norm(high))
    return outlined(mixed, top_places(profile, layer), profile.shape)


def sheet(rows: Sequence[tuple[Model, list[npt.NDArray[np.uint8]]]], first: Model, shown: Sequence[Variant], high: float) -> Any:
    """The heat maps of some models as one image, with the names of variants and layers and the colour scale."""
    tall = [round(TILE * tiles[0].shape[0] / tiles[0].shape[1]) for _, tiles in rows]
    width, height = (TILE + GAP) * len(shown) + BAR, HEAD + sum(tall) + (HEAD + GAP) * len(rows)
    image = Image.new("RGB", (width, max(height, 240)), "white")
    pen, font = ImageDraw.Draw(image), font_of(13)
    for column, variant in enumerate(shown):
        pen.text(((TILE + GAP) * column, 3), variant.label, INK, font)
    top = HEAD
    for (model, tiles), side in zip(rows, tall, strict=True):
        for column, pixels in enumerate(tiles):
            image.paste(Image.fromarray(pixels).resize((TILE, side)), ((TILE + GAP) * column, top))
        number = model.statistics.layers[layer_beside(first, model)].number
        pen.text((0, top + side + 3), f"{model.name}, layer {number}" if len(rows) > 1 else f"layer {number}", INK, font)
        top += side + HEAD + GAP
    ramp = Image.fromarray(lookup_table(SEQUENTIAL)[::-1][:, None]).resize((14, 176))
    left = width - BAR + 6
    image.paste(ramp, (left, HEAD + 18))
    pen.text((left, HEAD - 2), "× uniform", INK, font)
    for value, share in scale_ticks(high):
        pen.text((left + 19, HEAD + 18 + 176 * (1 - share)), multiple(value), INK, font, anchor="lm")
    return image


def font_of(size: int) -> Any:
    """DejaVu Sans, which matplotlib brings along."""
    found = find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    return ImageFont.truetype(str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def inline_svg(figure: "Figure", name: str, description: str, **attributes: object) -> str:
    """A figure of matplotlib as one `<svg>` element.

    `name` prefixes every identifier, so that figures do not meet; `attributes` become `data-` attributes for the page's script.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    found = buffer.getvalue()
    found = found[found.index("<svg") :]
    found = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", found, flags=re.S)
    found = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', found)
    found = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', found)
    found = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", found)
    found = re.sub(r'\b(d|x|y|transform|points|width|height)="([^"]*)"', rounded, found)
    found = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", found)
    found = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", found)
    found = re.sub(r' transform="rotate\(-?0 [^"]*"', "", found)
    found = found.replace(INK, "currentColor")
    found = re.sub(r">\s+<", "><", found)
    known = "".join(f' data-{key.replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items())
    box = re.search(r'viewBox="([^"]+)"', found)
    assert box
    width = float(box[1].split()[2]) * PIXELS_PER_POINT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}"'
    head += f' style="width: {width:.0f}px" role="img" aria-label="{html.escape(description)}"{known}>'
    return re.sub(r"^<svg[^>]*>", lambda _: head, found).strip()


def rounded(match: re.Match[str]) -> str:
    """An attribute with its numbers cut to two digits after the point."""
    return f'{match[1]}="{re.sub(r"-?[0-9]+[.][0-9]{3,}", lambda number: f"{float(number[0]):.2f}", match[2])}"'
