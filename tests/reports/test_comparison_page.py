"""The page of a comparison of models with hostile names: what stands in it, and what cannot."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from overfocus.errors import RunError
from overfocus.results.comparison import Comparison
from overfocus.run import Run
from overfocus_reports import draw_comparison
from overfocus_reports.sections import differences_payload, sentence_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(compared):
    return compared.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


@pytest.fixture(scope="module")
def comparison(compared):
    folder = compared.parents[1] / "runs"
    return Comparison([Run(folder / name) for name in ("one", "two", "three")], ["a", "b", "c"], resamples=200)


def elements(text):
    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, dict(attrs)))

    Parser().feed(text)
    return found


def test_hostile_names_stay_text(page):
    found = elements(page)
    assert [tag for tag, _ in found].count("script") == 2
    assert not any(attributes.get("src") == "x" for _, attributes in found)
    assert not any(name.startswith("on") for _, attributes in found for name in attributes)
    assert "<script>alert(" not in page
    assert "&lt;script&gt;alert(3)" in page


def test_nothing_is_loaded_from_anywhere(page):
    loads = [
        value
        for _, attributes in elements(page)
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "poster", "data") and value
    ]
    assert all(value.startswith(("#", "data:image/")) for value in loads)
    metas = [attributes.get("content", "") for tag, attributes in elements(page) if tag == "meta"]
    assert any(content.startswith("default-src 'none'; script-src 'sha256-") for content in metas)


def test_identifiers_are_used_once(page):
    names = [attributes["id"] for _, attributes in elements(page) if "id" in attributes]
    assert len(names) == len(set(names))


def test_models_share_images_variants_and_scales(data):
    assert [model["name"] for model in data["models"]] == ["plain", "<script>alert(3)</script>", "=1+1&\"'</option>"]
    assert [len(model["layers"]) for model in data["models"]] == [4, 7, 4]
    assert data["severities"] == [1, 3]
    assert data["displayed"] == [0, 1]
    means = np.concatenate([np.ravel(model["metrics"]["top_share"]["mean"]) for model in data["models"]]).astype(float)
    scale = data["metrics"]["top_share"]["scale"]
    assert scale["low"] == pytest.approx(np.nanmin(means), rel=1e-3)
    assert scale["high"] == pytest.approx(np.nanmax(means), rel=1e-3)


def test_images_that_all_models_saw_stand_once(data):
    assert data["models"][0]["pictures"]
    assert data["models"][1]["pictures"] is None


def test_verdicts_stand_with_the_rule_and_the_notes(page, comparison):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page)).replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">")
    identical = text.count("is identical to plain")  # then there is nothing to ask
    assert text.count("Does it overfocus less?") == 2 - identical
    assert comparison.rule in text
    assert len(comparison.notes) >= 1
    assert "left out" in text


def test_differences_are_those_of_the_table(data, comparison):
    sent, table = data["differences"], comparison.table
    assert sent["order"] == list(table.columns)
    assert len(sent["columns"]["metric"]) == len(table)
    row = table.index[(table["metric"] == "gini") & (table["layers"] == "late") & (table["corruption"] == "all")][1]
    assert sent["names"]["metric"][sent["columns"]["metric"][row]] == "gini"
    assert sent["columns"]["difference"][row] == pytest.approx(table["difference"][row], rel=1e-3)
    assert sent["directions"][sent["names"]["metric"].index("effective_tokens")] == "low"
    assert sent["directions"][sent["names"]["metric"].index("js_divergence")] == "neither"  # raw, it says nothing by itself
    assert sent["directions"][sent["names"]["metric"].index("retained.js_divergence")] == "low"


def test_every_column_of_the_differences_travels(comparison):
    sent = differences_payload(comparison.table, {"a": "#1", "b": "#2", "c": "#3"})
    assert set(sent["columns"]) == set(comparison.table.columns)
    assert sent["colours"] == ["#2", "#3"]


def test_fragility_sentence_names_the_best_metric(comparison):
    rows = comparison.fragility
    rows = rows[(rows["model"] == "a") & (rows["layers"] == "all") & (rows["corruption"] == "all")].copy()
    rows[["auroc", "auroc_low", "auroc_high"]] = 0.5, 0.4, 0.6
    everything = comparison.fragility[comparison.fragility["model"] == "a"]
    assert "no metric predicts which," in sentence_of("a", rows, everything)
    rows.loc[rows["metric"] == "gini", ["auroc", "auroc_low", "auroc_high"]] = 0.2, 0.1, 0.3
    assert "Gini coefficient predicts them best: lower where predictions flip, AUROC 0.20" in sentence_of("a", rows, everything)


def test_a_comparison_needs_a_folder(comparison):
    with pytest.raises(RunError, match="has no folder for its report"):
        draw_comparison(comparison)


def test_figures_lie_beside_the_page(compared):
    names = {path.name for path in (compared.parent / "figures").iterdir()}
    assert {"layers-gini.svg", "top_overlap-by-severity.svg", "image-0.png", "reliability.png"} <= names
