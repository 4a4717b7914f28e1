"""Answers in words to the three questions that a comparison asks, derived from intervals by one rule."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from overfocus.comparison.differences import EVERY
from overfocus.comparison.overview import decimal
from overfocus.comparison.panel import LAYER_GROUPS, OUTPUT
from overfocus.metrics.catalogue import title_of

Answer = Literal["yes", "no", "can't tell"]

FEWEST_IMAGES = 10
"""With fewer images a bootstrap interval is too short to be trusted: six that differ to one side by chance would exclude 0."""

SMALLEST_DIFFERENCE = 0.005
"""Of quantities between 0 and 1, a smaller difference does not matter, however sure it is: half a percentage point."""


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


QUESTIONS = (
    Question(
        "overfocus", "Does it overfocus less?", "overfocuses less than", "overfocuses more than",
        {"top_share": -1, "gini": -1, "effective_tokens": 1}, LAYER_GROUPS[0], "clean", "on clean images",
    ),
    Question(
        "stability", "Is its attention more stable?", "has more stable attention than", "has less stable attention than",
        {"js_divergence": -1, "received_shift": -1, "attention_cosine": 1}, LAYER_GROUPS[0], EVERY, "under corruption",
    ),
    Question(
        "predictions", "Do its predictions survive?", "keeps its predictions better than", "keeps its predictions worse than",
        {"agreement": 1, "confidence_drop": -1, "correct": 1}, OUTPUT, EVERY, "under corruption",
    ),
)  # fmt: skip
_FEATURES = {"output_cosine": 1}
"""Decides on the predictions where neither model has a classifier."""

RULE = (
    "Each question rests on a few quantities, each the mean over all layers and images of the paired difference to the baseline "
    "with its 95 % bootstrap interval: overfocusing on top_share, gini and effective_tokens of clean images; stability on "
    "js_divergence, received_shift and attention_cosine, averaged over all corruptions and severities; predictions on agreement, "
    "confidence_drop and, where labels are known, correct (output_cosine for models without a classifier), averaged likewise. "
    "The answer is yes where more than half of the intervals lie on the better side of 0 and none on the worse, no where more "
    "than half lie on the worse side and none on the better, and can't tell in every other case and with fewer than "
    f"{FEWEST_IMAGES} images; an interval around a difference below {SMALLEST_DIFFERENCE} counts for neither side. "
    "top_overlap and rank_correlation decide nothing: where attention is flat they fall by themselves."
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
    """The rows of the comparison's table that it rests on."""


def judge(table: pd.DataFrame, baseline: str, models: Sequence[str]) -> tuple[Verdict, ...]:
    """The verdicts on each model; questions on which the table says nothing are left out."""
    verdicts = []
    for model in models:
        for question in QUESTIONS:
            rows, signs = _rows(table[table["model"] == model], question)
            if len(rows):
                answer = _answer(rows, signs)
                sentence = _sentence(question, answer, rows, baseline, model)
                verdicts.append(Verdict(question.name, question.asked, model, answer, sentence, rows))
    return tuple(verdicts)


def _rows(table: pd.DataFrame, question: Question) -> tuple[pd.DataFrame, dict[str, int]]:
    there = table[(table["layers"] == question.layers) & (table["corruption"] == question.corruption)]
    signs = question.quantities
    if question.layers == OUTPUT and "agreement" not in set(there["metric"]):
        signs = _FEATURES
    rows = there[there["metric"].isin(list(signs))]
    return rows.reset_index(drop=True), signs


def _answer(rows: pd.DataFrame, signs: dict[str, int]) -> Answer:
    if rows["count"].min() < FEWEST_IMAGES:
        return "can't tell"
    sign = rows["metric"].map(signs)
    ends = rows[["low", "high"]].mul(sign, axis=0)
    matters = rows["difference"].abs() >= SMALLEST_DIFFERENCE
    better, worse = int((matters & (ends.min(axis=1) > 0)).sum()), int((matters & (ends.max(axis=1) < 0)).sum())
    if 2 * better > len(rows) and not worse:
        return "yes"
    return "no" if 2 * worse > len(rows) and not better else "can't tell"


def _sentence(question: Question, answer: Answer, rows: pd.DataFrame, baseline: str, model: str) -> str:
    numbers = "; ".join(
        f"{title_of(row['metric'])} {decimal(row['mean'])} against {decimal(row['baseline_mean'])} (difference "
        f"{decimal(row['difference'], sign=True)}, 95 % interval {decimal(row['low'], sign=True)} … "
        f"{decimal(row['high'], sign=True)})"
        for row in rows.to_dict("records")
    )
    images = int(rows["count"].min())
    counted = f"{images} image" + ("s" if images != 1 else "")
    if answer == "can't tell":
        why = (
            f"{counted} are too few to tell"
            if images < FEWEST_IMAGES
            else "too few of the differences are sure, large enough and on one side"
        )
        claim = f"whether {model} {question.better} {baseline} {question.where} cannot be told from {counted}: {why}"
        return f"{claim[0].upper()}{claim[1:]}. {numbers}."
    return (
        f"{model} {question.better if answer == 'yes' else question.worse} {baseline} {question.where}, on {counted}: {numbers}."
    )
