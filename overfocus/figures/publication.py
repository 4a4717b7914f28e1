"""The four figures for papers, of one run or several, the first of them the baseline."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from overfocus.errors import RunError
from overfocus.figures.bright_columns import columns_figure
from overfocus.figures.depth_curves import depth_figure
from overfocus.figures.selection import (
    common_variants,
    pick_corruptions,
    pick_image,
    pick_layers,
    pick_metrics,
    pick_severity,
)
from overfocus.figures.severity_curves import severity_figure
from overfocus.figures.stability_panels import matrix_figure
from overfocus.statistics.layers import layer_statistics
from overfocus.variants import CLEAN_VARIANT, Variant

if TYPE_CHECKING:
    from overfocus.figures.plain_figure import PlainFigure
    from overfocus.run import Run

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
        image: of "columns", number or name of a displayed image; by default the first.

    Raises:
        RunError: what was asked for was not measured; the message lists what there is.
    """
    for run, name in zip(runs, names, strict=True):
        if not len(run.table):
            raise RunError(f"{name}: this run holds no attention metrics; measure it with `overfocus analyze`")
    every = [layer_statistics(run) for run in runs]
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
