"""Figures of one displayed image: its versions under received attention, as several models see it, and its attention matrices."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from overfocus.errors import RunError
from overfocus.figures.overlay import LOWEST, ReceivedMaps, add_scale, attention_norm, draw_overlay, multiple, top_places
from overfocus.figures.style import INK, SEQUENTIAL, PlainFigure
from overfocus.runs.description import Layer
from overfocus.variants import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from overfocus.run import Run


def image_figure(maps: ReceivedMaps, image: int, shown: list[Variant], layer: Layer, high: float) -> PlainFigure:
    """Two rows: picture with received attention, and attention matrix, of one layer; call inside `styled()`.

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
        draw_overlay(axes[0, column], kept.pictures[version], multiples, norm, top_places(profile, layer))
        if rows == 2 and weights is not None:
            matrix = weights[version, 0].astype(np.float32)
            axes[1, column].imshow(matrix * matrix.shape[1], norm=norm, cmap=SEQUENTIAL, interpolation="nearest", aspect="auto")
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
    """Pictures under their received attention, the top k outlined; `high` ends the colour scale; call inside `styled()`."""
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
            picture = kept.pictures[kept.variants.index(variant)]
            multiples = None if profile is None else profile * profile.size
            draw_overlay(axes[row, column], picture, multiples, norm, top_places(profile, layer))
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
        RunError: a layer's matrices were not kept, because it has too many tokens.
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
        model = f"{name}\n" if len(runs) > 1 else ""
        axes[2 * row + 1, 0].set_ylabel(f"{model}query patch, layer {layer.number}")
        axes[2 * row, 0].set_ylabel("column\nsum", rotation=0, ha="right", va="center")
    bar = figure.colorbar(drawn, ax=axes[:, -1], aspect=30, pad=0.03)
    bar.ax.minorticks_off()
    ticks = [2.0**power for power in range(round(LOWEST), round(high) + 1)]
    bar.set_ticks(ticks, labels=[multiple(tick) for tick in ticks])
    bar.set_label("attention, × uniform")
    return figure


def patch_matrix(run: "Run", image: int, layer: Layer, variant: Variant) -> npt.NDArray[np.float32]:
    """Attention of query patches to key patches in multiples of uniform attention, mean over heads, of the first window."""
    kept = run.maps(image, [layer.number])
    weights = kept.attention.get(layer.number)
    if weights is None:
        raise RunError(
            f"{run.path}: the matrices of layer {layer.number} were not kept, it has too many tokens; choose another layer"
        )
    matrix = weights[kept.variants.index(variant), 0].astype(np.float32)
    queries = 0 if layer.kind == "class" else matrix.shape[0] - int(np.prod(layer.grid or (matrix.shape[0],)))
    patches: npt.NDArray[np.float32] = matrix[max(0, queries) :, layer.key_prefix_tokens :] * matrix.shape[1]
    return patches


def _sums(panel: "Axes", matrix: npt.NDArray[np.float32], tallest: float) -> None:
    """The mean over queries of each column, on one scale for the whole figure."""
    panel.fill_between(np.arange(matrix.shape[1]), matrix.mean(0), step="mid", color=INK, linewidth=0)
    panel.set_xlim(-0.5, matrix.shape[1] - 0.5)
    panel.set_ylim(0, tallest)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[["left", "bottom"]].set_visible(False)
