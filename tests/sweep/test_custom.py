"""A metric and a probe of the user appear in the table, on the terminal and in the report, and nothing else has to be touched."""

import numpy as np
import pytest

import overfocus
from overfocus import Run, RunError
from overfocus.metrics.catalogue import CATALOGUE, Metric
from overfocus.probes.probe import Probe
from overfocus.runs.description import MeasureEntry

OPTIONS = {"corruptions": ["fog"], "severities": [3], "batch_size": 6, "workers": 0, "device": "cpu", "limit": 3}


class Brightness(Probe):
    """Mean of the model's input."""

    name = "brightness"
    measures = (MeasureEntry(name="brightness", title="Mean of the input", table="predictions"),)

    def columns(self, batch, output):
        assert len(output) == len(batch.pixels)
        return {"brightness": batch.inputs.mean((1, 2, 3)).cpu().numpy()}


def class_token_share(weights, *, prefix_tokens=0):
    """Attention of all queries on the tokens before the patches."""
    return weights[..., :prefix_tokens].sum(-1).mean((1, 2))


TOYS = [
    class_token_share,
    Metric(name="peak", function=lambda weights: weights.amax((1, 2, 3)), title="Largest weight", overfocused="high"),
    Metric(
        name="change",
        function=lambda clean, corrupted: (clean - corrupted).abs().amax((1, 2, 3)),
        title="Largest change",
        group="stability",
        identical=0.0,
    ),
]


@pytest.fixture(autouse=True)
def _forget():
    """Leave the catalogue as it was."""
    known = dict(CATALOGUE)
    yield
    CATALOGUE.clear()
    CATALOGUE.update(known)


@pytest.fixture
def run(loaded, photos, tmp_path):
    return overfocus.analyze(loaded, photos, output=tmp_path / "run", metrics=TOYS, probes=[Brightness()], **OPTIONS)


def test_columns_are_what_the_functions_say(run, loaded):
    assert list(run.table.columns)[-3:] == ["class_token_share", "peak", "change"]
    shown = run.maps(0).pixels
    with overfocus.capture(loaded.model) as captured:
        loaded.model(loaded.preprocess.normalize_batch(list(shown)))
    rows = run.table[run.table["image"] == 0]
    for layer, attention in enumerate(captured.maps):
        weights = attention.weights.detach()
        own = rows[rows["layer"] == layer].set_index("corruption")
        assert own.loc["clean", "peak"] == pytest.approx(float(weights[0].max()), abs=1e-5)
        assert own.loc["fog", "class_token_share"] == pytest.approx(float(weights[1, :, :, :1].sum(-1).mean()), abs=1e-5)
        assert own.loc["fog", "change"] == pytest.approx(float((weights[0] - weights[1]).abs().max()), abs=1e-5)
        assert np.isnan(own.loc["clean", "change"])
        assert np.isnan(own.loc["other image", "peak"])
        assert own.loc["other image", "change"] > 0
    brightness = run.predictions.query("image == 0")["brightness"]
    np.testing.assert_allclose(brightness, loaded.preprocess.normalize_batch(list(shown)).mean((1, 2, 3)), atol=1e-5)
    assert [measure.title for measure in run.description.measures][1:] == [
        "Largest weight",
        "Largest change",
        "Mean of the input",
    ]
    assert set(run.description.noise) >= {"change", "js_divergence"}


def test_terminal_and_report_name_them(run, capsys):
    from overfocus_cli.output import print_summary, summary_as_json
    from overfocus_reports import draw_report, summarise

    for title in ("peak", "change", "class_token_share", "brightness"):
        CATALOGUE.pop(title, None)
    read = Run(run.path)  # as another program does, which has not the functions
    summary = summarise(read)
    print_summary(summary)
    printed = capsys.readouterr().out
    page = draw_report(read).read_text()
    for title in ("Largest weight", "Largest change", "Mean of the input"):
        assert title in printed
        assert title in page
    values = summary_as_json(summary)["custom"]["peak"]
    assert values[0]["mean"] == pytest.approx(run.table.query("corruption == 'clean'")["peak"].mean(), abs=1e-6)


def test_the_same_go_on_and_others_are_refused(run, loaded, photos):
    again = overfocus.analyze(loaded, photos, output=run.path, metrics=TOYS, probes=[Brightness()], **OPTIONS)
    assert len(again.table) == len(run.table)
    with pytest.raises(RunError, match="other metrics or probes"):
        overfocus.analyze(loaded, photos, output=run.path, metrics=TOYS[:1], **OPTIONS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": ["ginni"]}, "ginni"),
        ({"metrics": [Metric(name="gini", function=lambda weights: weights.amax((1, 2, 3)))]}, "gini"),
        ({"probes": ["brightness"]}, "probes must be a list of probes"),
        ({"probes": [Brightness(), Brightness()]}, "'brightness' twice"),
    ],
)
def test_what_is_none(loaded, photos, tmp_path, options, words):
    with pytest.raises(RunError, match=words):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS | options)
