"""Images under attention maps: overlays and their colour scale, one image as several models see it, attention matrices."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from overfocus.errors import RunError
from overfocus.figures.style import INK, SEQUENTIAL, PlainFigure, name_lines
from overfocus.metrics.catalogue import top_count
from overfocus.runs.description import Layer
from overfocus.variants import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    from overfocus.run import Run


Profile = npt.NDArray[np.floating[Any]]


class ReceivedMaps:
    """The received attention of any image in any variant."""

    def __init__(self, run: "Run") -> None:
        self.run = run
        self._kept: dict[tuple[int, Variant], list[Profile | None]] = {}

    def __call__(self, image: int, variant: Variant) -> list[Profile | None]:
        """One (rows, columns) profile per layer of the run, summing to 1; None where it was not kept or has no grid."""
        key = (image, variant)
        if key not in self._kept:
            try:
                self._kept[key] = list(self.run.received(image, variant.corruption, variant.severity))
            except RunError:  # a long run keeps the maps of its first images only
                self._kept[key] = [None] * len(self.run.layers)
        return self._kept[key]


def top_places(profile: Profile | None, layer: Layer) -> list[int]:
    """Places of the k most attended patches on the image grid, the most attended first; ties go to the lower place."""
    return [] if profile is None else largest_places(profile, layer.top_fraction)


def largest_places(values: Profile, top_fraction: float) -> list[int]:
    """Places of the k = max(1, round(f·N)) largest of N known values, largest first; ties go to the lower place."""
    flat = values.ravel()
    count = top_count(int(np.isfinite(flat).sum()), top_fraction)
    return [int(place) for place in np.argsort(-flat, kind="stable")[:count]]


OUTLINE = "#ff4d00"
OPACITY = 0.6
SMALLEST = 224
"""Pixels that an image is enlarged to at least."""
LOWEST = -3.0
"""Lower end of the colour scale of attention, in powers of two of uniform attention."""


def highest(multiples: Iterable[npt.NDArray[np.floating[Any]]]) -> float:
    """Upper end of one colour scale for all these maps, in powers of two of uniform attention; at least 4, at most 256 times."""
    largest = max((float(np.nanmax(values)) for values in multiples if np.isfinite(values).any()), default=4.0)
    return float(np.clip(np.ceil(np.log2(max(largest, 1.0))), 2, 8))


def attention_norm(high: float) -> "LogNorm":
    """The colour scale from an eighth of uniform attention to 2^high times it, logarithmic."""
    from matplotlib.colors import LogNorm

    return LogNorm(2.0**LOWEST, 2.0**high, clip=True)


def draw_overlay(
    axes: "Axes",
    image: npt.NDArray[np.uint8],
    multiples: npt.NDArray[np.floating[Any]] | None,
    norm: "LogNorm",
    places: Iterable[int] = (),
) -> None:
    """An image (height, width, 3) under multiples of uniform attention (rows, columns), NaN clear, these places outlined."""
    height, width = image.shape[:2]
    axes.set_axis_off()
    shown = image if multiples is None else outlined(blended(image, multiples, norm), places, multiples.shape)
    axes.imshow(shown, extent=(0, width, height, 0))


def blended(image: npt.NDArray[np.uint8], multiples: npt.NDArray[np.floating[Any]], norm: "LogNorm") -> npt.NDArray[np.uint8]:
    """An image mixed with the colours of a map, cell by cell; one image draws twice as fast as one over another."""
    import matplotlib as mpl

    larger = max(1, -(-SMALLEST // max(image.shape[:2])))  # so that cells of small images keep their shape
    pixels = image.repeat(larger, 0).repeat(larger, 1)
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(pixels.shape[:2], multiples.shape, strict=True))
    values = multiples[np.ix_(rows, columns)]
    colours = 255 * mpl.colormaps[SEQUENTIAL](norm(np.nan_to_num(values)))[..., :3]
    opacity = OPACITY * np.isfinite(values)[..., None]
    mixed: npt.NDArray[np.uint8] = np.round((1 - opacity) * pixels + opacity * colours).astype(np.uint8)
    return mixed


def outlined(pixels: npt.NDArray[np.uint8], places: Iterable[int], grid: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The image with one line around all patches at `places` of a (rows, columns) grid; neighbours share their outline."""
    from scipy.ndimage import binary_erosion

    chosen = np.isin(np.arange(grid[0] * grid[1]), list(places)).reshape(grid[0], grid[1])
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(pixels.shape[:2], grid, strict=True))
    inside = chosen[np.ix_(rows, columns)]
    line = inside & ~binary_erosion(inside, iterations=max(1, round(max(pixels.shape[:2]) / 160)))
    found = pixels.copy()
    found[line] = list(bytes.fromhex(OUTLINE[1:]))
    return found


def frame_patch(
    axes: "Axes", patch: tuple[int, int], grid: tuple[int, ...], size: tuple[int, ...], colour: str, thickness: float
) -> None:
    """A frame around the patch (row, column) of a grid that covers an image of (height, width) pixels."""
    from matplotlib.patches import Rectangle

    high, wide = size[0] / grid[0], size[1] / grid[1]
    axes.add_patch(Rectangle((patch[1] * wide, patch[0] * high), wide, high, fill=False, edgecolor=colour, linewidth=thickness))


def add_scale(figure: "Figure", box: tuple[float, float, float, float], high: float, label: str) -> None:
    """The colour scale at `box` (left, bottom, width, height, in shares of the figure) in multiples of uniform attention."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(attention_norm(high), SEQUENTIAL), cax=figure.add_axes(box))
    bar.ax.minorticks_off()
    ticks = [value for value, _ in scale_ticks(high)]
    bar.set_ticks(ticks, labels=[multiple(tick) for tick in ticks])
    bar.ax.tick_params(labelsize=8, length=2)
    bar.set_label(label, fontsize=8)


def scale_ticks(high: float) -> list[tuple[float, float]]:
    """Every power of two of the colour scale, with its place from 0 at the lower end to 1 at the upper one."""
    powers = range(round(LOWEST), math.ceil(high) + 1)
    return [(2.0**power, (power - LOWEST) / (high - LOWEST)) for power in powers]


def multiple(value: float) -> str:
    """A multiple of uniform attention: "⅛", "½", "1", "16".

    >>> multiple(0.25), multiple(16.0)
    ('¼', '16')
    """
    return {0.125: "⅛", 0.25: "¼", 0.5: "½"}.get(value, f"{value:.0f}")


def image_figure(maps: ReceivedMaps, image: int, shown: list[Variant], layer: Layer, high: float) -> PlainFigure:
    """Two rows: image with received attention, and attention matrix, of one layer; call inside `styled()`.

    `high` is the upper end of the colour scale, in powers of two of uniform attention.
    """
    kept = maps.run.maps(image, [layer.number])
    place = [other.layer for other in maps.run.layers].index(layer.number)
    weights = kept.attention.get(layer.number)
    rows = 1 if weights is None or layer.windows > 1 else 2
    width, height = 0.55 + 2.2 * len(shown) + 0.85, 2.3 * rows + 0.5
    figure = PlainFigure(figsize=(width, height))
    axes = figure.subplots(
        rows, len(shown), squeeze=False,
        gridspec_kw={"left": 0.55 / width, "right": 1 - 0.95 / width, "top": 1 - 0.25 / height, "bottom": 0.4 / height,
                     "wspace": 0.14, "hspace": 0.08},
    )  # fmt: skip
    norm = attention_norm(high)
    for column, variant in enumerate(shown):
        version = kept.variants.index(variant)
        profile = maps(image, variant)[place]
        axes[0, column].set_title(variant.label, fontsize=9)
        multiples = None if profile is None else profile * profile.size
        draw_overlay(axes[0, column], kept.pixels[version], multiples, norm, top_places(profile, layer))
        if rows == 2 and weights is not None:
            matrix = weights[version, 0].astype(np.float32)
            axes[1, column].imshow(matrix * layer.keys, norm=norm, cmap=SEQUENTIAL, interpolation="nearest", aspect="auto")
            axes[1, column].tick_params(labelsize=7, length=2)
            axes[1, column].set_xlabel("key token", fontsize=8)
    if rows == 2:
        axes[1, 0].set_ylabel("query token", fontsize=8)
    add_scale(figure, (1 - 0.8 / width, 0.2, 0.14 / width, 0.6), high, f"attention in layer {layer.number}, × uniform")
    return figure


def image_rows_figure(
    maps: Sequence[ReceivedMaps],
    names: Sequence[str],
    images: Sequence[int],
    shown: Sequence[Variant],
    layers: Sequence[Layer],
    high: float,
) -> PlainFigure:
    """Images under their received attention, the top k outlined; `high` ends the colour scale; call inside `styled()`."""
    side, left, right = 2.0, 0.3, 0.95
    width, height = left + side * len(shown) + right, (side + 0.1) * len(maps) + 0.35
    figure = PlainFigure(figsize=(width, height))
    axes = figure.subplots(
        len(maps), len(shown), squeeze=False,
        gridspec_kw={"left": left / width, "right": 1 - right / width, "top": 1 - 0.3 / height, "bottom": 0.05 / height,
                     "wspace": 0.04, "hspace": 0.05},
    )  # fmt: skip
    norm = attention_norm(high)
    for row, (of_run, name, image, layer) in enumerate(zip(maps, names, images, layers, strict=True)):
        kept = of_run.run.maps(image, ())
        place = [known.layer for known in of_run.run.layers].index(layer.number)
        for column, variant in enumerate(shown):
            profile = of_run(image, variant)[place]
            pixels = kept.pixels[kept.variants.index(variant)]
            multiples = None if profile is None else profile * profile.size
            draw_overlay(axes[row, column], pixels, multiples, norm, top_places(profile, layer))
            if row == 0:
                axes[row, column].set_title(variant.label, fontsize=9, pad=3)
        axes[row, 0].text(
            -0.02, 0.5, f"{name}, layer {layer.number}", transform=axes[row, 0].transAxes, rotation=90, ha="right", va="center",
            fontsize=8,
        )  # fmt: skip
    add_scale(figure, (1 - 0.8 / width, 0.15, 0.14 / width, 0.65), high, "received attention, × uniform")
    return figure


def columns_figure(
    runs: Sequence["Run"],
    names: Sequence[str],
    images: Sequence[int],
    layers: Sequence[Layer],
    shown: Sequence[Variant],
    width: float,
) -> PlainFigure:
    """Rows are models, columns versions of the image; rows of a matrix are query patches, columns key patches.

    Of a layer of windows the first one is shown.

    Raises:
        RunError: a layer's matrices were not kept.
    """
    matrices = [
        [patch_matrix(run, image, layer, variant) for variant in shown]
        for run, image, layer in zip(runs, images, layers, strict=True)
    ]
    side = (width - 0.9) / len(shown)
    figure = PlainFigure(figsize=(width, len(runs) * (side * 1.2 + 0.12) + 0.35), layout="constrained")
    axes = figure.subplots(
        2 * len(runs), len(shown), squeeze=False, gridspec_kw={"height_ratios": [1, 5] * len(runs)}, sharex=False
    )
    high = float(np.clip(np.ceil(np.log2(max(np.quantile(matrix, 0.999) for row in matrices for matrix in row))), 2, 8))
    norm = attention_norm(high)
    tallest = max(float(matrix.mean(0).max()) for row in matrices for matrix in row)
    drawn: Any = None
    for row, (name, of_run, layer) in enumerate(zip(names, matrices, layers, strict=True)):
        for column, (matrix, variant) in enumerate(zip(of_run, shown, strict=True)):
            above, below = axes[2 * row, column], axes[2 * row + 1, column]
            _sums(above, matrix, tallest)
            drawn = below.imshow(matrix, norm=norm, cmap=SEQUENTIAL, aspect="auto", interpolation="nearest", rasterized=True)
            below.set_xticks([])
            below.set_yticks([])
            if row == 0:
                above.set_title(variant.label, pad=3)
            if row == len(runs) - 1:
                below.set_xlabel("key patch")
        model = "\n".join(name_lines(name, max(8, int(14 * side)))) + "\n" if len(runs) > 1 else ""
        axes[2 * row + 1, 0].set_ylabel(f"{model}query patch, layer {layer.number}")
        if row == 0:
            axes[0, 0].set_ylabel("column\nsum", rotation=0, ha="right", va="center")
    bar = figure.colorbar(drawn, ax=axes[:, -1], aspect=25, pad=0.03, shrink=min(1.0, 1.4 / len(runs)), anchor=(0.0, 1.0))
    bar.ax.minorticks_off()
    ticks = [value for value, _ in scale_ticks(high)]
    bar.set_ticks(ticks, labels=[multiple(tick) for tick in ticks])
    bar.set_label("attention, × uniform")
    return figure


def patch_matrix(run: "Run", image: int, layer: Layer, variant: Variant) -> npt.NDArray[np.float32]:
    """Attention of query patches to key patches in multiples of uniform attention, mean over heads, of the first window."""
    kept = run.maps(image, [layer.number])
    weights = kept.attention.get(layer.number)
    if weights is None:
        raise RunError(
            f"{run.path}: the matrices of layer {layer.number} were not kept: it has {layer.queries} queries without "
            "a known patch grid; choose another layer"
        )
    matrix = weights[kept.variants.index(variant), 0].astype(np.float32)
    prefix = 0 if layer.kind == "class" else max(0, layer.queries - int(np.prod(layer.grid or (layer.queries,))))
    patches: npt.NDArray[np.float32] = matrix[prefix:, layer.key_prefix_tokens :] * layer.keys
    return patches


def _sums(panel: "Axes", matrix: npt.NDArray[np.float32], tallest: float) -> None:
    """The mean over queries of each column, on one scale for the whole figure."""
    panel.fill_between(np.arange(matrix.shape[1]), matrix.mean(0), step="mid", color=INK, linewidth=0)
    panel.set_xlim(-0.5, matrix.shape[1] - 0.5)
    panel.set_ylim(0, tallest)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[["left", "bottom"]].set_visible(False)
