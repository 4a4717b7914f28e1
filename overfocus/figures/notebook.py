"""What runs and comparisons show in a notebook: a small table of means, and figures of a screen's size."""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from overfocus.errors import RunError
from overfocus.figures.image_figures import image_figure, image_rows_figure
from overfocus.figures.overlay import ReceivedMaps, highest
from overfocus.figures.publication import common_variants, draw, pick_corruptions, pick_image, pick_layers, pick_severity
from overfocus.figures.style import styled
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.statistics.panel import layer_statistics
from overfocus.variants import CLEAN_VARIANT, Variant

if TYPE_CHECKING:
    from overfocus.figures.style import PlainFigure
    from overfocus.results.comparison import Comparison
    from overfocus.run import Run

WIDTH = 9.0
"""Inches of a figure in a notebook."""
COLUMNS = ("top_share", "effective_tokens", "top_overlap", "js_divergence", "received_shift")
PREDICTED = ("correct", "image_iou", "agreement")


def plot_layers(
    runs: Sequence["Run"],
    names: Sequence[str],
    metrics: str | Sequence[str] | None = None,
    corruption: str | Sequence[str] | None = None,
    severity: int | None = None,
) -> "PlainFigure":
    """Metrics over depth."""
    with styled():
        return draw(
            "layers", runs, names, width=WIDTH, metrics=_listed(metrics), corruptions=_listed(corruption), severity=severity
        )


def plot_stability(
    runs: Sequence["Run"],
    names: Sequence[str],
    metrics: str | Sequence[str] | None = None,
    corruption: str | Sequence[str] | None = None,
    severity: int | None = None,
) -> "PlainFigure":
    """Stability metrics against severity."""
    with styled():
        return draw(
            "stability", runs, names, width=WIDTH, metrics=_listed(metrics), corruptions=_listed(corruption), severity=severity
        )


def show(
    runs: Sequence["Run"],
    names: Sequence[str],
    image: int | str | None = None,
    layer: int | None = None,
    corruption: str | Sequence[str] | None = None,
    severity: int | None = None,
) -> "PlainFigure":
    """One displayed image with its received attention, clean and corrupted; of a single run the matrices too."""
    every = [layer_statistics(run) for run in runs]
    variants = common_variants(every)
    shown = [CLEAN_VARIANT]
    if len(variants) > 1:
        chosen = pick_severity(severity, variants)
        found = [Variant(name, chosen) for name in pick_corruptions(_listed(corruption), variants)]
        shown += [variant for variant in found if variant in variants][:4]
    numbers, layers = pick_image(image, runs), pick_layers(layer, every)
    maps = [ReceivedMaps(run) for run in runs]
    places = [one.layers.index(chosen) for one, chosen in zip(every, layers, strict=True)]
    profiles = [
        profile * profile.size
        for of_run, number, place in zip(maps, numbers, places, strict=True)
        for variant in shown
        if (profile := of_run(number, variant)[place]) is not None
    ]
    with styled():
        if len(runs) == 1:
            return image_figure(maps[0], numbers[0], shown, layers[0], highest(profiles))
        return image_rows_figure(maps, names, numbers, shown, layers, highest(profiles))


def as_html(shown: "Run | Comparison") -> str:
    """A run or a comparison in a notebook."""
    from overfocus.run import Run

    return run_html(shown) if isinstance(shown, Run) else comparison_html(shown)


def run_html(run: "Run") -> str:
    """What the run is, and the means of a few metrics over images and layers, for clean pictures and each corruption."""
    state = "" if run.complete else ", unfinished"
    layers = f", {len(run.layers)} attention layers" if run.layers else ""
    heading = f"{len(run.images)} images{layers}{state} · {run.path}"
    return f"<div><p><b>{escaped(run.model)}</b> · {escaped(heading)}</p>{means_html(run)}</div>"


def comparison_html(comparison: "Comparison") -> str:
    """The verdicts on each model, in words."""
    heading = f"{', '.join(comparison.names[1:])} against {comparison.baseline}, {len(comparison.images)} images"
    rows = "".join(
        f"<tr><th>{escaped(verdict.model)}</th><td>{escaped(verdict.asked)}</td><td><b>{escaped(verdict.answer)}</b></td>"
        f"<td>{escaped(verdict.sentence)}</td></tr>"
        for verdict in comparison.verdicts
    )
    notes = "".join(f"<p>{escaped(note)}</p>" for note in comparison.notes)
    return f"<div><p><b>{escaped(heading)}</b></p><table><tbody>{rows}</tbody></table>{notes}</div>"


def means_html(run: "Run") -> str:
    """The table of means; empty where nothing is measured yet."""
    try:
        table, predictions = run.table, run.predictions
    except RunError:  # a run that was only just begun
        return ""
    known = [name for name in COLUMNS if name in table and table[name].notna().any()]
    predicted = [name for name in PREDICTED if name in predictions and predictions[name].notna().any()]
    by = ["corruption", "severity"]
    means = predictions.groupby(by, sort=False)[predicted].mean().join(table.groupby(by)[known].mean())
    head = "".join(
        f"<th>{escaped(title_of(name))}<br><small>{escaped(_unit(name, run))}</small></th>" for name in known + predicted
    )
    rows = ""
    for (corruption, severity), values in zip(means.index, means.to_dict("records"), strict=True):
        rows += f"<tr><th>{escaped(Variant(str(corruption), int(severity)).label)}</th>"
        rows += "".join(f"<td>{_number(float(values[name]))}</td>" for name in known + predicted) + "</tr>"
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _unit(name: str, run: "Run") -> str:
    if name not in PREDICTED:
        return CATALOGUE[name].unit
    return "mean of images" if name == "image_iou" else "share of pixels" if run.segmented else "share of images"


def escaped(value: object) -> str:
    """Text that cannot become markup."""
    return html.escape(str(value))


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _listed(value: str | Sequence[str] | None) -> list[str] | None:
    return None if value is None else [value] if isinstance(value, str) else list(value)
