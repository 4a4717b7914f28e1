"""The panel of an ablation: what it draws and says is what was measured."""

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markupsafe import escape

from overfocus.errors import RunError
from overfocus.figures.ablation import ablation_figure
from overfocus.figures.style import paper
from overfocus.results.ablation import Ablation
from overfocus.runs.description import CheckpointEntry, ImageEntry, RunDescription, RunSettings, encode_description
from overfocus.statistics.ablation import CHOICE_WORDS, CHOICES, QUANTITIES, tabulate_ablation
from overfocus_reports import draw_ablation
from overfocus_reports.sections import ablation_parts


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


def test_curves_are_the_tables(ablation):
    figure = ablation_figure(ablation.table, ablation.differences, "remove")
    clean, fog, below_clean, below_fog = figure.axes
    for upper, lower, corruption in ((clean, below_clean, "clean"), (fog, below_fog, "fog")):
        rows = ablation.table.query(f"corruption == {corruption!r}")
        assert [container.get_label() for container in upper.containers] == list(CHOICE_WORDS.values())
        for container, choice in zip(upper.containers, CHOICES, strict=True):
            _is_drawn(container, rows[rows["choice"] == choice], "agreement", "agreement_low", "agreement_high")
        rows = ablation.differences.query(f"corruption == {corruption!r} and quantity == 'agreement'")
        for container, choice in zip(lower.containers, CHOICES[1:], strict=True):
            _is_drawn(container, rows[rows["against"] == choice], "difference", "low", "high")
    assert clean.get_ylim() == fog.get_ylim()
    assert below_fog.get_xlabel() == "% of patches removed"
    assert "fog 3" in fog.get_title()


def _is_drawn(container, rows, middle, low, high):
    """The curve and its bars are these columns."""
    rows = rows.sort_values("fraction")
    line, _, (bars,) = container
    ticks = dict(zip(line.axes.get_xticks(), (label.get_text() for label in line.axes.get_xticklabels()), strict=True))
    assert [ticks[place] for place in line.get_xdata(orig=False)] == [f"{100 * share:.3g}" for share in rows["fraction"]]
    np.testing.assert_allclose(line.get_ydata(orig=False), rows[middle])
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, rows[[low, high]], atol=1e-12)


def test_many_variants_go_into_rows(ablation):
    names = [f"noise {number}" for number in range(6)]
    table, differences = (
        pd.concat([part[part["corruption"] == "clean"].assign(corruption=name, severity=1) for name in names])
        for part in (ablation.table, ablation.differences)
    )
    figure = ablation_figure(table, differences, "corrupt")
    assert [panel.get_title() for panel in figure.axes if panel.get_title()] == [f"{name} 1" for name in names]


@pytest.mark.parametrize("width", [3.3, 6.9])
def test_labels_of_a_narrow_figure_do_not_meet(ablation, width):
    names = ["clean", "gaussian noise", "elastic transform", "jpeg compression", "fog"]
    shares = {0: (0.0,), 1: (0.01, 0.02, 0.05), 4: (0.1, 0.2, 0.5)}
    table, differences = (
        pd.concat(
            part[(part["corruption"] == "clean") & (part["k"] == k)].assign(corruption=name, severity=3, fraction=share)
            for name in names
            for k in shares
            for share in shares[k]
        )
        for part in (ablation.table, ablation.differences)
    )
    with paper():
        figure = ablation_figure(table, differences, "corrupt", width=width)
        figure.draw_without_rendering()
        right = figure.bbox.x1
        for axes in (panels := [axes for axes in figure.axes if axes.axison]):
            ticks = [label.get_window_extent() for label in axes.get_xticklabels()]
            assert len(ticks) > 2
            assert all(left.x1 < after.x0 for left, after in pairwise(ticks))
        texts = [label for axes in panels for label in (axes.title, axes.xaxis.label) if label.get_text()]
        boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == 2 * len(names)
    assert all(box.x0 >= 0 and box.x1 <= right for box in boxes)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert figure.get_figheight() < 10


def test_a_model_without_classes_is_drawn_by_its_output(ablation):
    table = ablation.table.assign(agreement=np.nan, confidence_drop=np.nan)
    assert ablation_figure(table, ablation.differences, "remove").axes[0].get_ylabel() == "output cosine"


def test_a_score_that_was_not_measured_is_named(ablation):
    with pytest.raises(RunError, match="the ablation has no 'gini'; there is agreement, confidence_drop, output_cosine"):
        ablation_figure(ablation.table, ablation.differences, "remove", score="gini")


def test_part_of_the_page(ablation, tmp_path):
    (part,) = ablation_parts([ablation], tmp_path)
    for answer, sentence in zip(part["answers"], ablation.sentences, strict=True):
        assert sentence.startswith(f"On {answer.variant}, ")
        assert sentence == f"{answer.claim} W{answer.numbers.removeprefix('w')}"
    assert [len(table["rows"]) for table in part["tables"]] == [len(ablation.table), len(ablation.differences)]
    assert not any("<img" in figure for figure in part["figure"].values())
    assert (tmp_path / "ablation-0.png").stat().st_size > 3000


def test_ablations_of_one_architecture_are_told_apart(ablation, tmp_path):
    names = [part["title"] for part in ablation_parts([ablation, ablation], tmp_path)]
    assert len(set(names)) == 2


def test_a_page_of_its_own(ablation):
    page = draw_ablation(ablation)
    assert page == ablation.path / "report.html"
    text = page.read_text()
    assert "<h1>&lt;img src=x onerror=alert(1)&gt;, patches removed</h1>" in text
    assert "<img src=x" not in text
    assert "20 images" in text
    assert ablation.answers
    for answer in ablation.answers:
        assert text.index(str(escape(answer.claim))) < text.index(str(escape(f"On {answer.variant}: {answer.numbers}")))
    assert (ablation.path / "figures" / "ablation-0.png").is_file()


def test_a_page_that_cannot_be_written(ablation):
    (ablation.path / "figures").write_text("")
    with pytest.raises(RunError, match="the report cannot be written there"):
        draw_ablation(ablation)


@pytest.mark.slow
def test_the_page_of_its_own_opens(ablation, browser):
    tab = browser.new_page()
    complaints = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(draw_ablation(ablation).as_uri())
    tab.wait_for_function("document.documentElement.dataset.ready === 'yes'")
    assert tab.locator("#ablation figcaption").text_content() == "<img src=x onerror=alert(1)>"
    assert tab.locator("#ablation-0 svg").count() == 1
    assert tab.locator("#ablation-0-differences tbody tr").count() == len(ablation.differences)
    with tab.expect_download() as download:
        tab.locator("[data-download=csv][data-figure=ablation-0]").click()
    assert Path(download.value.path()).read_bytes().count(b"\r\n") == 1 + len(ablation.table)
    assert not tab.locator(".narrow svg").is_visible()
    tab.set_viewport_size({"width": 400, "height": 900})
    assert not tab.locator("#ablation-0 svg").is_visible()
    drawn = tab.locator(".narrow svg").bounding_box()
    assert 250 < drawn["width"] < 400 - drawn["x"]
    with tab.expect_download() as download:
        tab.locator("[data-download=svg][data-figure=ablation-0]").click()
    assert Path(download.value.path()).read_bytes().startswith(b"<svg")
    assert complaints == []
    tab.close()


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
