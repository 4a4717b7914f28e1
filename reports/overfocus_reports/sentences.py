"""The summary in words. Each sentence states numbers of the run; none judges by a threshold that nobody measured."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overfocus_reports.summary import LayerSummary, Summary, Survival

FLAT = 0.8
"""Effective tokens above which a layer is called nearly flat: the order of its tokens is mostly noise."""


def sentences_of(summary: "Summary") -> list[str]:
    """What the run says: where attention overfocuses, what survives, whether the predictions follow."""
    found = concentration_sentences(summary.ranked) + norm_sentence(summary)
    if summary.survival:
        found += survival_sentences(list(summary.survival))
        found += flat_sentence(summary)
        found += prediction_sentences(summary)
    else:
        found.append("No corruption was applied, so nothing is said about stability; add --corruption gaussian_noise for that.")
    return found


def concentration_sentences(ranked: list["LayerSummary"]) -> list[str]:
    """Which layers overfocus most, against uniform attention."""
    if not ranked:
        return ["No layer has more than one patch token, so concentration is undefined."]
    first = ranked[0]
    share, used = first.concentration["top_share"], first.concentration["effective_tokens"]
    layer = first.layer
    where = f"layer {layer.number} ({layer.module})"
    tokens = f"{layer.tokens} patches" + (" of a window" if layer.kind == "window" else "")
    top = f"the {layer.top} most attended of {tokens} receive" if layer.top > 1 else f"the most attended of {tokens} receives"
    found = [
        f"On clean images {where} overfocuses most: {top} {percent(share.mean)} of the attention, where uniform attention "
        f"would give {percent(first.uniform_share)}; {percent(used.mean)} of the patches are effectively in use."
    ]
    if len(ranked) > 2:
        following = " and ".join(
            f"layer {row.layer.number} ({percent(row.concentration['top_share'].mean)})" for row in ranked[1:3]
        )
        last = ranked[-1]
        even = f"layer {last.layer.number} ({percent(last.concentration['top_share'].mean)})"
        found.append(f"{following[0].upper()}{following[1:]} follow; the most even is {even}.")
    return found


def norm_sentence(summary: "Summary") -> list[str]:
    """Whether patch tokens of outlying norm (artefacts, Darcet et al. 2024) are there, and what attention they receive."""
    known = [row for row in summary.layers if row.norms["outlier_share"]]
    if not known:
        return []
    worst = max(known, key=lambda row: row.norms["outlier_share"].mean)
    share, received = worst.norms["outlier_share"], worst.norms["outlier_received"]
    if not share.mean:
        largest = max(known, key=lambda row: row.norms["norm_ratio"].mean)
        ratio = largest.norms["norm_ratio"].mean
        return [
            "No patch token leaves a layer with an outlying norm (more than 3 times the median); the largest is "
            f"{ratio:.1f} times the median on average, in layer {largest.layer.number}."
        ]
    found = (
        f"Tokens of outlying norm (more than 3 times the median) are most frequent behind layer {worst.layer.number}: "
        f"{percent(share.mean)} of the patches"
    )
    return [found + (f", which receive {percent(received.mean)} of its attention." if received else ".")]


def survival_sentences(survival: list["Survival"]) -> list[str]:
    """How much of the top-k survives, against chance; the corruptions that move most and least attention."""
    known = sorted(
        (row for row in survival if row.stability["received_shift"]), key=lambda row: -row.stability["received_shift"].mean
    )
    if not known:
        return []
    harshest, mildest = known[0], known[-1]
    kept = harshest.stability["top_overlap"]
    weakest = f", most of all in layer {harshest.weakest_layer.number}" if harshest.weakest_layer else ""
    found = [
        f"Under {harshest.variant.words}, {percent(kept.mean)} of the most attended patches stay the same "
        f"({between(kept.low, kept.high)}; chance: {percent(harshest.chance)}), "
        f"and {percent(harshest.stability['received_shift'].mean)} of the attention moves to other patches{weakest}."
    ]
    if mildest is not harshest:
        kept = mildest.stability["top_overlap"]
        found.append(
            f"The mildest is {mildest.variant.words}: {percent(kept.mean)} stay ({between(kept.low, kept.high)}), "
            f"{percent(mildest.stability['received_shift'].mean)} of the attention moves."
        )
    return found


def flat_sentence(summary: "Summary") -> list[str]:
    """A warning where top-k overlap means little, because attention has hardly any order."""
    flat = [row.layer.number for row in summary.layers if row.concentration["effective_tokens"].mean > FLAT]
    if not flat:
        return []
    return [
        f"In {spans(flat)} attention is nearly flat (effective tokens above {percent(FLAT)}): there the order is "
        "noise and top-k overlap falls although little moved; judge them by Jensen–Shannon divergence and attention moved."
    ]


def prediction_sentences(summary: "Summary") -> list[str]:
    """Whether the predictions follow."""
    known = [row for row in summary.survival if row.prediction["agreement"]]
    if not known:
        outputs = [row for row in summary.survival if row.prediction["output_cosine"]]
        if not outputs:
            return []
        worst = min(outputs, key=lambda row: row.prediction["output_cosine"].mean)
        cosine = worst.prediction["output_cosine"].mean
        return [
            "The model has no classifier; its output keeps a cosine of "
            f"{cosine:.2f} to the clean one under {worst.variant.words}."
        ]
    if summary.segmented:
        return pixel_sentences(summary, known)
    worst = min(known, key=lambda row: row.prediction["agreement"].mean)
    agreement = worst.prediction["agreement"]
    changed = round(agreement.count * (1 - agreement.mean))
    most = "most often " if len(known) > 1 else ""
    found = f"Predictions change {most}under {worst.variant.words}: for {changed} of {agreement.count} images"
    right = worst.prediction["correct"]
    if right and summary.clean_accuracy:
        found += f"; {percent(summary.clean_accuracy.mean)} of them are classified right when clean, {percent(right.mean)} then"
    return [found + "."]


def pixel_sentences(summary: "Summary", known: list["Survival"]) -> list[str]:
    """Whether pixels keep their class, and the mIoU its height, under the corruption that changes most."""
    worst = min(known, key=lambda row: row.prediction["agreement"].mean)
    kept = worst.prediction["agreement"]
    most = ", more than under any other" if len(known) > 1 else ""
    interval = f" ({between(1 - kept.high, 1 - kept.low)})" if kept.count > 1 else ""
    found = f"Under {worst.variant.words}, {percent(1 - kept.mean)} of an image's pixels change their class{interval}{most}"
    if not math.isnan(worst.set_iou):
        found += f"; the mIoU of all images is {percent(summary.clean_iou)} when clean, {percent(worst.set_iou)} then"
    return [found + "."]


def spans(numbers: list[int]) -> str:
    """Layer numbers with runs put together.

    >>> spans([0, 1, 2, 5])
    'layers 0–2, 5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)
    return f"layer {text}" if len(numbers) == 1 else f"layers {text}"


def percent(share: float) -> str:
    r"""A share as a percentage; one digit after the point below 10 %.

    >>> percent(0.051)
    '5.1\xa0%'
    """
    return f"{100 * share:.1f}\u00a0%" if 0 < abs(share) < 0.0995 else f"{100 * share:.0f}\u00a0%"


def between(low: float, high: float) -> str:
    """A 95 % interval of a share, cut at 0 and 1, where a share ends."""
    return f"95\u00a0% interval {100 * max(0.0, low):.0f}–{100 * min(1.0, high):.0f}\u00a0%"
