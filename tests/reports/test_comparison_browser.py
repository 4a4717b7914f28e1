"""The page of a comparison in a real browser: every picker changes the pixels that it should, and nothing is loaded."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from overfocus.run import Run

pytestmark = pytest.mark.slow

ROLES = ("clean", "corrupted", "difference")


@pytest.fixture
def page(open_page, compared):
    opened = open_page(compared)
    yield opened
    opened.close()


def test_every_model_is_drawn_side_by_side(page):
    for model in range(3):
        for role in ROLES:
            assert page.side(role, model)[..., :3].std() > 1
    assert not np.array_equal(page.side("clean", 0), page.side("clean", 1))


def test_model_picker_moves_every_panel(page):
    before = {role: page.pixels(role, "main") for role in ROLES}
    sides = [page.side("clean", model) for model in range(3)]
    heat = page.tab.inner_html("#by-severity-js_divergence")
    page.tab.select_option("#pick-model", "1")
    for role, pixels in before.items():
        assert not np.array_equal(page.pixels(role, "main"), pixels)
    for model, pixels in enumerate(sides):
        np.testing.assert_array_equal(page.side("clean", model), pixels)
    assert page.tab.inner_html("#by-severity-js_divergence") != heat
    assert page.text("#layer-name") == "6 · blocks.6.attn"
    assert page.tab.is_visible("#by-layer-js_divergence-7")
    assert not page.tab.is_visible("#by-layer-js_divergence-4")
    assert page.tab.locator("#summary [data-model]:visible").count() == 1
    assert page.text("#summary h2") == "<script>alert(3)</script> by itself"


def test_keys_pick_models_at_the_same_depth(page):
    page.tab.evaluate("document.activeElement.blur()")
    page.tab.fill("#pick-layer", "1")
    page.tab.evaluate("document.activeElement.blur()")
    page.tab.keyboard.press("2")
    assert page.tab.input_value("#pick-model") == "1"
    assert page.text("#layer-name").startswith("2 ")  # a third of the way through seven layers, as 1 of four
    page.tab.keyboard.press("ArrowRight")
    assert page.text("#layer-name").startswith("3 ")
    page.tab.keyboard.press("1")
    assert page.tab.input_value("#pick-layer") == "2"
    page.tab.keyboard.press("9")
    assert page.tab.input_value("#pick-model") == "0"


def test_pickers_move_all_models(page):
    before = [page.side("corrupted", model) for model in range(3)]
    lines = [page.line("js_divergence", f"line-{model}-picked") for model in range(3)]
    page.tab.select_option("#pick-corruption", "fog")
    page.settle()
    for model in range(3):
        assert not np.array_equal(page.side("corrupted", model), before[model])
        assert page.line("js_divergence", f"line-{model}-picked") != lines[model]
    clean = [page.side("clean", model) for model in range(3)]
    page.tab.select_option("#pick-severity", "1")
    for model in range(3):
        np.testing.assert_array_equal(page.side("clean", model), clean[model])


@pytest.mark.parametrize("what", ["to", "from", "matrix"])
def test_side_by_side_shows_rows_columns_and_matrices(page, what):
    before = page.side("clean", 1)
    page.tab.select_option("#side-what", what)
    page.settle()
    assert not np.array_equal(page.side("clean", 1), before)


def test_a_patch_hovered_in_one_model_is_shown_in_all(page):
    page.tab.select_option("#side-what", "to")
    page.settle()
    canvas = page.tab.locator("#side canvas[data-role=clean][data-model-number='2']")
    canvas.scroll_into_view_if_needed()
    before = [page.side("clean", model) for model in range(3)]
    box = canvas.bounding_box()
    page.tab.mouse.move(box["x"] + 0.08 * box["width"], box["y"] + 0.08 * box["height"])
    for model in range(3):
        assert not np.array_equal(page.side("clean", model), before[model])
    assert page.text("#readout").startswith("Patch in row 1, column 1 receives")


def test_heat_map_jumps_to_the_worst_image_of_the_picked_model(page, compared):
    page.tab.select_option("#pick-model", "1")
    table = Run(compared.parents[1] / "runs" / "two").table
    rows = table[(table["corruption"] == "fog") & (table["severity"] == 3) & (table["layer"] == 5)]
    worst = rows.groupby("image")["received_shift"].mean().loc[[0, 1]].idxmax()
    page.tab.locator("#by-layer-received_shift-7 [role=button][aria-label^='fog 3, layer 5:']").focus()
    page.tab.keyboard.press("Enter")
    page.settle()
    assert page.text("#layer-name").startswith("5 ")
    assert page.tab.get_attribute("#strip button[aria-pressed=true]", "data-image") == str(worst)


def test_differences_follow_their_selectors(page):
    rows = "#difference-table tbody tr"
    first = page.text(rows)
    page.tab.select_option("#difference-layers", label="late third")
    late = page.text(rows)
    assert late != first
    page.tab.select_option("#difference-version", "picked")
    picked = page.text(rows)
    page.tab.select_option("#pick-corruption", "fog")
    assert page.text(rows) != picked
    page.tab.click("#difference-table thead th:nth-child(5) button")
    values = page.tab.eval_on_selector_all(rows, "rows => rows.map(row => Number(row.cells[4].dataset.value))")
    assert values == sorted(values, reverse=True)
    assert page.tab.locator("#difference-table svg.interval").count() == len(values)


def test_everything_can_be_kept(page):
    assert b"<image" in page.download("side", "svg")
    received = list(csv.DictReader(io.StringIO(page.download("side", "csv").decode())))
    assert len(received) == 3 * 2 * 36
    assert Image.open(io.BytesIO(page.download("reliability", "png"))).width > 500
    names = {row["model"] for row in csv.DictReader(io.StringIO(page.download("difference-table", "csv").decode()))}
    assert names == {"<script>alert(3)</script>", "'=1+1&\"'</option>"}
    curves = list(csv.DictReader(io.StringIO(page.download("curves-gini", "csv").decode())))
    assert {row["model"] for row in curves} == names | {"plain"}
    assert page.download("by-layer-top_overlap", "svg").count(b"value-") >= 8
    assert len(list(csv.reader(io.StringIO(page.download("fragility-table", "csv").decode())))) > 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_window_needs_no_sideways_scrolling(open_page, compared, scheme):
    opened = open_page(compared, viewport={"width": 400, "height": 800}, color_scheme=scheme)
    assert opened.tab.evaluate("document.documentElement.scrollWidth") == 400
    opened.close()


def test_controls_have_names_and_the_page_prints(page):
    nameless = page.tab.evaluate(
        """() => [...document.querySelectorAll('button, input, select, canvas, a, [role=button]')].filter((element) =>
        !element.closest('[hidden]') &&
        !(element.getAttribute('aria-label') || element.textContent.trim() || element.labels?.length || element.title)
        ).map((element) => element.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    assert page.tab.pdf().startswith(b"%PDF")
