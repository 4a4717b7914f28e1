"""The rules by which words follow from intervals."""

import pandas as pd
import pytest

from overfocus.statistics.verdicts import RULE, judge

_STABILITY = ("js_divergence", "received_shift", "attention_cosine", "top_overlap", "rank_correlation")
BETTER, WORSE, OPEN = (0.1, 0.2), (-0.2, -0.1), (-0.1, 0.2)


def _table(intervals, *, metrics, layers="all", corruption="all", count=50, p_value=0.001):
    rows = [
        {"metric": metric, "layers": layers, "corruption": corruption, "severity": 0, "model": "tap", "mean": 0.5,
         "baseline_mean": 0.5 - (low + high) / 2, "difference": (low + high) / 2, "low": low, "high": high,
         "p_value": p_value if low * high > 0 else 0.5, "count": count}
        for metric, (low, high) in zip(metrics, intervals, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _stability(retained, raw=(OPEN,) * 5, **options):
    """What is retained of the five, in the order of METRICS, beside their raw values."""
    return pd.concat(
        [
            _table(raw, metrics=_STABILITY, **options),
            _table(retained, metrics=[f"retained.{name}" for name in _STABILITY], **options),
        ],
        ignore_index=True,
    )


@pytest.mark.parametrize(
    ("retained", "answer"),
    [
        ((BETTER, OPEN, OPEN, OPEN, OPEN), "yes"),
        ((BETTER, BETTER, OPEN, BETTER, OPEN), "yes"),
        ((WORSE, OPEN, OPEN, WORSE, OPEN), "no"),
        ((BETTER, WORSE, BETTER, WORSE, OPEN), "mixed"),  # the bundled pair
        ((WORSE, OPEN, OPEN, OPEN, BETTER), "mixed"),
        ((OPEN, BETTER, WORSE, OPEN, OPEN), "mixed"),
        ((OPEN, BETTER, BETTER, BETTER, BETTER), "can't tell"),  # the primary does not tell
        ((OPEN,) * 5, "can't tell"),
    ],
)
def test_stability_rests_on_what_is_retained(retained, answer):
    (verdict,) = judge(_stability(retained), "deit", ["tap"])
    assert (verdict.question, verdict.model, verdict.answer) == ("stability", "tap", answer)
    assert verdict.asked == "Is its attention more stable?"
    assert verdict.rows["metric"].tolist() == [f"retained.{name}" for name in _STABILITY]
    if answer == "mixed":
        assert "is better by what is retained of " in verdict.sentence
        assert "and worse by what is retained of " in verdict.sentence


def test_raw_values_alone_decide_nothing():
    raw = (WORSE, WORSE, BETTER, BETTER, BETTER)  # divergence and shift fall, the others rise
    (verdict,) = judge(_table(raw, metrics=_STABILITY), "deit", ["tap"])
    assert verdict.answer == "can't tell"
    assert "control not measured" in verdict.sentence


def test_a_raw_value_that_says_otherwise_is_named():
    retained = (BETTER, OPEN, OPEN, OPEN, OPEN)
    (verdict,) = judge(_stability(retained, raw=(BETTER, OPEN, OPEN, OPEN, OPEN)), "deit", ["tap"])  # divergence rises
    assert verdict.answer == "can't tell"
    assert (
        "retains more of Jensen–Shannon divergence against another image, while the raw value says less stable"
        in verdict.sentence
    )


def test_a_control_of_noise_decides_nothing():
    nan = float("nan")
    (verdict,) = judge(_stability(((nan, nan),) * 5), "deit", ["tap"])
    assert verdict.answer == "can't tell"
    assert "the control cannot be distinguished from numerical noise" in verdict.sentence


def test_holm_over_the_five():
    """p = 0.02 is sure of one quantity alone, and not among five."""
    assert judge(_stability((BETTER, *(OPEN,) * 4), p_value=0.02), "deit", ["tap"])[0].answer == "can't tell"
    assert judge(_stability((BETTER, *(OPEN,) * 4), p_value=0.009), "deit", ["tap"])[0].answer == "yes"
    assert "p 0.045 after Holm over 5" in judge(_stability((BETTER, *(OPEN,) * 4), p_value=0.009), "deit", ["tap"])[0].sentence


@pytest.mark.parametrize("count", [1, 10, 19])
def test_few_images_tell_nothing(count):
    (verdict,) = judge(_stability((BETTER,) * 5, count=count), "deit", ["tap"])
    assert verdict.answer == "can't tell"
    assert "a difference is judged from at least 20 images" in verdict.sentence


def test_says_how_many_images_would_be_needed():
    """±0.15 around 0.05 on 50 images: nine times as many exclude 0 every other time, twice that four times in five."""
    (verdict,) = judge(_stability((OPEN,) * 5), "deit", ["tap"])
    assert "about 919 images would be needed, were the differences as large as seen here" in verdict.sentence


def test_the_primary_metric_alone_says_how_many_images_stability_needs():
    (verdict,) = judge(_stability((OPEN, (0.01, 0.03), *(OPEN,) * 3)), "deit", ["tap"])
    assert verdict.answer == "can't tell"
    assert "about 919 images" in verdict.sentence


@pytest.mark.parametrize(
    ("intervals", "words"),
    [
        ([(-0.1, 0.06), (-0.3, 0.1), (-0.1, 0.2)], "about 919 images would be needed"),  # the second of three (408, 919, 1633)
        ([(-0.1, 0.06), (-0.03, 0.1), (-0.1, 0.1)], "in one direction."),  # on either side: no number of images helps
        ([(-0.1, 0.096), (-0.1, 0.096), (-0.1, 0.104)], "differences below 0.005 do not count, however many images there are"),
    ],
)
def test_a_majority_says_how_many_images_it_needs(intervals, words):
    rows = _table(intervals, metrics=("top_share", "gini", "effective_tokens"), corruption="clean")
    (verdict,) = judge(rows, "deit", ["tap"])
    assert verdict.answer == "can't tell"
    assert words in verdict.sentence


def test_few_images_without_a_control_say_both():
    (verdict,) = judge(_table((OPEN,) * 5, metrics=_STABILITY, count=10), "deit", ["tap"])
    assert "control not measured, and a difference is judged from at least 20 images" in verdict.sentence


def test_overfocusing_is_judged_on_clean_images():
    metrics = ("top_share", "gini", "effective_tokens")
    clean = _table([(-0.2, -0.1), (-0.3, -0.1), (0.1, 0.2)], metrics=metrics, corruption="clean")
    (verdict,) = judge(clean, "deit", ["tap"])
    assert verdict.answer == "yes"
    assert verdict.sentence.startswith(
        "tap overfocuses less than deit on clean images, on 50 images: Attention on the top k 0.500 against 0.650 "
        "(difference −0.150, 95 % interval −0.200 … −0.100, p 0.003 after Holm over 3);"
    )
    assert judge(_table([(-0.2, -0.1)] * 2 + [(0.1, 0.2)], metrics=metrics, corruption="fog"), "deit", ["tap"]) == ()
    tiny = _table([(-0.004, -0.002), (-0.004, -0.002), (0.002, 0.004)], metrics=metrics, corruption="clean")
    assert judge(tiny, "deit", ["tap"])[0].answer == "can't tell"  # sure, but of no importance


def test_predictions_need_all_where_there_are_two():
    metrics = ("agreement", "confidence_drop")
    for intervals, answer in (
        ([BETTER, WORSE], "yes"),
        ([BETTER, OPEN], "can't tell"),
        ([WORSE, BETTER], "no"),
        ([BETTER, BETTER], "mixed"),
    ):
        (verdict,) = judge(_table(intervals, metrics=metrics, layers="output"), "deit", ["tap"], {"deit": 7, "tap": 5})
        assert (verdict.question, verdict.answer) == ("predictions", answer)


def test_one_class_for_every_image_keeps_no_predictions():
    kept = _table([BETTER, WORSE], metrics=("agreement", "confidence_drop"), layers="output")
    (verdict,) = judge(kept, "deit", ["tap"], {"deit": 7, "tap": 1})
    assert verdict.answer == "can't tell"
    assert "tap predicts one class for every clean image" in verdict.sentence
    labelled = _table([BETTER, WORSE, WORSE], metrics=("agreement", "confidence_drop", "correct"), layers="output")
    (verdict,) = judge(labelled, "deit", ["tap"], {"deit": 7, "tap": 1})
    assert verdict.answer == "no"  # only accuracy counts
    assert verdict.sentence.startswith("tap is right less often than deit under corruption, on 50 images:")


def test_the_rule_names_what_it_rests_on():
    for words in ("retained relative to the control", "Holm", "fewer than 20 images", "For a model that predicts one class"):
        assert words in RULE
