"""The panel of an ablation: what it draws and says is what was measured."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from overfocus.results.ablation import Ablation
from overfocus.runs.description import CheckpointEntry, ImageEntry, RunDescription, RunSettings, encode_description
from overfocus.statistics.ablation import CHOICE_WORDS, CHOICES, QUANTITIES, tabulate_ablation
from overfocus_reports.sections import ablation_figure, ablation_parts


@pytest.fixture
def ablation(tmp_path):
    """Predictions that depend on the top tokens, for a model whose name is hostile."""
    rng = np.random.default_rng(0)
    rows = [
        {"image": image, "corruption": corruption, "severity": severity, "choice": choice, "k": k, "fraction": k / 20}
        | dict.fromkeys(QUANTITIES, float(choice != "top" or rng.random() > k / 5))
        for image in range(20)
        for corruption, severity in (("clean", 0), ("fog", 3))
        for choice in CHOICES
        for k in (0, 1, 4)
    ]
    description = RunDescription(
        format=2,
        overfocus="0.1.0",
        kind="ablation",
        status="complete",
        done=20,
        checkpoint=CheckpointEntry(name="<img src=x onerror=alert(1)>", source="model.pth", input_size=(3, 32, 32)),
        settings=RunSettings(),
        images=[ImageEntry(image=number, name=f"{number}.png") for number in range(20)],
    )
    tables = tabulate_ablation(pd.DataFrame(rows))
    folder = tmp_path / "ablation"
    folder.mkdir()
    (folder / "run.json").write_bytes(encode_description(description))
    tables.table.to_parquet(folder / "ablation.parquet")
    tables.differences.to_parquet(folder / "differences.parquet")
    return Ablation(folder)


def test_curves_are_the_table(ablation):
    figure = ablation_figure(ablation.table, "agreement", "removed")
    table = ablation.table[(ablation.table["corruption"] == "fog") & (ablation.table["choice"] == "top")]
    top = next(line for line in figure.axes[1].lines if len(line.get_xdata()) == 3)
    np.testing.assert_allclose(top.get_ydata(orig=False), table.sort_values("fraction")["agreement"])
    np.testing.assert_allclose(top.get_xdata(orig=False), [0, 5, 20])
    assert [container.get_label() for container in figure.axes[0].containers] == list(CHOICE_WORDS.values())


def test_part_of_the_page(ablation, tmp_path):
    (part,) = ablation_parts([ablation], tmp_path)
    assert part["sentences"] == ablation.sentences
    assert len(part["rows"]) == len(ablation.table)
    assert "<img" not in part["figure"]
    assert (tmp_path / "ablation-0.png").stat().st_size > 3000


def test_ablations_of_one_architecture_are_told_apart(ablation, tmp_path):
    names = [part["name"] for part in ablation_parts([ablation, ablation], tmp_path)]
    assert len(set(names)) == 2


@pytest.mark.slow
def test_the_page_shows_it_escaped(ablation, tmp_path, synthetic_run, open_page):
    from overfocus.results.comparison import Comparison
    from overfocus.run import Run
    from overfocus_reports import draw_comparison

    runs = [Run(synthetic_run(tmp_path / name, images=4, layers=2, displayed=1)) for name in ("one", "two")]
    opened = open_page(draw_comparison(Comparison(runs, resamples=20, path=tmp_path / "comparison"), [ablation]))
    assert opened.text("#ablation figcaption") == "<img src=x onerror=alert(1)>"
    assert opened.download("ablation-0", "svg").startswith(b"<svg")
    assert opened.download("ablation-0", "csv").count(b"\r\n") == 1 + len(ablation.table)
    opened.close()


@pytest.mark.slow
def test_runs_without_attention_are_compared_by_their_predictions(tmp_path, synthetic_run, browser):
    from overfocus.results.comparison import Comparison
    from overfocus.run import Run
    from overfocus_reports import draw_comparison

    runs = [Run(synthetic_run(tmp_path / name, images=12, labels=True)) for name in ("one", "two")]
    for run in runs:
        run.description = replace(run.description, kind="evaluation")
    page = draw_comparison(Comparison(runs, ["a", "b"], resamples=20, path=tmp_path / "comparison"))
    tab = browser.new_page()
    complaints = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(page.as_uri())
    tab.wait_for_function("document.documentElement.dataset.ready === 'yes'")
    assert tab.locator("#difference-table tbody tr").count() == 4
    assert not tab.locator("#explorer").count()
    assert complaints == []
    tab.close()
