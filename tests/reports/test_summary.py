import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from overfocus.run import Run
from overfocus.statistics.intervals import Interval
from overfocus.statistics.verdicts import Overfocusing
from overfocus.variants import Variant
from overfocus_reports import summarise
from overfocus_reports.sentences import overfocusing_sentence, percent, spans


def test_layers_are_ranked_by_their_top_share(run):
    summary = summarise(run)
    clean = run.table[run.table["severity"] == 0].groupby("layer")["top_share"].mean()
    assert [row.layer.number for row in summary.layers] == [0, 1, 2, 3]
    assert [row.layer.number for row in summary.ranked] == clean.sort_values(ascending=False).index.tolist()
    for row in summary.layers:
        assert row.concentration["top_share"].mean == pytest.approx(clean[row.layer.number])
        assert row.uniform_share == 2 / 36


def test_layers_of_different_size_are_ranked_against_uniform(make_run):
    run = make_run(images=2)
    run.table["top_share"] = run.table["layer"].map({0: 0.5, 1: 0.5, 2: 0.2, 3: 0.2})
    run.description = changed_layer(
        run.description, 0, {"keys": 5, "grid": [2, 2], "key_grid": [2, 2]}
    )  # k/N = 1/4 there, 2/36 elsewhere
    assert [row.layer.number for row in summarise(run).ranked] == [1, 0, 2, 3]


def test_survival_averages_layers_before_images(run):
    summary = summarise(run)
    assert [row.variant for row in summary.survival] == [Variant(name, s) for name in ("gaussian_noise", "fog") for s in (1, 3)]
    for row in summary.survival:
        rows = run.table[(run.table["corruption"] == row.variant.corruption) & (run.table["severity"] == row.variant.severity)]
        per_image = rows.groupby("image")["top_overlap"].mean()
        assert row.stability["top_overlap"].mean == pytest.approx(per_image.mean())
        assert row.stability["top_overlap"].count == 6
        control = run.table[run.table["corruption"] == "other image"]
        assert row.retained["top_overlap"].control == pytest.approx(control.groupby("image")["top_overlap"].mean().mean())
        distance = [part.groupby("image")["js_divergence"].mean().mean() for part in (rows, control)]
        assert row.retained["js_divergence"].retained == pytest.approx(1 - distance[0] / distance[1])
        moved = rows.groupby("layer")["received_shift"].mean()
        assert row.weakest_layer is not None
        assert row.weakest_layer.number == moved.idxmax()


def test_sentences_state_the_numbers(run):
    summary = summarise(run)
    first = summary.ranked[0]
    share = first.concentration["top_share"].mean
    layer = f"layer {first.layer.number} (blocks.{first.layer.number}.attn)"
    assert f"attention is most concentrated in {layer}: the 2 most attended of 36 patches" in summary.sentences[1]
    assert f"receive {percent(share)} of the attention" in summary.sentences[1]
    assert f"uniform attention would give {percent(2 / 36)}" in summary.sentences[1]
    harshest = min(summary.survival, key=lambda row: row.retained["js_divergence"].retained)
    text = " ".join(summary.sentences)
    kept = percent(harshest.stability["top_overlap"].mean)
    assert f"Under {harshest.variant.words}, the harshest, {kept} of the most attended patches stay the same" in text
    assert f"where another image keeps {percent(harshest.retained['top_overlap'].control)}" in text
    assert f"Over all corruptions attention retains {percent(summary.retained['js_divergence'].retained)}" in text
    assert "6 images are too few to judge that: at least 20 are needed" in text
    assert "chance" not in text


def test_a_run_without_a_control_says_so(make_run):
    summary = summarise(make_run(control=False))
    assert not summary.retained
    assert "Control not measured" in " ".join(summary.sentences)
    assert any("control not measured" in figure.note for figure in summary.key_figures)


@pytest.mark.parametrize(
    ("effective", "words"),
    [
        (0.3, "It overfocuses strongly: in the most concentrated third of its layers (layers 2–3)"),
        (0.6, "It overfocuses mildly"),
        (0.85, "It does not overfocus: in the most"),
        (0.99, "nearly uniform, as in an untrained network"),
    ],
)
def test_does_it_overfocus(make_run, effective, words):
    run = make_run(images=1)
    run.table["effective_tokens"] = run.table["layer"].map({0: 1.0, 1: 1.0, 2: effective, 3: effective})
    assert words in summarise(run).sentences[0]


def test_one_class_for_every_image_keeps_nothing(make_run):
    run = make_run()
    run.predictions["predicted"] = 0
    assert "One class is predicted for every clean image" in " ".join(summarise(run).sentences)


def test_sentences_on_predictions(make_run):
    text = " ".join(summarise(make_run(labels=True)).sentences)
    assert "Predictions change most often under gaussian noise at severity 1: for 2 of 6 images" in text
    assert "accuracy is 100\u00a0% on clean images, 67\u00a0% then." in text


def test_flat_layers_are_named_with_a_warning(run):
    summary = summarise(run)
    flat = [row.layer.number for row in summary.layers if row.concentration["effective_tokens"].mean > 0.8]
    assert flat
    assert any(f"In {spans(flat)} attention is spread widely" in sentence for sentence in summary.sentences)


def test_heads_count_once_per_image(make_run):
    run = make_run(heads=3)
    summary = summarise(run)
    assert summary.layers[0].concentration["gini"].count == 6
    assert summary.survival[0].stability["received_shift"].count == 6


def test_undefined_values_are_left_out(make_run):
    run = make_run()
    clean = summarise(run).layers[1].concentration["gini"]
    run = Run(run.path)
    run.table.loc[(run.table["image"] == 2) & (run.table["layer"] == 1), "gini"] = np.nan
    found = summarise(run).layers[1].concentration["gini"]
    assert (found.count, found.skipped) == (5, 1)
    assert found.mean != clean.mean


def test_no_corruption_says_so(make_run):
    summary = summarise(make_run(corruptions=(), severities=()))
    assert summary.survival == ()
    assert "No corruption was applied" in summary.sentences[-1]
    assert [figure.name for figure in summary.key_figures] == ["On 2 of 36 patches"]


def test_no_classifier_falls_back_to_the_output(make_run):
    summary = summarise(make_run(class_names=None))
    assert "The model has no classifier; its output keeps a cosine of 0.70" in summary.sentences[-1]
    assert summary.key_figures[-1].name == "Output cosine"


def test_one_patch_per_layer_has_no_concentration(make_run):
    run = make_run(images=1, side=2)
    run.table[["top_share", "effective_tokens"]] = np.nan
    assert summarise(run).sentences[0] == "No layer has more than one patch token, so concentration is undefined."


def test_key_figures_carry_what_to_compare_with(run):
    figures = {figure.name: figure for figure in summarise(run).key_figures}
    control = run.table.loc[run.table["corruption"] == "other image", "top_overlap"].mean()
    assert figures["Top patches kept"].note == f"under corruption; another image: {percent(control)}"
    assert figures["On 2 of 36 patches"].note.endswith(f"uniform: {percent(2 / 36)}")
    agreement = run.predictions.loc[run.predictions["severity"] > 0, "agreement"].astype(float).mean()
    assert figures["Predictions kept"].value == percent(agreement)


def test_summary_is_plain_data(run):
    assert dataclasses.asdict(summarise(run))["layers"][0]["layer"]["module"] == "blocks.0.attn"


def test_spans():
    assert spans([3]) == "layer 3"
    assert spans([0, 1, 2, 5, 7, 8]) == "layers 0–2, 5 and 7–8"


@pytest.mark.parametrize(("share", "text"), [(0.051, "5.1\u00a0%"), (0.5, "50\u00a0%"), (0.0, "0\u00a0%"), (0.0999, "10\u00a0%")])
def test_percent(share, text):
    assert percent(share) == text


def with_norms(run, shares, received, ratios):
    for name, values in (("outlier_share", shares), ("outlier_received", received), ("norm_ratio", ratios)):
        run.table[name] = run.table["layer"].map(dict(enumerate(values)))
    return run


def test_tokens_of_outlying_norm_are_told_with_what_they_receive(make_run):
    run = with_norms(make_run(), (0.0, 0.0, 0.02, 0.01), (0.0, 0.0, 0.4, 0.7), (1.5, 2.0, 8.0, 7.0))
    text = " ".join(summarise(run).sentences)
    words = f"6 of 6 images have any; there they are {percent(0.02)} of the patches on average and receive {percent(0.4)} of the"
    assert f"most frequent after layer 2: {words} attention." in text


def test_share_and_attention_of_outlying_tokens_are_of_the_same_images(make_run):
    """In one image of six 6 % of the patches receive 9 %; over all images these patches are 1 %."""
    run = with_norms(make_run(), (0.0, 0.0, 0.06, 0.0), (np.nan, np.nan, 0.09, np.nan), (1.5, 2.0, 8.0, 1.0))
    without = run.table["image"] != 3
    run.table.loc[without, "outlier_share"], run.table.loc[without, "outlier_received"] = 0.0, np.nan
    words = f"1 of 6 images has any; there they are {percent(0.06)} of the patches on average and receive {percent(0.09)} of the"
    assert f"most frequent after layer 2: {words} attention." in " ".join(summarise(run).sentences)


def test_no_outlying_norm_tells_the_largest(make_run):
    run = with_norms(make_run(), (0.0,) * 4, (0.0,) * 4, (1.5, 2.0, 2.5, 1.25))
    assert "the largest is 2.5 times the median on average, in layer 2." in " ".join(summarise(run).sentences)


def test_runs_without_norms_say_nothing_of_them(run):
    assert "norm" not in " ".join(summarise(run).sentences)


def changed_layer(description, number, changes):
    """The description of a run with another layer."""
    layers = list(description.layers)
    layers[number] = replace(layers[number], **changes)
    return replace(description, layers=layers)


@pytest.mark.parametrize(
    ("low", "mean", "high", "words"),
    [
        (0.47, 0.61, 0.74, "the interval holds 50\u00a0%, so that other images may give another answer."),
        (0.40, 0.61, 0.82, "the interval holds 50\u00a0% and 80\u00a0%, so"),
        (0.55, 0.61, 0.70, "below 80\u00a0% as mildly."),
        (float("nan"), 0.61, float("nan"), "below 80\u00a0% as mildly."),  # a single image
    ],
)
def test_an_interval_across_a_limit_is_named(low, mean, high, words):
    judged = Overfocusing("mildly", Interval(mean, low, high, 4, 0), (1, 2))
    (sentence,) = overfocusing_sentence(judged)
    assert sentence.startswith("It overfocuses mildly: in the most concentrated third of its layers (layers 1–2)")
    assert words in sentence
