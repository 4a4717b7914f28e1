"""The page in a real browser: no errors, no requests, and pickers and explorer that change the pixels they should."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from overfocus.figures.style import lookup_table
from overfocus.run import Run

pytestmark = pytest.mark.slow


@pytest.fixture
def page(open_page, drawn):
    opened = open_page(drawn)
    yield opened
    opened.close()


CANVASES = [(role, what) for role in ("clean", "corrupted", "difference") for what in ("main", "to", "from", "matrix")]


def test_every_canvas_is_drawn(page):
    for role, what in CANVASES:
        assert page.pixels(role, what)[..., :3].std() > 1, (role, what)


def test_layer_picker_moves_every_panel(page):
    before = {canvas: page.pixels(*canvas) for canvas in CANVASES}
    marker = page.line("gini", "picked-layer")
    page.tab.fill("#pick-layer", "1")
    for canvas, pixels in before.items():
        after = page.pixels(*canvas)
        assert after.shape != pixels.shape or not np.array_equal(after, pixels), canvas
    assert page.line("gini", "picked-layer") != marker
    assert page.text("#layer-name") == "1 · blocks.1.attn"
    assert page.text("[data-card=gini] .value").startswith("Layer 1 ·")


def test_severity_and_corruption_leave_the_clean_image_alone(page):
    clean, corrupted = page.pixels("clean", "main"), page.pixels("corrupted", "main")
    line, heat = page.line("js_divergence", "line-0-0"), page.tab.inner_html("#by-layer-js_divergence-4")
    page.tab.select_option("#pick-severity", "1")
    np.testing.assert_array_equal(page.pixels("clean", "main"), clean)
    assert not np.array_equal(page.pixels("corrupted", "main"), corrupted)
    assert page.line("js_divergence", "line-0-0") != line
    assert page.tab.inner_html("#by-layer-js_divergence-4") != heat
    severity_1 = page.pixels("corrupted", "main")
    page.tab.select_option("#pick-corruption", "fog")
    assert not np.array_equal(page.pixels("corrupted", "main"), severity_1)
    assert "fog 1" in page.text("#predictions h2")
    assert page.text("#key-picked") == "fog 1"


def test_heads_move_the_curves(page):
    all_heads = page.line("gini", "clean-line-0")
    page.tab.evaluate("document.querySelector('#pick-head').dispatchEvent(new Event('change'))")
    assert page.line("gini", "clean-line-0") == all_heads
    assert page.tab.get_attribute("#curves-gini-clean-band-0 path", "d")
    page.tab.select_option("#pick-head", "1")
    assert page.tab.get_attribute("#curves-gini-clean-band-0 path", "d") == ""


def test_arrow_keys_pick(page):
    page.tab.locator("h2:visible:not(.away)").first.click()
    page.tab.fill("#pick-layer", "0")
    page.tab.evaluate("document.activeElement.blur()")
    page.tab.keyboard.press("ArrowRight")
    assert page.text("#layer-name").startswith("1 ")
    page.tab.keyboard.press("Shift+ArrowRight")
    page.tab.keyboard.press("Shift+ArrowDown")
    assert page.tab.input_value("#pick-corruption") == "fog"
    assert page.tab.input_value("#pick-severity") == "1"


def test_hovering_a_patch_shows_its_row_and_column(page):
    main = page.tab.locator("canvas[data-role=clean][data-what=main]")
    main.scroll_into_view_if_needed()
    box = main.bounding_box()
    before = page.pixels("clean", "to"), page.pixels("clean", "from"), page.pixels("clean", "matrix")
    for x, y in ((0.08, 0.08), (0.9, 0.6)):
        page.tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        after = page.pixels("clean", "to"), page.pixels("clean", "from"), page.pixels("clean", "matrix")
        assert not any(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
        assert page.text("#readout").startswith(f"Patch in row {int(6 * y) + 1}, column {int(6 * x) + 1} receives")
        before = after
    page.tab.mouse.move(0, 0)
    assert not np.array_equal(page.pixels("clean", "to"), before[0])
    main.click(position={"x": 0.9 * box["width"], "y": 0.6 * box["height"]})
    page.tab.mouse.move(0, 0)
    np.testing.assert_array_equal(page.pixels("clean", "to"), before[0])


def test_shown_attention_is_the_runs(page, drawn):
    """The colours of "the token attends to" without the image are those of the row of the matrix in the run folder."""
    page.tab.fill("#pick-layer", "3")
    page.tab.evaluate("e => { e = document.querySelector('#opacity'); e.value = 100; e.dispatchEvent(new Event('input')); }")
    main = page.tab.locator("canvas[data-role=clean][data-what=main]")
    box = main.bounding_box()
    main.click(position={"x": 0.75 * box["width"], "y": 0.25 * box["height"]})  # row 1, column 4 of 6 × 6
    page.tab.mouse.move(0, 0)
    shown = page.pixels("clean", "to")
    weights = Run(drawn.parent).maps(0).attention[3][0, 0, 1 + 6 * 1 + 4].astype(float)[1:] * 37
    scale = json.loads(page.tab.text_content("#data"))["scale"]
    table = lookup_table("viridis").astype(int)
    side = shown.shape[0] / 6
    for place in set(range(36)) - {10}:
        row, column = divmod(place, 6)
        pixel = shown[int((row + 0.5) * side), int((column + 0.5) * side), :3].astype(int)
        share = (np.log2(max(weights[place], 1e-9)) - scale["low"]) / (scale["high"] - scale["low"])
        assert np.abs(pixel - table[int(np.clip(round(255 * share), 0, 255))]).max() <= 12


def test_matrix_of_a_long_sequence_stays_square(open_page, synthetic_run, tmp_path):
    from overfocus_reports import draw_report

    folder = synthetic_run(tmp_path / "run", side=18, layers=1, images=3, displayed=1, corruptions=("fog",), severities=(1,))
    page = open_page(draw_report(Run(folder)))
    height, width = page.pixels("clean", "matrix").shape[:2]
    assert "a cell averages" in page.tab.locator(".versions .caption").first.inner_text()
    assert height == width
    page.close()


def test_opacity_and_outlines(page):
    with_all = page.pixels("clean", "main")
    page.tab.uncheck("#outline")
    without = page.pixels("clean", "main")
    assert not np.array_equal(with_all, without)
    page.tab.evaluate("e => { e = document.querySelector('#opacity'); e.value = 0; e.dispatchEvent(new Event('input')); }")
    bare = page.pixels("clean", "main")
    assert not np.array_equal(bare, without)


def test_heat_map_cell_jumps_to_the_worst_displayed_image(page, drawn):
    table = Run(drawn.parent).table
    rows = table[(table["corruption"] == "fog") & (table["severity"] == 3) & (table["layer"] == 2)]
    worst = rows.groupby("image")["received_shift"].mean().loc[[0, 1, 2]].idxmax()
    cell = page.tab.locator("#by-layer-received_shift-4 [role=button][aria-label^='fog 3, layer 2:']")
    assert cell.count() == 1
    cell.focus()
    page.tab.keyboard.press("Enter")
    page.settle()
    assert page.tab.input_value("#pick-corruption") == "fog"
    assert page.text("#layer-name").startswith("2 ")
    assert page.tab.get_attribute("#strip button[aria-pressed=true]", "data-image") == str(worst)
    assert "Attention moved, fog 3, layer 2." in page.text("#jump")


def test_tables_sort(page):
    layers = "#layer-table tbody tr th"
    assert page.tab.locator(layers).all_inner_texts() == ["0", "1", "2", "3"]
    page.tab.click("#layer-table thead th:nth-child(6) button")
    shares = [
        float(value)
        for value in page.tab.eval_on_selector_all("#layer-table tbody tr", "rows => rows.map(row => row.cells[5].dataset.value)")
    ]
    assert shares == sorted(shares, reverse=True)
    page.tab.click("#layer-table thead th:nth-child(6) button")
    assert page.tab.get_attribute("#layer-table thead th:nth-child(6)", "aria-sort") == "ascending"


@pytest.mark.parametrize("figure", ["curves-gini", "by-severity-top_overlap", "by-layer-top_overlap", "explorer"])
def test_figures_can_be_kept(page, figure):
    page.settle()
    svg = page.download(figure, "svg").decode()
    assert svg.startswith("<svg")
    assert "var(--" not in svg
    image = np.asarray(Image.open(io.BytesIO(page.download(figure, "png"))).convert("RGB"))
    assert min(image.shape[:2]) > 200
    assert image.std() > 5
    rows = list(csv.reader(io.StringIO(page.download(figure, "csv").decode())))
    assert len(rows) > 3
    assert len({len(row) for row in rows}) == 1


def test_csv_is_the_table_and_no_formula(page, drawn):
    rows = list(csv.DictReader(io.StringIO(page.download("curves-gini", "csv").decode())))
    table = Run(drawn.parent).table
    fog = table[(table["corruption"] == "fog") & (table["severity"] == 3) & (table["layer"] == 2)]
    found = [r for r in rows if (r["head"], r["corruption"], r["severity"], r["layer"]) == ("all", "fog", "3", "2")]
    assert float(found[0]["mean"]) == pytest.approx(fog["gini"].mean(), rel=1e-3)
    names = [row[0] for row in csv.reader(io.StringIO(page.download("prediction-table", "csv").decode()))]
    assert "'=HYPERLINK(\"x\")&'.png" in names
    assert not any(name.startswith("=") for name in names)


def test_theme_button_changes_the_page(page):
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.tab.evaluate(background)
    page.tab.click("#theme")
    assert page.tab.evaluate(background) != before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_window_needs_no_sideways_scrolling(open_page, drawn, scheme):
    opened = open_page(drawn, viewport={"width": 400, "height": 800}, color_scheme=scheme)
    assert opened.tab.evaluate("document.documentElement.scrollWidth") == 400
    opened.close()


def test_controls_have_names(page):
    nameless = page.tab.evaluate(
        """() => [...document.querySelectorAll('button, input, select, canvas, a, [role=button]')].filter((element) =>
        !(element.getAttribute('aria-label') || element.textContent.trim() || element.labels?.length || element.title)
        ).map((element) => element.outerHTML.slice(0, 120))"""
    )
    assert nameless == []


def test_prints_to_pdf(page):
    assert page.tab.pdf().startswith(b"%PDF")
