"""The report of segmentation models: class maps, flipped pixels, and the words that speak of pixels."""

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from overfocus.results.comparison import Comparison
from overfocus.run import Run
from overfocus_reports import draw_comparison, draw_report, summarise
from overfocus_reports.model import Model
from overfocus_reports.payload import CLASS_MAP_PIXELS, class_png, class_shares, flips, segmentation_payload

CLASSES = ("</script><img src=x onerror=alert(2)>", '"quoted" & <b>bold</b>', "coffee mug")
PIXELS = 48


def make_segmented(folder: Path, *, seed: int = 0, masks: bool = True) -> Path:
    """Turn a synthetic run into one of a segmentation model with three classes."""
    info = json.loads((folder / "run.json").read_text())
    info |= {"task": "segmentation", "class_colours": [[64, 64, 64], [230, 159, 0], [86, 180, 233]]}
    (folder / "run.json").write_text(json.dumps(info))
    rng = np.random.default_rng(seed)
    truth = np.zeros((PIXELS, PIXELS), np.uint8)
    truth[10:30, 10:30], truth[40:] = 1, 255
    table = pd.read_parquet(folder / "predictions" / "part-00000.parquet")
    rows: list[dict[str, Any]] = []
    shares = []
    for image, part in table.groupby("image", sort=False):
        clean = np.where(rng.random(truth.shape) < 0.9, truth % 255, 2).astype(np.uint8)
        maps = []
        for row in part.to_dict("records"):
            moved = np.where(rng.random(truth.shape) < 0.1 * row["severity"], rng.integers(0, 3, truth.shape), clean).astype(
                np.uint8
            )
            maps.append(moved)
            counted = truth != 255 if masks else np.ones_like(truth, bool)
            both = [int(((moved == number) & (truth == number) & counted).sum()) for number in range(3)]
            either = [int((((moved == number) | (truth == number)) & counted).sum()) for number in range(3)]
            row |= {"agreement": (moved == clean)[counted].mean() if row["severity"] else np.nan, "label": None}
            row |= {"intersections": both if masks else [0] * 3, "unions": either if masks else [0] * 3}
            row |= {"correct": (moved == truth)[counted].mean() if masks else np.nan}
            row |= {"image_iou": np.mean([a / b for a, b in zip(both, either, strict=True) if b]) if masks else np.nan}
            rows.append(row)
            if masks:
                shares += [
                    {"image": image, "name": row["name"], "corruption": row["corruption"], "severity": row["severity"]}
                    | {"layer": layer, "module": "m", "class": number, "class_name": CLASSES[number]}
                    | {"received_share": 0.25 * (number + 1), "area_share": 0.3}
                    for layer in range(4)
                    for number in range(2)
                ]
        kept = {"truth": truth} if masks else {}
        if image in info["displayed"]:
            np.savez_compressed(
                folder / "maps" / f"classes-{image}.npz",
                corruption=part["corruption"].to_numpy("U"), severity=part["severity"].to_numpy(), predicted=np.stack(maps),
                **kept,
            )  # fmt: skip
    pd.DataFrame(rows).to_parquet(folder / "predictions" / "part-00000.parquet")
    if masks:
        (folder / "attention_by_class").mkdir()
        pd.DataFrame(shares).to_parquet(folder / "attention_by_class" / "part-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def segmented(tmp_path_factory, synthetic_run) -> Run:
    """A run with masks and hostile class names; drawn."""
    folder = make_segmented(synthetic_run(tmp_path_factory.mktemp("segmented") / "run", class_names=CLASSES, pixels=PIXELS))
    run = Run(folder)
    draw_report(run)
    return run


def payload_of(page: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    assert found
    return json.loads(found[1])


def decoded(text: str) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))[..., 0]


def test_flips_by_hand():
    clean, corrupted = np.array([[0, 0, 1, 1, 2, 0]], np.uint8), np.array([[0, 1, 0, 2, 1, 1]], np.uint8)
    truth = np.array([[0, 0, 0, 0, 2, 255]], np.uint8)
    # of five counted pixels: one kept, one lost, one gained, one from wrong to wrong, one lost
    assert flips(clean, corrupted, truth) == pytest.approx([0.8, 0.4, 0.2, 0.2])
    assert flips(clean, corrupted, None) == [pytest.approx(5 / 6, abs=1e-4), None, None, None]
    assert flips(clean, clean, np.full_like(clean, 255)) == [0, 0, 0, 0]


def test_shares_leave_ignored_pixels_out():
    assert class_shares(np.array([[0, 2], [2, 255]], np.uint8), 3).tolist() == [0.25, 0, 0.5]


def test_class_maps_survive_their_encoding():
    classes = np.random.default_rng(0).integers(0, 256, (40, 60)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(class_png(classes)), classes)
    large = np.zeros((2 * CLASS_MAP_PIXELS, 2 * CLASS_MAP_PIXELS), np.uint8)
    large[:CLASS_MAP_PIXELS] = 254
    small = decoded(class_png(large))
    assert small.shape == (CLASS_MAP_PIXELS, CLASS_MAP_PIXELS)
    assert set(np.unique(small)) == {0, 254}


def test_page_holds_maps_and_counts(segmented):
    payload = payload_of(segmented.path / "report.html")
    found = payload["models"][0]["segmentation"]
    assert found["names"] == list(CLASSES)
    variants = [(variant["corruption"], variant["severity"]) for variant in payload["variants"]]
    for image in segmented.displayed:
        kept, part = segmented.class_maps(image), found["images"][str(image)]
        np.testing.assert_array_equal(decoded(part["truth"]), kept.truth)
        for number, variant in enumerate(variants):
            np.testing.assert_array_equal(decoded(part["maps"][str(number)]), kept.predicted[kept.variants.index(variant)])
        rows = segmented.predictions[segmented.predictions["image"] == image].set_index(["corruption", "severity"])
        for number, variant in list(enumerate(variants))[1:]:
            assert part["flips"][number][0] == pytest.approx(1 - rows.loc[variant, "agreement"], abs=1e-3)
            assert sum(part["flips"][number][1:]) == pytest.approx(part["flips"][number][0], abs=1e-3)
            assert part["iou"][number] == pytest.approx(rows.loc[variant, "image_iou"], abs=1e-3)
        assert part["attention"]["2"][0] == [0.25, 0.5, None]
        assert part["present"] == [0, 1, 2]


def test_set_scores_are_accumulated(segmented):
    payload = payload_of(segmented.path / "report.html")
    rows = segmented.predictions[segmented.predictions["severity"] == 0]
    both, either = (np.stack(rows[name].to_list()).sum(0) for name in ("intersections", "unions"))
    expected = np.mean(both / either)
    assert payload["models"][0]["segmentation"]["set"][0] == pytest.approx(expected, abs=1e-4)
    summary = summarise(segmented)
    assert summary.clean_iou == pytest.approx(expected)
    corrupted = np.mean([row.set_iou for row in summary.survival])
    figures = {figure.name: figure.value for figure in summary.key_figures}
    assert figures["mIoU (set), clean → corrupted"] == f"{100 * expected:.0f} → {100 * corrupted:.0f}\u00a0%"


def test_sentences_speak_of_pixels(segmented):
    last = summarise(segmented).sentences[-1]
    worst = min(summarise(segmented).survival, key=lambda row: row.prediction["agreement"].mean)
    changed = f"{100 * (1 - worst.prediction['agreement'].mean):.0f}\u00a0% of an image's pixels change their class"
    assert last.startswith(f"Under {worst.variant.words}, {changed}")
    assert "mIoU of all images" in last
    assert "classified" not in " ".join(summarise(segmented).sentences)
    run = Run(segmented.path)
    run.predictions["predicted"] = 0  # of every image most pixels have this class; others of its pixels may still change
    assert not summarise(run).one_class
    assert [answer.answer for answer in summarise(run).answers] == [answer.answer for answer in summarise(segmented).answers]


def test_terminal_and_json_give_both_kinds_of_iou(segmented, capsys):
    from overfocus_cli.output import print_summary, summary_as_json

    summary = summarise(segmented)
    found = summary_as_json(summary)
    assert found["clean_miou"] == summary.clean_iou
    rows = segmented.predictions.query("corruption == 'fog' and severity == 3")
    row = next(row for row in found["corruptions"] if (row["corruption"], row["severity"]) == ("fog", 3))
    assert row["image_iou"]["mean"] == pytest.approx(rows["image_iou"].mean())
    assert row["miou"] != row["image_iou"]["mean"]
    print_summary(summary)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"mIoU on clean images {100 * summary.clean_iou:.1f} %" in printed
    assert "pixel" in printed
    assert "classified" not in printed


def test_names_cannot_become_markup(segmented):
    page = (segmented.path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "<b>bold</b>" not in page


def test_without_masks(tmp_path, synthetic_run):
    run = Run(make_segmented(synthetic_run(tmp_path / "run", class_names=None, pixels=PIXELS), masks=False))
    model = Model(run, "name")
    payload = segmentation_payload(run, model.displayed)
    assert payload is not None
    part = payload["images"][0]
    assert part["truth"] is None
    assert part["attention"] is None
    assert part["flips"][1][1:] == [None, None, None]
    assert payload["names"] == ["class 0", "class 1", "class 2"]
    assert not any("mIoU" in figure.name for figure in summarise(run).key_figures)


def test_other_runs_have_no_such_section(drawn):
    assert payload_of(drawn)["models"][0]["segmentation"] is None
    assert 'id="segmentation"' not in drawn.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compared_segmented(tmp_path_factory, synthetic_run) -> Path:
    """The page of a comparison of two segmentation models, of which one kept fewer images."""
    folder = tmp_path_factory.mktemp("compared_segmented")
    runs = []
    for seed, name in enumerate(("one", "two")):
        drawn = synthetic_run(folder / name, class_names=CLASSES, pixels=PIXELS, images=12, displayed=3 - seed)
        runs.append(Run(make_segmented(drawn, seed=seed)))
    return draw_comparison(Comparison(runs, ["one", "two"], resamples=100, path=folder / "comparison"))


@pytest.mark.slow
def test_comparison_keeps_the_maps_of_each_model(compared_segmented):
    first, second = (model["segmentation"] for model in payload_of(compared_segmented)["models"])
    assert list(first["images"]) == list(second["images"]) == ["0", "1"]
    assert first["images"]["0"]["truth"] == second["images"]["0"]["truth"]
    assert first["images"]["0"]["maps"] != second["images"]["0"]["maps"]


@pytest.mark.slow
def test_panels_in_a_browser(segmented, open_page):
    page = open_page(segmented.path / "report.html")
    page.tab.wait_for_selector("#segmentation-images[aria-busy=false]")
    article = "#segmentation-images article[data-image='1']"
    kept = segmented.class_maps(1)
    flipped = page.canvas(f"{article} [data-panel=classes-change] canvas")
    side = flipped.shape[0]
    place = payload_of(segmented.path / "report.html")["picked"]
    variant = kept.variants[place]
    changed = (kept.predicted[0] != kept.predicted[place]) & (kept.truth != 255)
    middle = (np.arange(PIXELS) + 0.5) * side / PIXELS
    seen = flipped[middle.astype(int)][:, middle.astype(int)].astype(int)
    coloured = np.ptp(seen[..., :3], axis=-1) > 40
    np.testing.assert_array_equal(coloured, changed)
    before = page.text(f"{article} .counts")
    assert f"under {variant[0].replace('_', ' ')} {variant[1]}" in before
    assert page.text(f"{article} .classes-legend tbody").count("%") == 3 * 5 - 2  # one class is not in the mask
    page.tab.select_option("#pick-corruption", "fog")
    page.tab.wait_for_selector("#segmentation-images[aria-busy=false]")
    assert page.text(f"{article} .counts") != before
    attention = page.canvas(f"{article} [data-panel=attention-clean] canvas")
    page.tab.keyboard.press("ArrowLeft")
    page.tab.wait_for_selector("#segmentation-images[aria-busy=false]")
    assert not np.array_equal(attention, page.canvas(f"{article} [data-panel=attention-clean] canvas"))
    rows = list(csv.DictReader(page.download("segmentation-1", "csv").decode().splitlines()))
    assert len(rows) == 5 * 3
    assert float(rows[1]["share of pixels, predicted"]) == pytest.approx((kept.predicted[0] == 1).mean(), abs=1e-3)
    assert rows[0]["class"] == CLASSES[0]
    assert rows[2]["share of attention, layer 0"] == ""
    drawing = page.download("segmentation-1", "svg").decode()
    assert drawing.count("<image") == 7
    assert "<img" not in drawing
    page.tab.click(f"{article} [data-panel=truth] canvas")
    assert page.tab.get_attribute(f"{article} [data-panel=truth]", "class") == "enlarged"
    page.close()


@pytest.mark.slow
def test_picking_a_model_shows_its_classes(compared_segmented, open_page):
    page = open_page(compared_segmented)
    page.tab.wait_for_selector("#segmentation-images[aria-busy=false]")
    panel = "#segmentation-images article[data-image='0'] [data-panel=classes-clean] canvas"
    first = page.canvas(panel)
    page.tab.select_option("#pick-model", "1")
    page.tab.wait_for_selector("#segmentation-images[aria-busy=false]")
    assert not np.array_equal(first, page.canvas(panel))
    page.close()


@pytest.mark.slow
def test_no_panel_runs_off_a_telephone(segmented, open_page):
    page = open_page(segmented.path / "report.html", viewport={"width": 400, "height": 800})
    page.tab.wait_for_selector("#segmentation-images[aria-busy=false]")
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= 400
    page.close()
