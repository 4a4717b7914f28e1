import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from overfocus.figures.images import multiple
from overfocus.figures.stability import scale_of
from overfocus.figures.style import INK, OKABE_ITO, line_style, lookup_table, reads_dark
from overfocus.statistics.panel import layer_statistics
from overfocus.variants import Variant
from overfocus_reports.figures import Plot, Table, curves_svg, heat_map, short, standalone, ticks_between, value_limits
from overfocus_reports.model import Model

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def statistics(run):
    return layer_statistics(run)


@pytest.fixture(scope="module")
def curves(run):
    text = curves_svg([Model(run, 'Gini <of> "layers"')], "gini", Variant("fog", 3))
    return text, {name: float(value) for name, value in re.findall(r'data-(left|step|bottom|rise)="([^"]+)"', text)}


def points(path):
    return np.array([[float(x), float(y)] for x, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path)])


def test_frame_tells_where_values_are_drawn(statistics, curves):
    """What the page's script computes from the frame is where the line was drawn."""
    text, frame = curves
    clean = ElementTree.fromstring(text).find(f".//{SVG}g[@id='curves-gini-clean-line-0']/{SVG}path")
    drawn = points(clean.get("d"))
    values = statistics.values["gini"]["mean"][0, 0]
    np.testing.assert_allclose(drawn[:, 0], frame["left"] + np.arange(4) * frame["step"], atol=0.02)
    np.testing.assert_allclose(drawn[:, 1], frame["bottom"] - values * frame["rise"], atol=0.02)
    band = points(ElementTree.fromstring(text).find(f".//{SVG}g[@id='curves-gini-clean-band-0']/{SVG}path").get("d"))
    low, high = (statistics.values["gini"][end][0, 0] for end in ("low", "high"))
    np.testing.assert_allclose(band[:, 1], frame["bottom"] - np.concatenate([low, high[::-1]]) * frame["rise"], atol=0.02)


def test_ticks_stand_at_their_values(curves):
    text, frame = curves
    labels = [
        (float(node.get("y")), node.text)
        for node in ElementTree.fromstring(text).iter(f"{SVG}text")
        if node.get("text-anchor") == "end"
    ]
    assert len(labels) >= 3
    for y, label in labels:
        assert y - 3 == pytest.approx(frame["bottom"] - float(label) * frame["rise"], abs=0.02)


def test_a_value_without_neighbours_is_a_ring_and_gaps_stay_open():
    plot = Plot.between((0, 5), (0, 1))
    path = plot.line(np.arange(6.0), np.array([0.5, np.nan, 0.5, 0.5, np.nan, 0.25]))
    assert re.sub(r"[\d. ]+", "", path) == "Mm-aa-MLMm-aa-"
    assert plot.band(np.arange(3.0), np.array([0.1, np.nan, 0.2]), np.array([0.3, np.nan, 0.4])).count("Z") == 2
    assert plot.line(np.arange(2.0), np.full(2, np.nan)) == ""


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-0.4, 1.1, ["0.0", "0.5", "1.0"]),
        (0, 4e-6, None),
        (900, 12_000, None),
    ],
)
def test_ticks_are_round(low, high, labels):
    found = ticks_between(low, high)
    assert 2 <= len(found) <= 7
    assert all(low <= value <= high for value in found)
    assert len(set(found.values())) == len(found)
    if labels:
        assert list(found.values()) == labels


def test_svg_has_the_groups_that_the_script_moves(curves):
    found = {group.get("id") for group in ElementTree.fromstring(curves[0]).iter(f"{SVG}g")}
    parts = ("clean-line-0", "clean-band-0", "line-0-0", "line-0-1", "picked-band-0", "picked-layer")
    assert {f"curves-gini-{part}" for part in parts} <= found


def test_svg_stands_in_a_page_of_many(curves):
    text = curves[0]
    assert "Gini &lt;of&gt;" not in text  # one model needs no name
    assert "<metadata" not in text
    assert "<style" not in text
    assert "currentColor" in text
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert all(identifier.startswith("curves-gini-") for identifier in identifiers)


def test_limits_hold_every_severity_and_reference(statistics):
    low, high = value_limits(statistics, "top_overlap")
    means = statistics.values["top_overlap"]["mean"]
    assert low < min(np.nanmin(means), 2 / 36)
    assert high >= np.nanmax(means)


def test_heat_map_cells_are_in_reading_order(statistics):
    scale = scale_of([statistics], "received_shift")
    values = statistics.matrix("received_shift", 3, retained=True)
    svg = heat_map(Table(values, ["gaussian noise", "fog"], list("0123"), "layer"), "a <unit>", scale, "map", "map of 2 & 4")
    tree = ElementTree.fromstring(svg)
    cells = tree.find(f".//{SVG}g[@id='map-cells']")
    table = lookup_table("viridis_r")
    for number, (cell, value) in enumerate(zip(cells, values.ravel(), strict=True)):
        colour = re.search(r"fill: #(\w{6})", cell.get("style"))
        shade = table[int(255 * (value - scale.low) / (scale.high - scale.low))]
        assert bytes.fromhex(colour[1]) == bytes(shade)
        group = tree.find(f".//{SVG}g[@id='map-value-{number}']")
        assert "".join(group.itertext()) == short(value, scale.digits)
        assert (cell.get("x"), cell.get("y")) == tuple(
            f"{n:.2f}" for n in (float(cells[0].get("x")) + 30 * (number % 4), 19 * (number // 4))
        )
    identifiers = set(re.findall(r'\bid="([^"]+)"', svg))
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= identifiers
    assert all(identifier.startswith("map-") for identifier in identifiers)


def test_missing_cells_are_marked(statistics):
    scale = scale_of([statistics], "js_divergence")
    tree = ElementTree.fromstring(
        heat_map(Table(np.array([[0.2, np.nan]]), ["fog"], ["1", "3"], "severity"), "bits", scale, "m", "")
    )
    assert [tree.find(f".//{SVG}g[@id='m-value-{number}']/{SVG}text").text for number in (0, 1)] == [".20", "–"]
    assert tree.find(f".//{SVG}g[@id='m-cells']")[1].get("style") == "fill: none"


def test_a_file_of_its_own_needs_no_page(curves):
    text = standalone(curves[0])
    assert "var(--" not in text
    assert f"color: {INK}; background: white" in text
    ElementTree.fromstring(text.encode())


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
