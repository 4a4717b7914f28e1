"""Answers in words, each by a written rule: does one model overfocus, and what does it do otherwise than the baseline.

Does a model overfocus? The rule was fixed before the networks were measured that `tests/scripts/overfocusing_rule.py` reports on:

1. Take the layers in which patches attend patches (kinds global, window and pooled), and of each the mean of `effective_tokens`
   over clean images: the share of the patches that attention effectively reaches, 1 where attention is uniform.
2. Of the most concentrated third of these layers (at least one), the lowest ones, take the mean E.
3. E below 0.5: it overfocuses strongly, fewer than half of the patches are in use. E from 0.5 and below 0.8: mildly. From 0.8 on:
   no. From 0.95 on attention is nearly uniform, as in an untrained network.

A third of the layers, because attention of most networks is even in some depths and concentrated in others, and one layer alone
may be chance. Concentration may be judged from a single image; the interval says how far images differ.

The three questions of a comparison, and how their answers follow from intervals, stand in `RULE`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import numpy as np
import pandas as pd

from overfocus.metrics.catalogue import PATCH_KINDS, title_of
from overfocus.statistics.fragility import CLEAN_CONFIDENCE, CORRUPTION_ALONE, POOLED
from overfocus.statistics.intervals import Interval, holm, interval_of
from overfocus.statistics.panel import EVERY, LAYER_GROUPS, OUTPUT, RunTables
from overfocus.statistics.retained import NOISE_MARGIN, NOT_MEASURED, RETAINED
from overfocus.variants import CLEAN, CLEAN_VARIANT

_GUESSES = {CORRUPTION_ALONE: "Which corruption it is, alone", CLEAN_CONFIDENCE: "Confidence on the clean image"}


def measure_title(name: str) -> str:
    """Name for people of a metric, of what is retained of one, or of a plain guess.

    >>> measure_title("retained.attention_cosine")
    'Retained: attention cosine'
    """
    if name.startswith(RETAINED):
        return f"Retained: {within_sentence(title_of(name.removeprefix(RETAINED)))}"
    return _GUESSES.get(name) or title_of(name)


def within_sentence(title: str) -> str:
    """A title within a sentence: names keep their capitals."""
    return title if title[1:2].isupper() or title.startswith(("Jensen", "Gini")) else title[:1].lower() + title[1:]


def variant_label(corruption: str, severity: int) -> str:
    """A variant in words: "clean", "fog 3", "all corruptions"."""
    words = corruption.replace("_", " ")
    if severity:
        return f"{words} {severity}"
    return {EVERY: "all corruptions", POOLED: "all corruptions, pooled"}.get(corruption, words)


def decimal(number: float, *, sign: bool = False, places: int = 3) -> str:
    """With three places after the point, fewer for numbers from 100 on; "–" where undefined."""
    if math.isnan(number):
        return "–"
    places = places if abs(number) < 100 else 1
    number = round(number, places) or 0.0  # no minus in front of zeros
    return format(number, f"{'+' if sign and number else ''}.{places}f").replace("-", "−")


def probability(number: float) -> str:
    """A p-value; "< 0.001" for smaller ones."""
    return "–" if math.isnan(number) else "< 0.001" if number < 0.001 else f"{number:.3f}"


def interval_text(low: float, high: float, *, sign: bool = True, places: int = 3) -> str:
    """The ends of an interval: "−0.200 … −0.100"."""
    return f"{decimal(low, sign=sign, places=places)} … {decimal(high, sign=sign, places=places)}"


def counted(number: int, what: str = "image") -> str:
    """A number of things.

    >>> counted(1), counted(20)
    ('1 image', '20 images')
    """
    return f"{number:,} {what}" + ("" if number == 1 else "s")


STRONG = 0.5
"""Effective tokens below which a model overfocuses strongly."""
MILD = 0.8
"""Effective tokens below which it overfocuses mildly; from here on it does not, and the order of its tokens is mostly noise."""
NEARLY_UNIFORM = 0.95
"""Effective tokens from which attention is called nearly uniform."""
METRIC = "effective_tokens"


@dataclass(frozen=True)
class Overfocusing:
    """The answer for one run."""

    answer: Literal["strongly", "mildly", "no"] | None
    """None where concentration is undefined in every layer."""
    effective: Interval
    """Mean over images of the effective tokens of the most concentrated third of the layers; uniform attention has 1."""
    layers: tuple[int, ...]
    """Numbers of these layers, in the order of the model."""

    @property
    def nearly_uniform(self) -> bool:
        """Whether attention is spread as evenly as in an untrained network."""
        return self.effective.mean >= NEARLY_UNIFORM


def judge_overfocusing(run: RunTables) -> Overfocusing:
    """Apply the rule of this module to the clean images of a run."""
    layers = run.description.layers
    chosen = [place for place, layer in enumerate(layers) if layer.kind in PATCH_KINDS]
    clean = (
        run.cells.of(METRIC, CLEAN_VARIANT)[:, chosen] if METRIC in run.cells and CLEAN_VARIANT in run.variants else np.empty(0)
    )
    if not np.isfinite(clean).any():
        return Overfocusing(None, interval_of(pd.Series(dtype=float), METRIC), ())
    by_layer = pd.DataFrame(clean, columns=[layers[place].number for place in chosen])
    means = by_layer.mean().dropna().sort_values(kind="stable")
    lowest = means.index[: max(1, math.ceil(len(means) / 3))]
    effective = interval_of(by_layer[lowest].mean(axis=1), METRIC)
    answer: Literal["strongly", "mildly", "no"] = (
        "strongly" if effective.mean < STRONG else "mildly" if effective.mean < MILD else "no"
    )
    return Overfocusing(answer, effective, tuple(sorted(int(number) for number in lowest)))


Answer = Literal["yes", "no", "mixed", "can't tell"]

FEWEST_IMAGES = 20
"""A difference is judged from at least this many images: with fewer, intervals of skewed values are too short to be trusted."""

SMALLEST_DIFFERENCE = 0.005
"""Of concentration and predictions, a smaller difference does not matter, however sure it is: half a percentage point."""

LEVEL = 0.05
_MOST_IMAGES = 100_000
_POWERED = ((1.96 + 0.84) / 1.96) ** 2
"""How many times the images that would just exclude 0 give an interval that does so four times in five."""

PRIMARY = f"{RETAINED}js_divergence"
"""The quantity that decides on stability unless others contradict it."""


@dataclass(frozen=True)
class Question:
    """What is asked of each model against the baseline, and which rows of the table answer it."""

    name: Literal["overfocus", "stability", "predictions"]
    asked: str
    better: str
    """What the model does where the answer is yes."""
    worse: str
    quantities: dict[str, int]
    """Metrics that decide, with the sign that a better difference has."""
    layers: str
    corruption: str
    where: str


_STABILITY = {"js_divergence": -1, "received_shift": -1, "attention_cosine": 1, "top_overlap": 1, "rank_correlation": 1}
"""The five metrics of stability with the sign of a better raw difference; more retained is better for all."""

OVERFOCUS = Question(
    "overfocus", "Does it overfocus less?", "overfocuses less than", "overfocuses more than",
    {"top_share": -1, "gini": -1, "effective_tokens": 1}, LAYER_GROUPS[0], CLEAN, "on clean images",
)  # fmt: skip
STABILITY = Question(
    "stability", "Is its attention more stable?", "has more stable attention than", "has less stable attention than",
    dict.fromkeys((f"{RETAINED}{name}" for name in _STABILITY), 1), LAYER_GROUPS[0], EVERY, "under corruption",
)  # fmt: skip
PREDICTIONS = Question(
    "predictions", "Do its predictions survive?", "keeps its predictions better than", "keeps its predictions worse than",
    {"agreement": 1, "confidence_drop": -1, "correct": 1}, OUTPUT, EVERY, "under corruption",
)  # fmt: skip
RIGHT = replace(PREDICTIONS, better="is right more often than", worse="is right less often than", quantities={"correct": 1})
"""What is asked where a model predicts one class for every clean image: that one cannot change."""
_FEATURES = {"output_cosine": 1}
"""Decides on the predictions where neither model has a classifier."""

RULE = (
    "Each question rests on a few quantities: the mean over all layers and images of the paired difference to the baseline, "
    "with its 95 % interval and a test, adjusted by Holm over the quantities of the question. A difference is significant "
    f"if the interval excludes 0 and the adjusted p is below {LEVEL}. Overfocusing rests on top_share, gini and "
    "effective_tokens of clean images; predictions on agreement, confidence_drop and, where labels are known, correct "
    "(output_cosine for models without a classifier), averaged over all corruptions and severities: the answer is yes if "
    "more than half of the differences are significantly better and none is significantly worse, no the other way round, "
    f"mixed if some are significantly better and others significantly worse; a difference below {SMALLEST_DIFFERENCE} counts "
    "for neither side. For a model that predicts one class for every clean image only correct counts. Stability rests on "
    "what is retained relative to the control, another image, of js_divergence, received_shift, attention_cosine, "
    "top_overlap and rank_correlation: yes if js_divergence is significantly better and none of the others significantly "
    "worse, no if it is significantly worse and none significantly better, mixed if some are significantly better and "
    "others significantly worse. If the raw difference of a deciding quantity excludes 0 on the other side, the answer is "
    f"can't tell. It is can't tell in every other case, without a control, where the control is no more than {NOISE_MARGIN} "
    f"times the numerical noise, and with fewer than {FEWEST_IMAGES} images."
)


@dataclass(frozen=True, eq=False)
class Verdict:
    """The answer to one question about one model, against the baseline."""

    question: str
    """"overfocus", "stability" or "predictions"."""
    asked: str
    """The question in words."""
    model: str
    answer: Answer
    sentence: str
    """The answer in words, with the numbers."""
    rows: pd.DataFrame = field(repr=False)
    """The rows of the comparison's table that it rests on; p_adjusted is Holm's over these rows."""


def judge(
    table: pd.DataFrame, baseline: str, models: Sequence[str], clean_classes: Mapping[str, int] | None = None
) -> tuple[Verdict, ...]:
    """The verdicts on each model; questions on which the table says nothing are left out.

    `clean_classes` is how many classes each model predicts over the clean images, for models that predict classes.
    """
    verdicts = []
    for model in models:
        of_model = table[table["model"] == model]
        for judged in (_overfocus, _stability, _predictions):
            verdict = judged(of_model, baseline, model, clean_classes or {})
            if verdict is not None:
                verdicts.append(verdict)
    return tuple(verdicts)


def _overfocus(table: pd.DataFrame, baseline: str, model: str, _: Mapping[str, int]) -> Verdict | None:
    rows = _rows(table, OVERFOCUS, list(OVERFOCUS.quantities))
    if rows.empty:
        return None
    better, worse = _sides(rows, OVERFOCUS.quantities, SMALLEST_DIFFERENCE)
    return _verdict(OVERFOCUS, baseline, model, rows, _majority(len(rows), better, worse), better, worse)


def _predictions(table: pd.DataFrame, baseline: str, model: str, clean_classes: Mapping[str, int]) -> Verdict | None:
    constant = [name for name in (model, baseline) if clean_classes.get(name) == 1]
    there = _rows(table, PREDICTIONS, [*PREDICTIONS.quantities, *_FEATURES])
    question, signs = PREDICTIONS, PREDICTIONS.quantities if "agreement" in set(there["metric"]) else _FEATURES
    if constant:
        question, signs = RIGHT, RIGHT.quantities
    rows = _rows(table, question, list(signs))
    if rows.empty and not constant:
        return None
    if rows.empty:
        told = f"{' and '.join(constant)} predict{'s' if len(constant) == 1 else ''} one class for every clean image"
        why = f"{told}, which cannot change; only accuracy could answer this, and labels are not known"
        rows = _rows(table, PREDICTIONS, ["agreement", "confidence_drop"])
        return _verdict(PREDICTIONS, baseline, model, rows, "can't tell", [], [], why) if len(rows) else None
    better, worse = _sides(rows, signs, SMALLEST_DIFFERENCE)
    return _verdict(question, baseline, model, rows, _majority(len(rows), better, worse), better, worse)


def _stability(table: pd.DataFrame, baseline: str, model: str, _: Mapping[str, int]) -> Verdict | None:
    raw = _rows(table, STABILITY, list(_STABILITY))
    if raw.empty:
        return None
    rows = _rows(table, STABILITY, list(STABILITY.quantities))
    if rows.empty:
        return _verdict(STABILITY, baseline, model, raw, "can't tell", [], [], NOT_MEASURED)
    primary = rows[rows["metric"] == PRIMARY]
    if primary.empty or primary["difference"].isna().all():
        why = "retained Jensen–Shannon divergence is undefined: the control cannot be distinguished from numerical noise"
        return _verdict(STABILITY, baseline, model, rows, "can't tell", [], [], why)
    better, worse = _sides(rows, STABILITY.quantities, 0.0)
    if better and worse:
        return _verdict(STABILITY, baseline, model, rows, "mixed", better, worse)
    answer: Answer = "yes" if PRIMARY in better else "no" if PRIMARY in worse else "can't tell"
    if answer != "can't tell":
        raw_better, raw_worse = _sides(raw, _STABILITY, 0.0, adjusted=False)
        opposed = [name for name in (better or worse) if name.removeprefix(RETAINED) in (raw_worse if better else raw_better)]
        if opposed:
            way = ("more", "less") if better else ("less", "more")
            names = ", ".join(_subject(name.removeprefix(RETAINED)) for name in opposed)
            why = f"it retains {way[0]} of {names} against another image, while the raw value says {way[1]} stable"
            return _verdict(STABILITY, baseline, model, rows, "can't tell", [], [], why)
    return _verdict(STABILITY, baseline, model, rows, answer, better, worse)


def _rows(table: pd.DataFrame, question: Question, metrics: Sequence[str]) -> pd.DataFrame:
    there = table[(table["layers"] == question.layers) & (table["corruption"] == question.corruption)]
    rows = there[there["metric"].isin(list(metrics))].reset_index(drop=True)
    return rows.assign(p_adjusted=holm(rows["p_value"].to_numpy("float64", na_value=np.nan)))


def _sides(
    rows: pd.DataFrame, signs: Mapping[str, int], smallest: float, *, adjusted: bool = True
) -> tuple[list[str], list[str]]:
    """The metrics that are surely better, and those that are surely worse."""
    sign = rows["metric"].map(dict(signs)).to_numpy("float64", na_value=np.nan)
    ends = rows[["low", "high"]].to_numpy("float64", na_value=np.nan) * sign[:, None]
    sure = rows["difference"].abs().to_numpy("float64", na_value=np.nan) >= smallest
    if adjusted:
        # mIoU of a set has no test: its interval alone tells
        p_values = rows["p_adjusted"].to_numpy("float64", na_value=np.nan)
        sure &= np.isnan(p_values) | (p_values < LEVEL)
    names = rows["metric"].to_numpy()
    return list(names[sure & (ends.min(1) > 0)]), list(names[sure & (ends.max(1) < 0)])


def _majority(quantities: int, better: Sequence[str], worse: Sequence[str]) -> Answer:
    if better and worse:
        return "mixed"
    if 2 * len(better) > quantities:
        return "yes"
    return "no" if 2 * len(worse) > quantities else "can't tell"


def _verdict(
    question: Question,
    baseline: str,
    model: str,
    rows: pd.DataFrame,
    answer: Answer,
    better: Sequence[str],
    worse: Sequence[str],
    why: str = "",
) -> Verdict:
    images = int(rows["count"].min())
    if images < FEWEST_IMAGES:
        few = f"a difference is judged from at least {FEWEST_IMAGES} images{images_needed(rows, question)}"
        answer, why = "can't tell", f"{why}, and {few}" if why else few
    elif answer == "can't tell" and not why:
        why = f"too few of the differences are significant in one direction{images_needed(rows, question)}"
    sentence = _claim(question, answer, rows, baseline, model, better, worse, why)
    return Verdict(question.name, question.asked, model, answer, f"{sentence} {_numbers(rows)}.", rows)


def _claim(
    question: Question,
    answer: Answer,
    rows: pd.DataFrame,
    baseline: str,
    model: str,
    better: Sequence[str],
    worse: Sequence[str],
    why: str,
) -> str:
    images = counted(int(rows["count"].min()))
    if answer == "mixed":
        sides = [", ".join(_subject(name) for name in names) for names in (better, worse)]
        return (
            f"Against {baseline} {question.where}, on {images}, {model} is better by {sides[0]} and worse by {sides[1]}, so "
            "there is no single answer:"
        )
    if answer != "can't tell":
        return f"{model} {question.better if answer == 'yes' else question.worse} {baseline} {question.where}, on {images}:"
    return f"From {images} we cannot tell whether {model} {question.better} {baseline} {question.where}: {why}."


def _subject(metric: str) -> str:
    """A quantity within a sentence."""
    title = within_sentence(title_of(metric.removeprefix(RETAINED)))
    return f"what is retained of {title}" if metric.startswith(RETAINED) else title


def images_needed(rows: pd.DataFrame, question: Question) -> str:
    """In words, how many images would tell four times in five, were the differences as large as seen.

    Of stability the primary difference has to be sure, else more than half of them, on one side. Empty where they are not on
    one side, or no interval is known.
    """
    if question is STABILITY:
        rows = rows[rows["metric"] == PRIMARY]
    signs = rows["metric"].map(question.quantities).fillna(1).to_numpy("float64", na_value=np.nan)
    smallest = 0.0 if question is STABILITY else SMALLEST_DIFFERENCE
    difference = signs * rows["difference"].to_numpy("float64", na_value=np.nan)
    half = (rows["high"] - rows["low"]).to_numpy("float64", na_value=np.nan) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        numbers = rows["count"].to_numpy("float64", na_value=np.nan) * (half / difference) ** 2 * _POWERED
    numbers[np.abs(difference) < smallest] = math.inf
    wanted = len(rows) // 2 + 1
    known = (half > 0) & ~np.isnan(numbers)
    sides = [np.sort(numbers[known & (sign * difference > 0)]) for sign in (1, -1)]
    number = min((float(side[wanted - 1]) for side in sides if len(side) >= wanted), default=math.nan)
    if math.isnan(number):
        return ""
    if math.isinf(number):
        return f"; differences below {smallest} do not count, however many images there are"
    number = max(float(FEWEST_IMAGES), number)
    count = f"more than {_MOST_IMAGES:,}" if number > _MOST_IMAGES else f"about {math.ceil(number):,}"
    return f"; {count} images would be needed, were the differences as large as seen here"


def _numbers(rows: pd.DataFrame) -> str:
    return "; ".join(
        f"{measure_title(str(row['metric']))} {decimal(row['mean'])} against {decimal(row['baseline_mean'])} (difference "
        f"{decimal(row['difference'], sign=True)}, 95 % interval {interval_text(row['low'], row['high'])}, p "
        f"{probability(row['p_adjusted'])} after Holm over {len(rows)})"
        for row in cast("list[dict[str, float]]", rows.to_dict("records"))
    )
