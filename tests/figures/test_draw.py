"""Figures for papers and notebooks: what is drawn is what was measured, in the size and fonts that were asked for."""

import itertools
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.testing.compare import compare_images

from overfocus.errors import RunError
from overfocus.figures.draw import KINDS, draw, most_overfocused, same_depth
from overfocus.figures.images import OPACITY, attention_norm, blended, highest, largest_places
from overfocus.figures.style import inches, lookup_table, paper, save_figure
from overfocus.results.comparison import Comparison
from overfocus.run import Run
from overfocus.statistics.panel import layer_statistics


@pytest.fixture(scope="module")
def other(tmp_path_factory, synthetic_run):
    """A run of the same images by a deeper model."""
    return Run(synthetic_run(tmp_path_factory.mktemp("other") / "deep", layers=7))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_every_kind_in_every_format(run, other, tmp_path, kind, ending):
    with paper():
        figure = draw(kind, [run, other], ["plain", "deep"], width=5)
        path = save_figure(figure, tmp_path / f"figure.{ending}")
    content = path.read_bytes()
    if ending == "pdf":
        assert b"/Type0" in content or b"/TrueType" in content
        assert b"/Type3" not in content
        assert float(re.search(rb"/MediaBox \[\s*0 0 ([\d.]+)", content)[1]) == pytest.approx(5 * 72)
    elif ending == "svg":
        texts = "".join(ElementTree.fromstring(content).itertext())
        assert "layer" in texts or "depth" in texts or "severity" in texts
        assert "plain" in texts
    else:
        assert content.startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", KINDS)
def test_no_titles_and_words_as_labels(run, kind):
    with paper():
        figure = draw(kind, [run], ["plain"])
    assert figure._suptitle is None
    labels = [axes.get_ylabel() + axes.get_xlabel() for axes in figure.axes]
    assert any(labels)
    assert not any("_" in label for label in labels)


def test_layers_are_the_means_of_the_run(run):
    with paper():
        figure = draw("layers", [run], ["plain"], metrics=["gini"], corruptions=["fog"], severity=3)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    table = run.table
    fog = table[(table["corruption"] == "fog") & (table["severity"] == 3)].groupby("layer")["gini"].mean()
    np.testing.assert_allclose(lines["fog 3"], fog)
    np.testing.assert_allclose(lines["clean"], table[table["severity"] == 0].groupby("layer")["gini"].mean())


def test_the_axis_of_layers_fits_what_is_drawn(run):
    with paper():
        axes = draw("layers", [run], ["plain"], metrics=["received_shift"], corruptions=["fog"], severity=1).axes[0]
    bands = [path.vertices[:, 1] for band in axes.collections for path in band.get_paths()]
    drawn = np.concatenate([*(np.asarray(line.get_ydata()) for line in axes.lines), *bands])
    low, high = axes.get_ylim()
    assert low <= np.nanmin(drawn)
    assert high >= np.nanmax(drawn)
    assert high - low < 1.15 * np.ptp(drawn[np.isfinite(drawn)])


def test_models_of_different_depth_share_axes(run, other):
    with paper():
        figure = draw("layers", [run, other], ["plain", "deep"], metrics=["gini"])
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert axes.get_xlabel() == "relative depth"
    for name, layers in (("plain, clean", 4), ("deep, clean", 7)):
        np.testing.assert_allclose(lines[name].get_xdata(), np.linspace(0, 1, layers))
    assert lines["plain, clean"].get_color() != lines["deep, clean"].get_color()


def test_stability_averages_each_image_first(run):
    with paper():
        figure = draw("stability", [run], ["plain"], metrics=["received_shift"], corruptions=["fog"])
    table = run.table[run.table["corruption"] == "fog"]
    expected = [table[table["severity"] == severity].groupby("image")["received_shift"].mean().mean() for severity in (1, 3)]
    control = run.table.loc[run.table["corruption"] == "other image", "received_shift"].mean()
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), 1 - np.array(expected) / control)
    assert figure.axes[0].get_ylabel().startswith("Retained:\n")


def test_stability_without_a_control_is_the_raw_value(make_run):
    run = make_run(control=False)
    with paper():
        figure = draw("stability", [run], ["plain"], metrics=["received_shift"], corruptions=["fog"])
    table = run.table[run.table["corruption"] == "fog"]
    expected = [table[table["severity"] == severity].groupby("image")["received_shift"].mean().mean() for severity in (1, 3)]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), expected)
    assert "Retained" not in figure.axes[0].get_ylabel()


def test_matrix_panels_have_one_scale(run, other):
    with paper():
        figure = draw("matrix", [run, other], ["plain", "deep"], metrics=["received_shift"])
    images = [axes.collections[0] for axes in figure.axes[:2]]
    assert images[0].get_clim() == images[1].get_clim()
    fog = run.table[(run.table["corruption"] == "fog") & (run.table["severity"] == 3)]
    control = run.table[run.table["corruption"] == "other image"].groupby("layer")["received_shift"].mean()
    np.testing.assert_allclose(
        np.reshape(images[0].get_array(), (2, 4))[1], 1 - fog.groupby("layer")["received_shift"].mean() / control
    )


def test_columns_are_the_attention_of_the_image(run):
    with paper():
        figure = draw("columns", [run], ["plain"], image=1, layer=-1, corruptions=["fog"], severity=3)
    kept = run.maps(1)
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    for matrix, variant in zip(shown, (("clean", 0), ("fog", 3)), strict=False):
        weights = kept.attention[3][kept.variants.index(variant), 0].astype("float32")
        np.testing.assert_allclose(matrix, weights[1:, 1:] * 37, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("layers", {"metrics": ["ginny"]}, "no metric 'ginny'; did you mean 'gini'"),
        ("stability", {"corruptions": ["frog"]}, "no corruption 'frog'; did you mean 'fog'"),
        ("stability", {"severity": 2}, "severity 2 was not measured; there is 1, 3"),
        ("matrix", {"metrics": ["gini"]}, "no metric 'gini'"),
        ("matrix", {"metrics": ["js_divergence", "received_shift"]}, "a matrix shows one metric"),
        ("columns", {"layer": 9}, "layer must be between -4 and 3, got 9"),
        ("columns", {"image": "nothing.png"}, "maps were not kept of image nothing.png; there is 0"),
    ],
)
def test_what_was_not_measured(run, kind, options, message):
    with pytest.raises(RunError, match=re.escape(message)):
        draw(kind, [run], ["plain"], **options)


def test_clean_images_alone(make_run):
    run = make_run(corruptions=(), severities=())
    with paper():
        assert [line.get_label() for line in draw("layers", [run], ["plain"]).axes[0].lines if line.get_label()[0] != "_"]
    with pytest.raises(RunError, match="no stability metric in common"):
        draw("stability", [run], ["plain"])


@pytest.mark.parametrize(("text", "size"), [("3.3in", 3.3), ("8.4cm", 8.4 / 2.54), ("84mm", 8.4 / 2.54), ("3.5", 3.5)])
def test_widths(text, size):
    assert inches(text) == pytest.approx(size)


@pytest.mark.parametrize("text", ["wide", "3.3px", "0in", "900in", "-3in"])
def test_no_widths(text):
    with pytest.raises(ValueError, match="expected a width such as"):
        inches(text)


def test_the_most_overfocused_layer(run):
    clean = run.table[run.table["severity"] == 0].groupby("layer")["top_share"].mean()
    assert most_overfocused(layer_statistics(run)) == clean.argmax()
    assert [same_depth(place, 4, 7) for place in range(4)] == [0, 2, 4, 6]


def test_names_are_no_formulas(run, other, tmp_path):
    with paper():
        figure = draw("layers", [run, other], [r"$\frac{broken$", "a_b$^$"], metrics=["gini"])
        texts = save_figure(figure, tmp_path / "figure.svg").read_text()
    assert r"$\frac{broken$, clean" in texts


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


def test_blend_mixes_each_cell_with_its_colour():
    image = np.full((8, 8, 3), 100, np.uint8)
    values = np.array([[0.125, 8.0], [np.nan, 1.0]])
    mixed = blended(image, values, attention_norm(3.0))
    table = lookup_table("viridis").astype(float)
    assert mixed.shape == (224, 224, 3)
    for corner, entry in (((0, 0), 0), ((0, -1), 255), ((-1, -1), 128)):
        expected = (1 - OPACITY) * 100 + OPACITY * table[entry]
        np.testing.assert_allclose(mixed[corner], expected, atol=2)
    np.testing.assert_array_equal(mixed[-1, 0], [100, 100, 100])


@pytest.mark.parametrize(("values", "power"), [([1.0], 2), ([5.0], 3), ([1000.0], 8), ([np.nan], 2), ([np.nan, 16.0], 4)])
def test_scale_holds_the_largest_value(values, power):
    assert highest([np.array([[value]]) for value in values]) == power


def test_largest_places_leave_out_what_is_unknown():
    assert largest_places(np.array([[0.2, np.nan], [0.5, 0.5]]), 0.7) == [2, 3]


def test_one_legend_is_right_for_all_panels(run, other):
    """A variant has one dash, whether a metric has clean values or not."""
    with paper():
        figure = draw("layers", [run, other], ["plain", "deep"], metrics=["gini", "js_divergence"], corruptions=["fog"])
    legend = figure.legends[0]
    dashes = {
        text.get_text(): handle.get_linestyle() for text, handle in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    expected = {"plain, clean": "-", "plain, fog 3": "--", "deep, clean": "-", "deep, fog 3": "--"}
    assert {name: dash for name, dash in dashes.items() if name in expected} == expected
    drawn = [line for axes in figure.axes for line in axes.lines if line.get_label() in expected]
    assert all(line.get_linestyle() == expected[line.get_label()] for line in drawn)


def test_one_severity_has_bars_side_by_side(run, other):
    with paper():
        figure = draw("stability", [run, other], ["plain", "deep"], metrics=["received_shift"], severity=3)
    bars = figure.axes[0].patches
    assert len(bars) == 4
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars)
    assert all(before[1] <= after[0] + 1e-9 for before, after in itertools.pairwise(edges))


def test_some_layers_keep_their_numbers(run):
    with paper():
        figure = draw("layers", [run], ["plain"], metrics=["gini"], layers=[3, 1])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["3", "1"]
    assert figure.axes[0].get_xlim() == (-0.5, 1.5)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "clean")
    clean = run.table[run.table["corruption"] == "clean"].groupby("layer")["gini"].mean()
    np.testing.assert_allclose(line.get_ydata(), clean.loc[[3, 1]])
    with pytest.raises(RunError, match="plain: has no layer 9; there is 0, 1, 2, 3"):
        draw("layers", [run], ["plain"], layers=[9])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [3.3, 6.9])
@pytest.mark.parametrize(
    ("name", "options"), [("a rather long name of a model", {}), ("x" * 120, {}), ("one severity", {"severity": 3})]
)
def test_nothing_is_cut_off(run, other, kind, width, name, options):
    """At the width of one column and of two, with names that do not fit a line."""
    with paper():
        figure = draw(kind, [run, other, run], [name, "deep", f"TAP+ADL, {name}, and so on"], width=width, **options)
        FigureCanvasAgg(figure).draw()
        drawn = figure.get_tightbbox()  # in inches; without ticks beyond the limits of an axis
    assert min(drawn.x0, drawn.y0) > -0.02
    assert drawn.x1 < width + 0.02
    assert drawn.y1 < figure.get_figheight() + 0.02


def test_figures_grow_with_their_legends(run, other):
    """Panels keep their height, whatever stands below them."""
    heights = []
    for name in ("short", "a name that takes several lines of the legend of a figure one column wide"):
        with paper():
            figure = draw("layers", [run, other], [name, "deep"], metrics=["gini"])
            FigureCanvasAgg(figure).draw()
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.1)


def test_intervals_of_one_severity_stand_apart(run, other):
    with paper():
        figure = draw("stability", [run, other], ["plain", "deep"], metrics=["received_shift"])
    places = [line.get_xdata() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert (places[0] < places[1]).all()
    np.testing.assert_allclose((places[0] + places[1]) / 2, [0, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_figures_look_as_they_were_approved(run, other, tmp_path, kind):
    """Against tests/figures/golden, which were looked at; OVERFOCUS_DRAW_GOLDEN=1 draws them anew, to be looked at again."""
    golden, found = Path(__file__).parent / "golden" / f"{kind}.png", tmp_path / f"{kind}.png"
    with paper():
        draw(kind, [run, other], ["plain", "deep"], width=3.3).savefig(found, dpi=70)
    if os.environ.get("OVERFOCUS_DRAW_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_bytes(found.read_bytes())
    assert compare_images(golden, found, tol=8) is None
