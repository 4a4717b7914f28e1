"""A picture file per displayed image: each version with its received attention, the top k outlined, and the matrix."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from overfocus.figures.colours import SEQUENTIAL
from overfocus.figures.layers import Layer
from overfocus.figures.received import ReceivedMaps, top_places
from overfocus.figures.variants import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTLINE = "#ff4d00"


def image_figure(maps: ReceivedMaps, image: int, shown: list[Variant], layer: Layer, high: float) -> "Figure":
    """Two rows: picture with received attention, and attention matrix, of one layer; call inside `styled()`.

    `high` is the upper end of the colour scale, in powers of two of uniform attention.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    kept = maps.run.maps(image)
    place = [row["layer"] for row in maps.run.layers].index(layer.number)
    weights = kept.attention.get(layer.number)
    rows = 1 if weights is None or layer.windows > 1 else 2
    width, height = 0.55 + 2.2 * len(shown) + 0.85, 2.3 * rows + 0.5
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        rows, len(shown), squeeze=False,
        gridspec_kw={"left": 0.55 / width, "right": 1 - 0.95 / width, "top": 1 - 0.25 / height, "bottom": 0.4 / height,
                     "wspace": 0.14, "hspace": 0.08},
    )  # fmt: skip
    norm = LogNorm(2.0**-3, 2.0**high)
    drawn: Any = None
    for column, variant in enumerate(shown):
        version = kept.variants.index((variant.corruption, variant.severity))
        profile = maps(image, variant)[place]
        axes[0, column].set_title(variant.label, fontsize=9)
        drawn = draw_overlay(axes[0, column], kept.pictures[version], profile, layer, norm) or drawn
        if rows == 2 and weights is not None:
            matrix = weights[version, 0].astype(np.float32)
            drawn = axes[1, column].imshow(
                np.maximum(matrix * matrix.shape[1], 1e-6), norm=norm, cmap=SEQUENTIAL, interpolation="nearest", aspect="auto"
            )
            axes[1, column].tick_params(labelsize=7, length=2)
            axes[1, column].set_xlabel("key token", fontsize=8)
    if rows == 2:
        axes[1, 0].set_ylabel("query token", fontsize=8)
    if drawn is not None:
        bar = figure.colorbar(drawn, cax=figure.add_axes((1 - 0.8 / width, 0.2, 0.14 / width, 0.6)))
        bar.ax.minorticks_off()
        ticks = [2.0**power for power in range(-3, math.ceil(high) + 1)]
        bar.set_ticks(ticks, labels=[multiple(tick) for tick in ticks])
        bar.set_label(f"attention in layer {layer.number}, × uniform", fontsize=8)
    return figure


def draw_overlay(axes: "Axes", picture: Any, profile: Any, layer: Layer, norm: Any) -> Any:
    """A picture under its received attention, the top k outlined; returns what the colour bar describes."""
    from matplotlib.patches import Rectangle

    height, width = picture.shape[:2]
    axes.set_axis_off()
    axes.imshow(picture, extent=(0, width, height, 0))
    if profile is None:
        return None
    rows, columns = profile.shape
    drawn = axes.imshow(
        profile * profile.size, norm=norm, cmap=SEQUENTIAL, alpha=0.6, extent=(0, width, height, 0), interpolation="nearest"
    )
    for token in top_places(profile, layer):
        row, column = divmod(token, columns)
        corner = (column * width / columns, row * height / rows)
        axes.add_patch(Rectangle(corner, width / columns, height / rows, fill=False, edgecolor=OUTLINE, linewidth=1.2))
    return drawn


def multiple(value: float) -> str:
    """A multiple of uniform attention: "⅛", "½", "1", "16".

    >>> multiple(0.25), multiple(16.0)
    ('¼', '16')
    """
    return {0.125: "⅛", 0.25: "¼", 0.5: "½"}.get(value, f"{value:.0f}")
