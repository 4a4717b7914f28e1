"""An image under an attention map, the colour scale that says what the colours mean, and received attention of a run's images."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from overfocus.errors import RunError
from overfocus.figures.style import SEQUENTIAL
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
"""Pixels that a picture is enlarged to at least."""
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
    shown = picture if multiples is None else blended(picture, multiples, norm)
    axes.imshow(shown, extent=(0, width, height, 0))
    if multiples is None:
        return
    thickness = 1.2 if multiples.shape[1] <= 16 else 0.6
    for place in outlined:
        frame_patch(axes, divmod(place, multiples.shape[1]), multiples.shape, picture.shape[:2], OUTLINE, thickness)


def blended(picture: npt.NDArray[np.uint8], multiples: npt.NDArray[np.floating[Any]], norm: "LogNorm") -> npt.NDArray[np.uint8]:
    """A picture mixed with the colours of a map, cell by cell; one picture draws twice as fast as one over another."""
    import matplotlib as mpl

    larger = max(1, -(-SMALLEST // max(picture.shape[:2])))  # so that cells of small pictures keep their shape
    pixels = picture.repeat(larger, 0).repeat(larger, 1)
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(pixels.shape[:2], multiples.shape, strict=True))
    values = multiples[np.ix_(rows, columns)]
    colours = 255 * mpl.colormaps[SEQUENTIAL](norm(np.nan_to_num(values)))[..., :3]
    opacity = OPACITY * np.isfinite(values)[..., None]
    mixed: npt.NDArray[np.uint8] = np.round((1 - opacity) * pixels + opacity * colours).astype(np.uint8)
    return mixed


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
