"""Which runs, images, layers and corruptions are drawn: figures by kind for papers, and what runs show in a notebook."""

import difflib
import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from overfocus.errors import RunError
from overfocus.figures.curves import depth_figure
from overfocus.figures.images import ReceivedMaps, columns_figure, highest, image_figure, image_rows_figure
from overfocus.figures.stability import matrix_figure, severity_figure
from overfocus.figures.style import styled
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.runs.description import Layer
from overfocus.statistics.panel import LayerStatistics, layer_statistics, mean_of_known
from overfocus.text import visible
from overfocus.variants import CLEAN_VARIANT, Variant, middle_severity

if TYPE_CHECKING:
    from overfocus.figures.style import PlainFigure
    from overfocus.results.comparison import Comparison
    from overfocus.run import Run


STABLE = ("js_divergence", "received_shift", "attention_cosine")
"""Stability metrics shown by default: they weigh by mass, so that flat attention does not count as unstable."""


def pick_metrics(names: Sequence[str] | None, every: Sequence[LayerStatistics], *, group: str | None = None) -> list[str]:
    """The metrics asked for, or the usual ones; only those that all runs measured.

    Raises:
        RunError: there is no metric of that name; the message lists what there is.
    """
    known = [name for name in every[0].metrics if all(name in one.metrics for one in every)]
    if group is not None:
        known = [name for name in known if CATALOGUE[name].group == group]
    if not known:
        raise RunError(f"the runs have no {group or ''} metric in common".replace("  ", " ") + "; measure them with a corruption")
    if names is None:
        usual = STABLE if group == "stability" else ("top_share", "effective_tokens", "js_divergence")
        return [name for name in usual if name in known] or known[:1]
    for name in names or [""]:
        if name not in known:
            raise RunError(unknown("metric", name, known))
    return list(names)


def common_variants(every: Sequence[LayerStatistics]) -> list[Variant]:
    """The versions that all runs measured, in the order of the first."""
    return [variant for variant in every[0].variants if all(variant in one.variants for one in every)]


def pick_corruptions(names: Sequence[str] | None, variants: Iterable[Variant]) -> list[str]:
    """The corruptions asked for, or all.

    Raises:
        RunError: one that was not measured, or nothing was corrupted.
    """
    known = list(dict.fromkeys(variant.corruption for variant in variants if variant.severity))
    if not known:
        raise RunError("the runs hold clean images only; measure them with a corruption, such as --corruption gaussian_noise")
    for name in names or ():
        if name not in known:
            raise RunError(unknown("corruption", name, known))
    return list(names) if names else known


def pick_severity(severity: int | None, variants: Iterable[Variant]) -> int:
    """The severity asked for, or the middle one.

    Raises:
        RunError: it was not measured.
    """
    known = sorted({variant.severity for variant in variants if variant.severity})
    if severity is None:
        return middle_severity(known or [0])
    if severity not in known:
        raise RunError(f"severity {severity} was not measured; there is {', '.join(map(str, known)) or 'none'}")
    return severity


def pick_layers(layer: int | None, every: Sequence[LayerStatistics]) -> list[Layer]:
    """One layer per run: the one asked for by its place in the first run, negative from the end, or the most overfocused
    one; of the other runs that at the same relative depth.

    Raises:
        RunError: the first run has no such layer.
    """
    first = every[0].layers
    if layer is not None and not -len(first) <= layer < len(first):
        raise RunError(f"layer must be between {-len(first)} and {len(first) - 1}, got {layer}")
    place = most_overfocused(every[0]) if layer is None else layer % len(first)
    return [one.layers[same_depth(place, len(first), len(one.layers))] for one in every]


def most_overfocused(statistics: LayerStatistics) -> int:
    """Place of the layer whose top tokens receive most on clean images, compared to uniform attention; 0 without values."""
    shares = statistics.values.get("top_share")
    if shares is None:
        return 0
    clean = shares["mean"][0, statistics.variants.index(CLEAN_VARIANT)]
    excess = [layer.excess(float(share)) for layer, share in zip(statistics.layers, clean, strict=True)]
    return max(range(len(excess)), key=lambda place: -1.0 if excess[place] != excess[place] else excess[place])


def same_depth(place: int, layers: int, others: int) -> int:
    """Place among `others` layers at the relative depth of `place` among `layers`.

    >>> same_depth(11, 12, 24)
    23
    """
    return round(place / max(1, layers - 1) * (others - 1))


def pick_image(image: int | str | None, runs: Sequence["Run"]) -> list[int]:
    """Number of one displayed image in each run: the one asked for by number in the first run or by name, or the first.

    Raises:
        RunError: not all runs kept its maps.
    """
    names = [{entry.name: entry.image for entry in run.images if entry.image in run.displayed} for run in runs]
    common = [name for name in names[0] if all(name in others for others in names)]
    if not common:
        raise RunError("the runs kept maps of no image in common; measure them with displayed=8")
    wanted = next((name for name, number in names[0].items() if number == image), image) if image is not None else common[0]
    if wanted not in common:
        shown = ", ".join(f"{names[0][name]} ({name})" for name in common[:8])
        raise RunError(f"maps were not kept of image {image}; there is {shown}")
    return [others[str(wanted)] for others in names]


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """One line that lists the valid names and suggests the nearest."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    suggestion = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"the runs have no {what} {name!r}; {suggestion}There is {', '.join(known)}"


Kind = Literal["columns", "stability", "layers", "matrix"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def draw(
    kind: Kind,
    runs: Sequence["Run"],
    names: Sequence[str],
    *,
    width: float = 3.3,
    metrics: Sequence[str] | None = None,
    corruptions: Sequence[str] | None = None,
    severity: int | None = None,
    layer: int | None = None,
    layers: Sequence[int] | None = None,
    image: int | str | None = None,
) -> "PlainFigure":
    """Draw one figure without titles; call inside `paper()` or `styled()`.

    - "columns": attention matrices of one displayed image, clean and corrupted, with their column sums;
    - "stability": stability metrics against severity;
    - "layers": metrics over depth;
    - "matrix": layer × corruption of one stability metric.

    Args:
        kind: one of these.
        runs: runs whose metrics were measured; scales and limits are shared by all.
        names: a name per run, for the legend.
        width: in inches.
        metrics: names as in `run.table`; by default those that weigh by mass.
        corruptions: all by default; of "columns", and of "layers" with several runs, the first.
        severity: the middle one by default; of "stability", all.
        layer: of "columns", by its place in the first run; by default the most overfocused one.
        layers: of "layers" and "matrix", numbers of the layers to show; all by default.
        image: of "columns", number or name of a displayed image; by default the first.

    Raises:
        RunError: what was asked for was not measured; the message lists what there is.
    """
    for run, name in zip(runs, names, strict=True):
        if not run.measured:
            raise RunError(f"{name}: this run holds no attention metrics; measure it with `overfocus analyze`")
    every = [layer_statistics(run) for run in runs]
    if layers is not None:
        every = [_only(one, layers, name) for one, name in zip(every, names, strict=True)]
    variants = common_variants(every)
    if kind == "columns":
        shown = [CLEAN_VARIANT, *_corrupted(corruptions, severity, variants)[: 1 if corruptions is None else None]]
        return columns_figure(runs, names, pick_image(image, runs), pick_layers(layer, every), shown, width)
    if kind == "layers":
        chosen = _corrupted(corruptions, severity, variants)
        found = pick_metrics(metrics, every)
        return depth_figure(every, names, found, chosen if corruptions or len(runs) == 1 else chosen[:1], width)
    found = pick_metrics(metrics, every, group="stability")
    names_of = pick_corruptions(corruptions, variants)
    if kind == "matrix":
        if len(found) > 1 and metrics is not None:
            raise RunError(f"a matrix shows one metric, got {', '.join(found)}; draw one figure for each")
        return matrix_figure(every, names, found[0], names_of, pick_severity(severity, variants), width)
    severities = _severities(severity, names_of, variants)
    return severity_figure(runs, names, found, names_of, severities, width)


def _only(statistics: LayerStatistics, numbers: Sequence[int], name: str) -> LayerStatistics:
    """The statistics of some layers."""
    known = [layer.number for layer in statistics.layers]
    if wrong := [number for number in numbers if number not in known]:
        raise RunError(f"{name}: has no layer {wrong[0]}; there is {', '.join(map(str, known))}")
    places = [known.index(number) for number in numbers]

    def taken(parts: dict[str, Any]) -> dict[str, Any]:
        return {key: taken(part) if isinstance(part, dict) else part[..., places] for key, part in parts.items()}

    return replace(
        statistics,
        layers=[statistics.layers[place] for place in places],
        values=taken(statistics.values),
        control=taken(statistics.control),
        retained=taken(statistics.retained),
    )


def _corrupted(corruptions: Sequence[str] | None, severity: int | None, variants: list[Variant]) -> list[Variant]:
    """The corrupted versions to show; none where the runs hold clean images only and nothing was asked for."""
    if corruptions is None and severity is None and len(variants) == 1:
        return []
    chosen = pick_severity(severity, variants)
    found = [Variant(name, chosen) for name in pick_corruptions(corruptions, variants)]
    return [variant for variant in found if variant in variants]


def _severities(severity: int | None, corruptions: Sequence[str], variants: list[Variant]) -> list[int]:
    if severity is not None:
        return [pick_severity(severity, variants)]
    return sorted({variant.severity for variant in variants if variant.corruption in corruptions})


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
    """What the run is, and the means of a few metrics over images and layers, for clean images and each corruption."""
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
        cells, predictions = run.cells, run.predictions
    except RunError:  # a run that was only just begun
        return ""
    of_metric = {name: mean_of_known(mean_of_known(cells[name], 2), 0) for name in COLUMNS if name in cells}
    known = [name for name, numbers in of_metric.items() if np.isfinite(numbers).any()]
    predicted = [name for name in PREDICTED if name in predictions and predictions[name].notna().any()]
    means = predictions.groupby(["corruption", "severity"], sort=False)[predicted].mean()
    order = [cells.variants.index(Variant(str(corruption), int(severity))) for corruption, severity in means.index]
    means = means.assign(**{name: of_metric[name][order] for name in known})
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
    """Text that cannot become markup, every character of it visible."""
    return html.escape(visible(str(value)))


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _listed(value: str | Sequence[str] | None) -> list[str] | None:
    return None if value is None else [value] if isinstance(value, str) else list(value)
