"""Layer × corruption matrix of a metric of stability, against the control where there is one; a panel per run, one scale."""

from collections.abc import Sequence

import numpy as np

from overfocus.figures.plain_figure import PlainFigure
from overfocus.figures.stability_map import labels_of, scale_of, shows_retained
from overfocus.statistics.layers import LayerStatistics


def matrix_figure(
    every: Sequence[LayerStatistics],
    names: Sequence[str],
    metric: str,
    corruptions: Sequence[str],
    severity: int,
    width: float,
) -> PlainFigure:
    """Means over images at one severity; bright means that attention changed."""
    rows = 0.16 * len(corruptions) + 0.28
    figure = PlainFigure(figsize=(width, max(2.0, rows * len(every) + 0.75)), layout="constrained")
    axes = figure.subplots(len(every), 1, squeeze=False)[:, 0]
    scale, retained = scale_of(every, metric), shows_retained(every, metric)
    drawn = None
    for panel, statistics, name in zip(axes, every, names, strict=True):
        kept = [statistics.corruptions.index(corruption) for corruption in corruptions]
        values = statistics.matrix(metric, severity, retained=retained)[kept]
        drawn = panel.imshow(np.ma.masked_invalid(values), cmap=scale.colour_map, vmin=scale.low, vmax=scale.high, aspect="auto")
        panel.set_yticks(range(len(corruptions)), [corruption.replace("_", " ") for corruption in corruptions])
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        if len(every) > 1:
            panel.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=4)
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel(f"layer, severity {severity}")
    assert drawn is not None
    bar = figure.colorbar(drawn, ax=list(axes), aspect=max(6, 10 * len(every)), pad=0.02)
    title, unit = labels_of(metric, retained=retained)
    bar.set_label(f"{title}\n({unit})")
    bar.outline.set_visible(False)
    return figure
