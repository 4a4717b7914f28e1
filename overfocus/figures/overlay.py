"""A picture under an attention map, with the colour scale that says what the colours mean."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from overfocus.figures.colours import SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

OUTLINE = "#ff4d00"
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
    picture: npt.NDArray[np.uint8],
    multiples: npt.NDArray[np.floating[Any]] | None,
    norm: "LogNorm",
    outlined: Iterable[int] = (),
) -> None:
    """A picture (height, width, 3) under multiples of uniform attention (rows, columns), NaN clear, places `outlined` framed."""
    height, width = picture.shape[:2]
    axes.set_axis_off()
    axes.imshow(picture, extent=(0, width, height, 0))
    if multiples is None:
        return
    axes.imshow(multiples, norm=norm, cmap=SEQUENTIAL, alpha=0.6, extent=(0, width, height, 0), interpolation="nearest")
    thickness = 1.2 if multiples.shape[1] <= 16 else 0.6
    for place in outlined:
        frame_patch(axes, divmod(place, multiples.shape[1]), multiples.shape, picture.shape[:2], OUTLINE, thickness)


def frame_patch(
    axes: "Axes", patch: tuple[int, int], grid: tuple[int, ...], size: tuple[int, ...], colour: str, thickness: float
) -> None:
    """A frame round the patch (row, column) of a grid that covers a picture of (height, width) pixels."""
    from matplotlib.patches import Rectangle

    high, wide = size[0] / grid[0], size[1] / grid[1]
    axes.add_patch(Rectangle((patch[1] * wide, patch[0] * high), wide, high, fill=False, edgecolor=colour, linewidth=thickness))


def add_scale(figure: "Figure", box: tuple[float, float, float, float], high: float, label: str) -> None:
    """The colour scale at `box` (left, bottom, width, height, in shares of the figure) in multiples of uniform attention."""
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(attention_norm(high), SEQUENTIAL), cax=figure.add_axes(box))
    bar.ax.minorticks_off()
    ticks = [2.0**power for power in range(round(LOWEST), math.ceil(high) + 1)]
    bar.set_ticks(ticks, labels=[multiple(tick) for tick in ticks])
    bar.ax.tick_params(labelsize=8, length=2)
    bar.set_label(label, fontsize=8)


def multiple(value: float) -> str:
    """A multiple of uniform attention: "⅛", "½", "1", "16".

    >>> multiple(0.25), multiple(16.0)
    ('¼', '16')
    """
    return {0.125: "⅛", 0.25: "¼", 0.5: "½"}.get(value, f"{value:.0f}")
