"""The page of a run with hostile names: what stands in it, and what cannot."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from overfocus.metrics.catalogue import CATALOGUE
from overfocus_reports.page import json_for_html


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
    names = {path.name for path in (drawn.parent / "figures").glob("*.png")}
    assert {"layers-gini.png", "top_overlap-by-severity.png", "top_overlap-by-layer.png", "image-0.png"} <= names
    assert all(path.stat().st_size > 3000 for path in (drawn.parent / "figures").glob("*.png"))


def test_json_cannot_end_its_element():
    text = json_for_html({"</script>": "<!-- & \u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script>": "<!-- & \u2028"}
