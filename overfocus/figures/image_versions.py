"""One displayed image: each version with its received attention, the top k outlined, and the attention matrix below."""

import numpy as np

from overfocus.figures.colours import SEQUENTIAL
from overfocus.figures.overlay import add_scale, attention_norm, draw_overlay
from overfocus.figures.plain_figure import PlainFigure
from overfocus.figures.received import ReceivedMaps, top_places
from overfocus.runs.description import Layer
from overfocus.variants import Variant


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
