"""One displayed image as several models see it: a row per model, a column per version, under received attention."""

from collections.abc import Sequence

from overfocus.figures.overlay import add_scale, attention_norm, draw_overlay
from overfocus.figures.plain_figure import PlainFigure
from overfocus.figures.received import ReceivedMaps, top_places
from overfocus.runs.description import Layer
from overfocus.variants import Variant


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
