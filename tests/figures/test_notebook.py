"""What a run shows in a notebook."""

import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from overfocus.errors import RunError
from overfocus.results.comparison import Comparison
from overfocus.run import Run


def test_table_of_means(run):
    text = run._repr_html_()
    fog = run.table[(run.table["corruption"] == "fog") & (run.table["severity"] == 3)]
    assert "<th>fog 3</th>" in text
    assert f"<td>{fog['js_divergence'].mean():.3f}</td>" in text
    assert "vit_tiny_patch16_224" in text


def test_hostile_names_stay_text(make_run):
    run = make_run(images=1, layers=1)
    run.description = replace(
        run.description, checkpoint=replace(run.description.checkpoint, name="<img src=x onerror=alert(1)>")
    )
    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, attrs))

    Parser().feed(run._repr_html_())
    assert found
    assert {tag for tag, _ in found} <= {"div", "p", "b", "table", "thead", "tbody", "tr", "th", "td", "br", "small"}
    assert not any(attrs for _, attrs in found)


def test_run_without_results_has_a_heading(make_run):
    run = make_run(images=1, layers=1)
    for kind in ("metrics", "predictions"):
        for part in (run.path / kind).iterdir():
            part.unlink()
    with pytest.raises(RunError):
        _ = run.table
    assert run._repr_html_().startswith("<div><p><b>vit_tiny")


def test_figures_show_themselves(run):
    for figure in (run.plot_layers("gini"), run.plot_stability(corruption="fog"), run.show(1)):
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert run.show("folder/picture 2.png", layer=0, corruption="fog", severity=1).axes[1].get_title() == "fog 1"
    assert len(run.plot_layers(["gini", "top_share"]).axes) == 2


def test_pyplot_stays_out(run):
    code = (
        "import sys; from overfocus.run import Run; run = Run(sys.argv[1]); print('matplotlib' in sys.modules);"
        "run.plot_layers(); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=True, cwd=".")
    assert done.stdout.split() == ["False", "False"]


def test_comparison_shows_its_verdicts_and_all_models(run, tmp_path, synthetic_run):
    other = Run(synthetic_run(tmp_path / "other", layers=6))
    comparison = Comparison([run, other], ["plain <b>", "deep"])
    text = comparison._repr_html_()
    assert "plain &lt;b&gt;" in text
    assert comparison.verdicts[0].answer in text.replace("&#x27;", "'")
    labels = [line.get_label() for line in comparison.plot_layers("gini").axes[0].lines]
    assert {"plain <b>, clean", "deep, clean"} <= set(labels)
    assert len(comparison.plot_stability().axes) == 3
    shown = comparison.show("folder/picture 1.png", corruption="fog", severity=1)
    assert [axes.get_title() for axes in shown.axes[:4]] == ["clean", "fog 1", "", ""]
