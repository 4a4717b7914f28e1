"""The rule by which words follow from intervals."""

import pandas as pd
import pytest

from overfocus.statistics.verdicts import RULE, judge

_STABILITY = ("js_divergence", "received_shift", "attention_cosine")


def _table(intervals, *, metrics=_STABILITY, layers="all", corruption="all", count=50):
    rows = [
        {"metric": metric, "layers": layers, "corruption": corruption, "severity": 0, "model": "tap", "mean": 0.5,
         "baseline_mean": 0.5 - (low + high) / 2, "difference": (low + high) / 2, "low": low, "high": high, "p_value": 0.5,
         "p_adjusted": 0.5, "effect_size": 0.1, "count": count, "chance": float("nan")}
        for metric, (low, high) in zip(metrics, intervals, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("intervals", "answer"),
    [
        ([(-0.2, -0.1), (-0.2, -0.1), (0.1, 0.2)], "yes"),  # divergence and shift fall, cosine rises
        ([(-0.2, -0.1), (-0.2, -0.1), (-0.1, 0.2)], "yes"),
        ([(-0.2, -0.1), (-0.2, 0.1), (-0.1, 0.2)], "can't tell"),
        ([(-0.2, -0.1), (-0.2, -0.1), (-0.2, -0.1)], "can't tell"),  # the cosine says otherwise
        ([(0.1, 0.2), (0.1, 0.2), (-0.2, -0.1)], "no"),
        ([(-0.1, 0.2), (0.1, 0.2), (-0.2, -0.1)], "no"),
        ([(-0.1, 0.1), (-0.1, 0.1), (-0.1, 0.1)], "can't tell"),
        ([(-0.004, -0.002), (-0.004, -0.002), (0.002, 0.004)], "can't tell"),  # sure, but of no importance
    ],
)
def test_stability(intervals, answer):
    (verdict,) = judge(_table(intervals), "deit", ["tap"])
    assert (verdict.question, verdict.model, verdict.answer) == ("stability", "tap", answer)
    assert verdict.asked == "Is its attention more stable?"
    assert len(verdict.rows) == 3


def test_overlap_decides_nothing():
    """It falls by itself where attention gets flat."""
    rows = _table([(-0.2, -0.1), (-0.2, -0.1), (0.1, 0.2), (-0.5, -0.4)], metrics=(*_STABILITY, "top_overlap"))
    (verdict,) = judge(rows, "deit", ["tap"])
    assert verdict.answer == "yes"
    assert "top_overlap" not in set(verdict.rows["metric"])
    assert "top_overlap and rank_correlation decide nothing" in RULE


def test_few_images_tell_nothing():
    (verdict,) = judge(_table([(-0.2, -0.1), (-0.2, -0.1), (0.1, 0.2)], count=9), "deit", ["tap"])
    assert verdict.answer == "can't tell"
    assert "9 images are too few to tell" in verdict.sentence


def test_overfocusing_is_judged_on_clean_images():
    metrics = ("top_share", "gini", "effective_tokens")
    clean = _table([(-0.2, -0.1), (-0.3, -0.1), (0.1, 0.2)], metrics=metrics, corruption="clean")
    (verdict,) = judge(clean, "deit", ["tap"])
    assert verdict.answer == "yes"
    assert verdict.sentence.startswith(
        "tap overfocuses less than deit on clean images, on 50 images: Attention on the top k 0.500 against 0.650 "
        "(difference −0.150, 95 % interval −0.200 … −0.100);"
    )
    assert judge(_table([(-0.2, -0.1)] * 2 + [(0.1, 0.2)], metrics=metrics, corruption="fog"), "deit", ["tap"]) == ()


def test_predictions_need_all_where_there_are_two():
    metrics = ("agreement", "confidence_drop")
    for intervals, answer in (
        ([(0.1, 0.2), (-0.2, -0.1)], "yes"),
        ([(0.1, 0.2), (-0.2, 0.1)], "can't tell"),
        ([(-0.2, -0.1), (0.1, 0.2)], "no"),
    ):
        (verdict,) = judge(_table(intervals, metrics=metrics, layers="output"), "deit", ["tap"])
        assert (verdict.question, verdict.answer) == ("predictions", answer)
