import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from overfocus.figures.curves import layer_curves, value_limits
from overfocus.figures.images import multiple
from overfocus.figures.stability import scale_of, short
from overfocus.figures.style import OKABE_ITO, line_style, lookup_table, reads_dark, styled
from overfocus.statistics.panel import layer_statistics
from overfocus.variants import Variant
from overfocus_reports.figures import heat_map, inline_svg, plot_frame

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def statistics(run):
    return layer_statistics(run)


@pytest.fixture(scope="module")
def curves(statistics):
    with styled():
        figure, axes = layer_curves([statistics], ["plain"], "gini", Variant("fog", 3))
        frame = {name: float(value) for name, value in plot_frame(figure, axes).items()}
        return inline_svg(figure, "curves-gini", 'Gini <of> "layers"'), frame


def points(path):
    return np.array([[float(x), float(y)] for x, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path)])


def test_frame_tells_where_values_are_drawn(statistics, curves):
    """What the page's script computes from the frame is where matplotlib drew the line."""
    text, frame = curves
    clean = ElementTree.fromstring(text).find(f".//{SVG}g[@id='curves-gini-clean-line-0']/{SVG}path")
    drawn = points(clean.get("d"))
    values = statistics.values["gini"]["mean"][0, 0]
    np.testing.assert_allclose(drawn[:, 0], frame["left"] + np.arange(4) * frame["step"], atol=0.02)
    np.testing.assert_allclose(drawn[:, 1], frame["bottom"] - values * frame["rise"], atol=0.02)


def test_svg_has_the_groups_that_the_script_moves(curves):
    found = {group.get("id") for group in ElementTree.fromstring(curves[0]).iter(f"{SVG}g")}
    parts = ("clean-line-0", "clean-band-0", "line-0-0", "line-0-1", "picked-band-0", "picked-layer")
    assert {f"curves-gini-{part}" for part in parts} <= found


def test_svg_stands_in_a_page_of_many(curves):
    text = curves[0]
    assert 'aria-label="Gini &lt;of&gt; &quot;layers&quot;"' in text
    assert "<metadata" not in text
    assert "<style" not in text
    assert "currentColor" in text
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert all(identifier.startswith("curves-gini-") for identifier in identifiers)
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used
    assert used <= set(identifiers)


def test_limits_hold_every_severity_and_reference(statistics):
    low, high = value_limits(statistics, "top_overlap")
    means = statistics.values["top_overlap"]["mean"]
    assert low < min(np.nanmin(means), 2 / 36)
    assert high > np.nanmax(means)


def test_heat_map_cells_are_in_reading_order(statistics):
    scale = scale_of([statistics], "received_shift")
    values = statistics.matrix("received_shift", 3, retained=True)
    with styled():
        figure = heat_map(values, ["gaussian noise", "fog"], list("0123"), "a unit", "layer", scale)
        tree = ElementTree.fromstring(inline_svg(figure, "map", "map"))
    cells = tree.find(f".//{SVG}g[@id='map-cells']")
    table = lookup_table("viridis_r")
    for cell, value in zip(cells, values.ravel(), strict=True):
        colour = re.search(r"fill: #(\w{6})", cell.get("style"))
        shade = table[round(255 * (value - scale.low) / (scale.high - scale.low))]
        found = np.frombuffer(bytes.fromhex(colour[1]), dtype=np.uint8)
        assert np.abs(found.astype(int) - shade.astype(int)).max() <= 6
    for number, value in enumerate(values.ravel()):
        group = tree.find(f".//{SVG}g[@id='map-value-{number}']")
        assert "".join(group.itertext()).strip() == short(value, scale.digits)


def test_missing_cells_are_marked(statistics):
    values = np.array([[0.2, np.nan]])
    with styled():
        figure = heat_map(values, ["fog"], ["1", "3"], "bits", "severity", scale_of([statistics], "js_divergence"))
    assert [text.get_text() for text in figure.axes[0].texts] == [".20", "–"]


def test_bright_is_changed_whichever_way_the_metric_runs(statistics, make_run):
    assert scale_of([statistics], "js_divergence").colour_map == "viridis_r"  # little is retained
    statistics = layer_statistics(make_run(control=False))
    assert scale_of([statistics], "top_overlap").colour_map == "viridis_r"
    assert scale_of([statistics], "js_divergence").colour_map == "viridis"


def test_twenty_corruptions_have_different_lines():
    assert len({line_style(number) for number in range(20)}) == 20
    assert "#000000" not in OKABE_ITO


def test_text_on_colours_reads():
    table = lookup_table("viridis")
    assert reads_dark(table[0])
    assert not reads_dark(table[255])


def test_labels_of_multiples():
    assert [multiple(value) for value in (0.125, 0.5, 1.0, 64.0)] == ["⅛", "½", "1", "64"]
