"""The few numbers of a run to look at first, each with what to compare it to."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from overfocus.statistics.retained import NOT_MEASURED
from overfocus_reports.sentences import percent

if TYPE_CHECKING:
    from overfocus.statistics.intervals import Interval
    from overfocus_reports.summary import Summary, Survival


@dataclass(frozen=True)
class KeyFigure:
    """One number in words."""

    name: str
    value: str
    note: str


def key_figures_of(summary: "Summary") -> list[KeyFigure]:
    """Concentration of the most overfocused layer; then means over all corruptions and severities."""
    found = []
    if summary.ranked:
        first = summary.ranked[0]
        layer, share = first.layer, first.concentration["top_share"].mean
        note = f"of layer {layer.number}'s attention; uniform: {percent(first.uniform_share)}"
        found.append(KeyFigure(f"On {layer.top} of {layer.tokens} patches", percent(share), note))
    retained = summary.retained
    if "js_divergence" in retained and not math.isnan(retained["js_divergence"].retained):
        note = "under corruption, by Jensen–Shannon divergence; 0\u00a0%: no more than another image has in common"
        found.append(KeyFigure("Attention retained", percent(retained["js_divergence"].retained), note))
    for name, title, note in (
        ("top_overlap", "Top patches kept", "under corruption"),
        ("received_shift", "Attention moved", "to other patches, under corruption"),
    ):
        value = mean_of(summary, lambda row, name=name: row.stability[name])
        if not math.isnan(value):
            beside = f"another image: {percent(retained[name].control)}" if name in retained else NOT_MEASURED
            found.append(KeyFigure(title, percent(value), f"{note}; {beside}"))
    found += iou_figures(summary)
    same = mean_of(summary, lambda row: row.prediction["agreement"])
    if not math.isnan(same) and summary.segmented:
        found.append(KeyFigure("Pixels that keep their class", percent(same), "under corruption"))
    elif not math.isnan(same):
        found.append(KeyFigure("Predictions kept", percent(same), "under corruption"))
    cosine = mean_of(summary, lambda row: row.prediction["output_cosine"])
    if math.isnan(same) and not math.isnan(cosine):
        found.append(KeyFigure("Output cosine", f"{cosine:.2f}", "to the clean output, under corruption"))
    return found


def iou_figures(summary: "Summary") -> list[KeyFigure]:
    """The mIoU of segmentation, where there are masks."""
    if math.isnan(summary.clean_iou):
        return []
    scores = [row.set_iou for row in summary.survival]
    if not scores:
        return [KeyFigure("mIoU (set)", percent(summary.clean_iou), "of clean images")]
    clean = percent(summary.clean_iou).removesuffix("\u00a0%")
    value = f"{clean} → {percent(sum(scores) / len(scores))}"
    return [KeyFigure("mIoU (set), clean → corrupted", value, "corrupted: mean over corruptions and severities")]


def mean_of(summary: "Summary", value: "Callable[[Survival], Interval]") -> float:
    """Mean over corruptions and severities of what has a value; NaN where nothing has."""
    known = [value(row).mean for row in summary.survival if value(row)]
    return sum(known) / len(known) if known else math.nan
