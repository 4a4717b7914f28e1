"""The sheet of one picture: its versions and layers side by side under one colour scale."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from overfocus.figures.overlay import add_scale, attention_norm, draw_overlay, frame_patch, highest, largest_places
from overfocus.heatmaps.maps import HeatMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 6
"""Maps in a row."""
TOP_FRACTION = 0.05
"""Share of the patches that are outlined as the most attended."""


def heat_map_sheet(
    pictures: npt.NDArray[np.uint8], versions: list[str], maps: list[HeatMap], heading: str, what: str
) -> "Figure":
    """Draw (versions, height, width, 3) pictures under their maps; call inside `styled()`.

    One map: each version's picture, plain and covered. Several (layers): a block of rows with one row per version for every
    six layers. `what` says what the colours count.
    """
    from matplotlib.figure import Figure

    values = [map.values.float().cpu().numpy() for map in maps]
    columns = min(ACROSS, len(maps)) + 1
    blocks = -(-len(maps) // ACROSS)
    side = 1.5 if len(maps) > 1 else 2.8
    height_of_one = side * pictures.shape[1] / pictures.shape[2]
    rows = blocks * len(versions)
    left, right, top, below = 0.25, 0.95, 0.62, 0.32
    width, height = left + side * columns + right, top + rows * (height_of_one + 0.2) + below
    height = max(height, 2.6)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        rows, columns, squeeze=False,
        gridspec_kw={"left": left / width, "right": 1 - right / width, "top": 1 - top / height, "bottom": below / height,
                     "wspace": 0.04, "hspace": 0.2 / height_of_one},
    )  # fmt: skip
    high = highest(values)
    norm = attention_norm(high)
    for row in range(rows):
        block, version = divmod(row, len(versions))
        picture = pictures[version]
        draw_overlay(axes[row, 0], picture, None, norm)
        axes[row, 0].set_title(versions[version], fontsize=8, pad=3)
        for column in range(1, columns):
            number = block * ACROSS + column - 1
            if number >= len(maps):
                axes[row, column].set_axis_off()
                continue
            shown = values[number][version]
            top_k = largest_places(shown, TOP_FRACTION)
            draw_overlay(axes[row, column], picture, shown, norm, top_k)
            query, grid = maps[number].query, maps[number].query_grid
            if query and grid:
                frame_patch(axes[row, column], query, grid, picture.shape[:2], "#ffffff", 2.0)
            if version == 0:
                module = f" ({maps[number].module})" if len(maps) == 1 and maps[number].module else ""
                axes[row, column].set_title(maps[number].label + module, fontsize=8, pad=3)
    figure.text(left / width, 1 - 0.2 / height, heading, fontsize=10, va="center")
    asking = "; white: the patch that asks" if any(map.query for map in maps) else ""
    figure.text(left / width, 0.12 / height, f"orange: the most attended {TOP_FRACTION:.0%} of the patches{asking}", fontsize=7.5)
    add_scale(figure, (1 - 0.82 / width, 0.16, 0.14 / width, 0.64), high, f"{what}, × uniform")
    return figure
