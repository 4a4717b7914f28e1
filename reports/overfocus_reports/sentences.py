"""The summary in words. Each sentence states numbers of the run; none judges by a threshold that nobody measured."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from overfocus.metrics.catalogue import title_of
from overfocus.statistics.intervals import Interval
from overfocus.statistics.retained import NOT_MEASURED
from overfocus.statistics.verdicts import (
    FEWEST_IMAGES,
    MILD,
    OVERFOCUS,
    PREDICTIONS,
    RIGHT,
    STABILITY,
    STRONG,
    Overfocusing,
    Question,
    Verdict,
    counted,
    images_needed,
)
from overfocus_reports.summary import Answer, KeyFigure, LayerSummary, Summary, Survival, summary_numbers

if TYPE_CHECKING:
    from overfocus.run import Run

PRIMARY = "js_divergence"
"""The metric of stability that the sentences lead with."""


def summarise(run: "Run") -> Summary:
    """Sum a run up: does it overfocus and where, how much of its attention and of its predictions survives each corruption.

    Raises:
        RunError: the run holds no rows yet.
    """
    summary = summary_numbers(run)
    words = {"sentences": sentences_of, "answers": answers_of, "key_figures": key_figures_of}
    return replace(summary, **{name: tuple(write(summary)) for name, write in words.items()})  # type: ignore[arg-type]


def answers_of(summary: Summary) -> list[Answer]:
    """The three questions with their answers, each with its reason in one sentence."""
    found = [overfocusing_answer(summary.overfocusing)]
    if not summary.survival:
        reason = "No corruption was applied; add --corruption gaussian_noise to measure it."
        return [*found, Answer("Does attention survive corruption?", "not measured", reason)]
    return [*found, retained_answer(summary), *prediction_answer(summary)]


def overfocusing_answer(judged: Overfocusing) -> Answer:
    """Does attention overfocus."""
    asked = "Does attention overfocus?"
    if judged.answer is None:
        return Answer(asked, "undefined", "No layer has more than one patch token, so concentration is undefined.")
    effective = judged.effective
    interval = f" ({between(effective.low, effective.high)})" if effective.count > 1 else ""
    third = " third" if len(judged.layers) > 1 else ""
    layers = f"In {spans(list(judged.layers))}, the most concentrated{third}, attention"
    reason = (
        f"{layers} effectively reaches {percent(effective.mean)} of the patches{interval}; uniform attention reaches all of them"
    )
    reason += ", and that of an untrained network nearly all" if judged.nearly_uniform else ""
    return Answer(asked, judged.answer, reason + ".")


def retained_answer(summary: Summary) -> Answer:
    """How much of its attention an image keeps under corruption, against the control."""
    asked = "How much attention is retained under corruption?"
    kept = summary.retained.get(PRIMARY)
    if kept is None:
        shift = mean_of(summary, _stability("received_shift"))
        moved = f"{percent(shift)} of the attention moves to other patches, but " if not math.isnan(shift) else ""
        reason = (
            f"{moved}the control, another image, was not measured, so we cannot tell how much of what stays is the image's own."
        )
        return Answer(asked, "not known", reason[0].upper() + reason[1:])
    if math.isnan(kept.retained):
        reason = "Two different images differ by no more than numerical noise, so attention does not depend on the image."
        return Answer(asked, "undefined", reason)
    known = [row for row in summary.survival if not math.isnan(row.retained[PRIMARY].retained)]
    harshest = min(known, key=lambda row: row.retained[PRIMARY].retained, default=None)
    least = ""
    if harshest and len(known) > 1:
        least = f"; {harshest.variant.words} leaves least, {percent(harshest.retained[PRIMARY].retained)}".replace("-", "−")
    few = f"; {counted(kept.count)} are too few to judge by, {FEWEST_IMAGES} are needed" if kept.count < FEWEST_IMAGES else ""
    reason = (
        "On a scale from 0\u00a0% (no more alike than two different images, the control) to 100\u00a0% (as if not corrupted), "
        f"{between(kept.low, kept.high, cut=False)}{least}{few}."
    )
    return Answer(asked, percent(kept.retained), reason)


def prediction_answer(summary: Summary) -> list[Answer]:
    """Whether predictions change with it."""
    asked = "Do predictions survive?"
    known = [row for row in summary.survival if row.prediction["agreement"]]
    if not known:
        cosine = mean_of(summary, lambda row: row.prediction["output_cosine"])
        if math.isnan(cosine):
            return []
        reason = "The model has no classifier; this is the mean cosine between its clean and its corrupted output."
        return [Answer("Does the output survive?", f"{cosine:.2f}", reason)]
    if summary.one_class:
        return [Answer(asked, "not known", "The model predicts one class for every clean image, so nothing can change.")]
    same = mean_of(summary, lambda row: row.prediction["agreement"])
    worst = min(known, key=lambda row: row.prediction["agreement"].mean)
    agreement, right = worst.prediction["agreement"], worst.prediction["correct"]
    reason = "Share of pixels that keep their class" if summary.segmented else "Share of predictions that stay the same"
    if len(known) > 1:
        reason += f", on average over corruptions; under {worst.variant.words}, the harshest, {percent(agreement.mean)}"
    else:
        reason += f" under {worst.variant.words}"
    if right and summary.clean_accuracy and not summary.segmented:
        reason += f"; accuracy falls from {percent(summary.clean_accuracy.mean)} to {percent(right.mean)}"
        if right.mean >= summary.clean_accuracy.mean:
            reason = reason.replace("falls from", "goes from")
    elif summary.segmented and not math.isnan(worst.set_iou):
        reason += f"; mIoU goes from {percent(summary.clean_iou)} to {percent(worst.set_iou)}"
    return [Answer(asked, percent(same), reason + ".")]


def sentences_of(summary: Summary) -> list[str]:
    """What the run says: does it overfocus and where, what survives, whether the predictions follow."""
    found = overfocusing_sentence(summary.overfocusing) + concentration_sentences(summary.ranked) + norm_sentence(summary)
    if summary.survival:
        found += survival_sentences(summary)
        found += flat_sentence(summary)
        found += prediction_sentences(summary)
    else:
        found.append("No corruption was applied, so nothing is said about stability; add --corruption gaussian_noise for that.")
    return found


def verdict_line(model: str, verdicts: "Sequence[Verdict]", baseline: str, *, identical: bool) -> str:
    """What a comparison says of one model, in one line."""
    if identical:
        return f"{model} is identical to {baseline}: every number measured on the same images agrees exactly."
    known = [clause_of(verdict) for verdict in verdicts]
    told = [clause for verdict, clause in zip(verdicts, known, strict=True) if verdict.answer != "can't tell"]
    open_ones = [clause for verdict, clause in zip(verdicts, known, strict=True) if verdict.answer == "can't tell"]
    compared = f"Compared with {baseline}, {model} {listed(told)}"
    if not open_ones:
        return f"{compared}." if told else f"Nothing can be compared between {model} and {baseline}."
    needed = [number for verdict in verdicts if verdict.answer == "can't tell" and (number := needed_images(verdict))]
    most = max(needed, key=lambda words: int("".join(filter(str.isdigit, words))), default="")
    hint = f" ({most} would be needed)" if most else ""
    images = counted(min(int(verdict.rows["count"].min()) for verdict in verdicts))
    if told:
        return f"{compared}; from {images} we cannot tell whether it {listed(open_ones, 'or')}{hint}."
    return f"From {images} we cannot tell whether {model} {listed(open_ones, 'or')} than {baseline}{hint}."


def clause_of(verdict: "Verdict") -> str:
    """The answer to one question as the end of a sentence; of an open question what would be so if the answer were yes."""
    question = question_of(verdict)
    if verdict.question == RIGHT.name and set(verdict.rows["metric"]) == set(RIGHT.quantities):
        question = RIGHT
    if verdict.answer == "mixed":
        about = {"overfocus": "overfocusing", "stability": "stability of attention", "predictions": "predictions"}
        return f"is better by some measures of {about[verdict.question]} and worse by others"
    return f"{(question.worse if verdict.answer == 'no' else question.better).removesuffix(' than')} {question.where}"


def question_of(verdict: "Verdict") -> Question:
    """The question that a verdict answers."""
    return next(known for known in (OVERFOCUS, STABILITY, PREDICTIONS) if known.name == verdict.question)


def needed_images(verdict: "Verdict") -> str:
    """How many images would answer an open question, as "about 210 images"; empty where none would or nobody knows."""
    question = question_of(verdict)
    text = images_needed(verdict.rows, question)
    return text.removeprefix("; ").partition(" would be needed")[0] if "would be needed" in text else ""


def listed(parts: list[str], last: str = "and") -> str:
    """A list in words.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return f" {last} ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def overfocusing_sentence(judged: Overfocusing) -> list[str]:
    """Does it overfocus: strongly, mildly or no, with the numbers and the reference."""
    if judged.answer is None:
        return []
    answers = {"strongly": "It overfocuses strongly", "mildly": "It overfocuses mildly", "no": "It does not overfocus"}
    effective = judged.effective
    interval = f" ({between(effective.low, effective.high)})" if effective.count > 1 else ""
    numbers = (
        f"in the most concentrated third of its layers ({spans(list(judged.layers))}) attention effectively reaches "
        f"{percent(effective.mean)} of the patches{interval}; uniform attention reaches 100\u00a0%"
    )
    if judged.nearly_uniform:
        return [f"{answers['no']}: {numbers}. That is nearly uniform, as in an untrained network."]
    rule = f"Below {percent(STRONG)} counts as strongly, below {percent(MILD)} as mildly"
    crossed = [percent(limit) for limit in (STRONG, MILD) if effective.low < limit <= effective.high]
    if crossed:
        rule += f"; the interval holds {' and '.join(crossed)}, so that other images may give another answer"
    return [f"{answers[judged.answer]}: {numbers}. {rule}."]


def concentration_sentences(ranked: list[LayerSummary]) -> list[str]:
    """Which layers are most concentrated, against uniform attention."""
    if not ranked:
        return ["No layer has more than one patch token, so concentration is undefined."]
    first = ranked[0]
    share, used = first.concentration["top_share"], first.concentration["effective_tokens"]
    layer = first.layer
    tokens = f"{layer.tokens} patches" + (" of a window" if layer.kind == "window" else "")
    top = f"the {layer.top} most attended of {tokens} receive" if layer.top > 1 else f"the most attended of {tokens} receives"
    where = f"layer {layer.number} ({layer.module})"
    found = [
        f"On clean images attention is most concentrated in {where}: {top} {percent(share.mean)} of the attention, where uniform "
        f"attention would give {percent(first.uniform_share)}; {percent(used.mean)} of the patches are effectively in use."
    ]
    if len(ranked) > 2:
        following = " and ".join(
            f"layer {row.layer.number} ({percent(row.concentration['top_share'].mean)})" for row in ranked[1:3]
        )
        last = ranked[-1]
        even = f"layer {last.layer.number} ({percent(last.concentration['top_share'].mean)})"
        found.append(f"{following[0].upper()}{following[1:]} follow; the most even is {even}.")
    return found


def norm_sentence(summary: Summary) -> list[str]:
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
    frequent = f"Tokens of outlying norm (more than 3 times the median) are most frequent after layer {worst.layer.number}"
    if not received:
        return [f"{frequent}: {percent(share.mean)} of the patches on average over {counted(share.count)}."]
    there = share.mean * share.count / received.count  # what they receive is defined in the images that have any
    return [
        f"{frequent}: {received.count} of {counted(share.count)} {'has' if received.count == 1 else 'have'} any; there they are "
        f"{percent(there)} of the patches on average and receive {percent(received.mean)} of the attention."
    ]


def survival_sentences(summary: Summary) -> list[str]:
    """How much of the attention is the image's own, against another image; the corruptions that keep least and most of it."""
    if summary.retained:
        ordered = sorted(
            (row for row in summary.survival if not math.isnan(row.retained[PRIMARY].retained)),
            key=lambda row: row.retained[PRIMARY].retained,
        )
    else:
        known = (row for row in summary.survival if row.stability["received_shift"])
        ordered = sorted(known, key=lambda row: -row.stability["received_shift"].mean)
    found = []
    if not summary.retained and ordered:
        found.append(
            f"{NOT_MEASURED[0].upper()}{NOT_MEASURED[1:]}: without another image to compare with, nothing is said about how much "
            "of the attention that stays is the image's own."
        )
    elif summary.retained:
        found.append(overall_sentence(summary))
    if not ordered:
        return found
    harshest, mildest = ordered[0], ordered[-1]
    found.append(f"Under {harshest.variant.words}{', the harshest,' if len(ordered) > 1 else ''} {kept_words(harshest)}.")
    if mildest is not harshest:
        found.append(f"The mildest is {mildest.variant.words}: {kept_words(mildest)}.")
    return found


def overall_sentence(summary: Summary) -> str:
    """What is retained over all corruptions, and whether that can be judged."""
    primary = summary.retained[PRIMARY]
    if math.isnan(primary.retained):
        return (
            "What attention retains under corruption is undefined: the difference between two different images cannot be "
            "distinguished from numerical noise."
        )
    interval = between(primary.low, primary.high, cut=False)
    claim = (
        f"Over all corruptions attention retains {percent(primary.retained)} ({interval}) of what sets an image apart from "
        f"another one, by {title_of(PRIMARY)}: 100\u00a0% would be as if not corrupted, 0\u00a0% no more than another image has "
        "in common"
    )
    if primary.count < FEWEST_IMAGES:
        return f"{claim}. {counted(primary.count)} are too few to judge that: at least {FEWEST_IMAGES} are needed."
    return f"{claim}."


def kept_words(row: Survival) -> str:
    """Top patches and moved attention under one variant, each beside the same for another image."""
    overlap, shift = row.stability["top_overlap"], row.stability["received_shift"]
    interval = f" ({between(overlap.low, overlap.high)})" if overlap.count > 1 else ""
    words = f"{percent(overlap.mean)} of the most attended patches stay the same{interval}"
    if "top_overlap" in row.retained:
        other = row.retained["top_overlap"]
        more = "" if other.low > 0 or math.isnan(other.low) else ", no more than another image has in common"
        words += f", where another image keeps {percent(other.control)}{more}"
    weakest = f", most of all in layer {row.weakest_layer.number}" if row.weakest_layer else ""
    words += f"; {percent(shift.mean)} of the attention moves to other patches{weakest}"
    if "received_shift" in row.retained:
        words += f", between two images {percent(row.retained['received_shift'].control)}"
    return words


def flat_sentence(summary: Summary) -> list[str]:
    """A warning where top-k overlap means little, because attention has hardly any order."""
    flat = [row.layer.number for row in summary.layers if row.concentration["effective_tokens"].mean > MILD]
    if not flat:
        return []
    return [
        f"In {spans(flat)} attention is spread widely (effective tokens above {percent(MILD)}): many patches receive nearly "
        "the same there, so that top-k overlap can fall although little moves; judge these layers by what is retained of "
        "Jensen–Shannon divergence."
    ]


def prediction_sentences(summary: Summary) -> list[str]:
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
        found += f"; accuracy is {percent(summary.clean_accuracy.mean)} on clean images, {percent(right.mean)} then"
    found += "."
    if summary.one_class:
        found += " One class is predicted for every clean image, so this says nothing about whether predictions survive."
    return [found]


def pixel_sentences(summary: Summary, known: list[Survival]) -> list[str]:
    """Whether pixels keep their class, and how the mIoU changes, under the corruption that changes most."""
    worst = min(known, key=lambda row: row.prediction["agreement"].mean)
    kept = worst.prediction["agreement"]
    most = ", more than under any other" if len(known) > 1 else ""
    interval = f" ({between(1 - kept.high, 1 - kept.low)})" if kept.count > 1 else ""
    found = f"Under {worst.variant.words}, {percent(1 - kept.mean)} of an image's pixels change their class{interval}{most}"
    if not math.isnan(worst.set_iou):
        found += f"; the mIoU of all images is {percent(summary.clean_iou)} when clean, {percent(worst.set_iou)} then"
    return [found + "."]


def key_figures_of(summary: Summary) -> list[KeyFigure]:
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
        value = mean_of(summary, _stability(name))
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


def iou_figures(summary: Summary) -> list[KeyFigure]:
    """The mIoU of segmentation, where there are masks."""
    if math.isnan(summary.clean_iou):
        return []
    scores = [row.set_iou for row in summary.survival]
    if not scores:
        return [KeyFigure("mIoU (set)", percent(summary.clean_iou), "of clean images")]
    clean = percent(summary.clean_iou).removesuffix("\u00a0%")
    value = f"{clean} → {percent(sum(scores) / len(scores))}"
    return [KeyFigure("mIoU (set), clean → corrupted", value, "corrupted: mean over corruptions and severities")]


def _stability(name: str) -> Callable[[Survival], Interval]:
    return lambda row: row.stability[name]


def mean_of(summary: Summary, value: Callable[[Survival], Interval]) -> float:
    """Mean over corruptions and severities of what has a value; NaN where nothing has."""
    known = [value(row).mean for row in summary.survival if value(row)]
    return sum(known) / len(known) if known else math.nan


def spans(numbers: list[int]) -> str:
    """Layer numbers with runs put together.

    >>> spans([0, 1, 2, 5])
    'layers 0–2 and 5'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = listed([str(first) if first == last else f"{first}–{last}" for first, last in runs])
    return f"layer {text}" if len(numbers) == 1 else f"layers {text}"


def percent(share: float) -> str:
    r"""A share as a percentage; one digit after the point below 10 %.

    >>> percent(0.051)
    '5.1\xa0%'
    """
    return f"{100 * share:.1f}\u00a0%" if 0 < abs(share) < 0.0995 else f"{100 * share:.0f}\u00a0%"


def between(low: float, high: float, *, cut: bool = True) -> str:
    """A 95 % interval of a share, cut at 0 and 1, where a share ends."""
    low, high = (max(0.0, low), min(1.0, high)) if cut else (low, high)
    return f"95\u00a0% interval {100 * low:.0f}{'–' if low >= 0 else ' to '}{100 * high:.0f}\u00a0%".replace("-", "−")
