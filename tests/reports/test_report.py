"""Pages of runs with hostile names and of unusual shape; each is drawn whole, so that most tests are slow."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from overfocus.errors import RunError
from overfocus.metrics.catalogue import CATALOGUE
from overfocus.run import Run
from overfocus_reports import draw_report
from overfocus_reports.model import image_keys, shared_runs
from overfocus_reports.report import json_for_html


@pytest.fixture(scope="module")
def page(drawn):
    return drawn.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


class Elements(HTMLParser):
    """Every element with its attributes, as a browser's parser sees it."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_hostile_names_stay_text(page):
    elements = Elements(page).found
    assert [tag for tag, _ in elements].count("script") == 2
    assert not any(attributes.get("src") == "x" for _, attributes in elements)
    assert not any(name.startswith("on") for _, attributes in elements for name in attributes)
    assert "alert(1)" in page
    assert "<script>alert(1)" not in page
    assert "<b>bold" not in page


def test_the_legend_names_the_corruption_of_each_curve(page, data):
    found = re.findall(r'class="key drawn"><svg[^>]*><path[^>]*stroke: (#\w+)[^>]*></path></svg>([^<]*)</span>', page)
    assert [name for _, name in found] == [name.replace("_", " ") for name in data["corruptions"]]
    for place, (colour, _) in enumerate(found):
        assert re.search(rf'id="curves-gini-line-0-{place}"[^>]*><path[^>]*stroke: {colour};', page), place
    assert len(found) > 1


def test_identifiers_are_unique(page):
    """So that each link of the navigation goes to its section; the page has heads too."""
    found = re.findall(r'\sid="([^"]+)"', re.sub(r"<script.*?</script>", "", page, flags=re.S))
    assert len(found) == len(set(found))
    assert set(re.findall(r'<a href="#([^"]+)"', page)) <= set(found)


def test_names_reach_the_script_as_they_are(data):
    assert data["images"]["0"]["name"] == "<script>alert(1)</script>.png"
    assert '"quoted" & <b>bold</b>' in data["models"][0]["predictions"]["classes"]


def test_policy_forbids_every_load_and_allows_the_one_script(page):
    policy = dict(Elements(page).found[[tag for tag, _ in Elements(page).found].index("meta") + 1][1])["content"]
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}';" in policy
    assert "http" not in policy


def test_nothing_is_loaded_from_anywhere(page):
    loads = [
        value
        for _, attributes in Elements(page).found
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "poster", "data") and value
    ]
    assert loads
    assert all(value.startswith(("#", "data:image/")) for value in loads)
    assert not re.search(r"@import|url\((?!#)", page)


def test_every_metric_is_explained_from_the_catalogue(page, data):
    for metric in data["metrics"]:
        formula = CATALOGUE[metric].formula.replace("'", "&#39;").replace(">", "&gt;")
        assert formula in page
    assert "k/N = 0.0556" in page


def test_page_says_where_the_numbers_come_from(page):
    for text in ("vit_tiny_patch16_224", "ab" * 32, "state_dict_ema", "ema.decay", "blocks.3.attn", "broken.jpg", "2.14"):
        assert text in page


def test_statistics_travel_with_the_page(data, drawn):
    from overfocus.run import Run

    table = Run(drawn.parent).table
    rows = table[(table["corruption"] == "fog") & (table["severity"] == 3) & (table["layer"] == 2)]
    number = next(i for i, v in enumerate(data["variants"]) if v["corruption"] == "fog" and v["severity"] == 3)
    assert data["models"][0]["metrics"]["received_shift"]["mean"][0][number][2] == pytest.approx(
        rows["received_shift"].mean(), rel=1e-3
    )
    assert data["models"][0]["heads"] == ["all", "head 0", "head 1"]


def test_figures_lie_beside_the_page(drawn):
    found = {path.name: path.stat().st_size for path in (drawn.parent / "figures").iterdir()}
    assert {"layers-gini.svg", "top_overlap-by-severity.svg", "top_overlap-by-layer.svg", "image-0.png"} <= set(found)
    assert min(found.values()) > 3000


def test_json_cannot_end_its_element():
    text = json_for_html({"</script>": "<!-- & \u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script>": r"<!-- & \u2028"}  # invisible characters are shown


def test_import_stays_light():
    code = "import sys, overfocus_reports; print([m for m in ('matplotlib', 'torch', 'pandas', 'jinja2') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_unknown_name_is_an_attribute_error():
    import overfocus_reports

    with pytest.raises(AttributeError, match="no attribute 'summarize'"):
        _ = overfocus_reports.summarize


def test_folder_that_cannot_be_written(make_run):
    run = make_run(images=1, layers=1)
    (run.path / "figures").write_text("in the way")
    with pytest.raises(RunError, match="the report cannot be written there"):
        draw_report(run)


def test_run_without_results(make_run):
    run = make_run(images=1, layers=1)
    for part in (run.path / "metrics").iterdir():
        part.unlink()
    with pytest.raises(RunError, match="no results yet"):
        draw_report(run)


@pytest.mark.slow
def test_clean_images_alone(make_run):
    page = draw_report(make_run(corruptions=(), severities=(), layers=1, images=1)).read_text()
    assert "No corruption was applied" in page
    assert 'id="stability"' not in page
    assert 'id="pick-severity"' not in page


@pytest.mark.slow
def test_features_without_classes_or_images(make_run):
    page = draw_report(make_run(class_names=None, displayed=0, layers=2)).read_text()
    assert "This run kept no images." in page
    assert "Output cosine" in page


@pytest.mark.slow
def test_layers_without_a_grid(make_run):
    run = make_run(layers=2)
    run.description = changed_layer(run.description, 1, {"grid": None, "key_grid": None, "image_grid": None})
    received = run.received
    run.received = lambda *where: [received(*where)[0], None]
    draw_report(run)


@pytest.mark.slow
def test_undefined_values_are_counted_on_the_page(make_run):
    run = make_run(layers=2)
    run.table.loc[run.table.index[:3], "gini"] = np.nan
    assert "3 of 60 values are undefined" in draw_report(run).read_text()


@pytest.mark.slow
def test_size_follows_the_room_given(make_run):
    run = make_run(images=8, displayed=8, layers=12, side=14, pixels=224, corruptions=("fog", "snow"), severities=(1, 2, 3, 4, 5))
    large = draw_report(run).stat().st_size
    small = draw_report(run, megabytes=1.5).stat().st_size
    assert small <= 1.5e6 < large <= 3.0e6


@pytest.mark.slow
def test_unfinished_run_says_so(make_run):
    run = make_run(overrides={"status": "running"})
    assert "unfinished run" in draw_report(run).read_text()


def test_a_run_without_attention(make_run):
    run = make_run(images=1, layers=1)
    run.description = replace(run.description, kind="evaluation")
    with pytest.raises(RunError, match="measured predictions only"):
        draw_report(run)


def changed_layer(description, number, changes):
    """The description of a run with another layer."""
    layers = list(description.layers)
    layers[number] = replace(layers[number], **changes)
    return replace(description, layers=layers)


def test_runs_are_matched_by_the_names_of_images(tmp_path, synthetic_run):
    one = Run(synthetic_run(tmp_path / "one", images=3, layers=1, names=("x.png", "y.png", "z.png")))
    two = Run(synthetic_run(tmp_path / "two", images=3, layers=1, names=("z.png", "x.png", "w.png"), severities=(3,)))
    first, second = shared_runs([one, two])
    assert [entry.name for entry in first.images] == [entry.name for entry in second.images] == ["x.png", "z.png"]
    assert [entry.image for entry in second.images] == [0, 2]
    np.testing.assert_array_equal(second.maps(0).pixels[0], two.maps(1).pixels[0])
    np.testing.assert_array_equal(second.received(2, "fog", 3)[0], two.received(0, "fog", 3)[0])
    assert sorted(set(zip(first.table["corruption"], first.table["severity"], strict=True))) == [
        ("clean", 0),
        ("fog", 3),
        ("gaussian_noise", 3),
        ("other image", 0),
    ]
    ours = second.predictions[second.predictions["image"] == 2]
    assert set(ours["name"]) == {"z.png"}


def test_images_of_one_name_are_counted(make_run):
    run = make_run(images=3, layers=1, names=("x.png", "x.png", "y.png"))
    assert image_keys(run) == {("x.png", None, 0): 0, ("x.png", None, 1): 1, ("y.png", None, 0): 2}


def test_a_single_run_stays_itself(run):
    assert shared_runs([run]) == [run]


def test_a_run_without_a_control_is_drawn(make_run):
    page = draw_report(make_run(control=False, images=4, layers=2, displayed=1)).read_text(encoding="utf-8")
    assert "control not measured" in page
    assert "how much of what stays is the image&#39;s own" in page
