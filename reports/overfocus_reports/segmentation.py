"""What the page shows of a segmentation run: class maps of the displayed images, and what became of their pixels."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from overfocus.datasets.masks import IGNORED
from overfocus.evaluation.results import measure_segmentation
from overfocus.variants import Variant
from overfocus_reports.encoding import base64_of, number, numbers

if TYPE_CHECKING:
    from overfocus.run import Run
    from overfocus_reports.displayed import Displayed

CLASS_MAP_PIXELS = 512
"""Longest side of the class maps on the page; counts are those of all pixels."""

Classes = npt.NDArray[np.uint8]


def segmentation_payload(run: "Run", displayed: "Displayed") -> dict[str, Any] | None:
    """Names and colours of the classes, and every displayed image; None for other models."""
    if not run.segmented or run.class_colours is None:
        return None
    colours = run.class_colours
    names = run.class_names or [f"class {place}" for place in range(len(colours))]
    scores = set_scores(run)
    return {
        "names": names,
        "colours": colours,
        "set": [number(float(scores.get((variant.corruption, variant.severity), np.nan))) for variant in displayed.variants],
        "images": {image: image_payload(run, displayed, image, len(colours)) for image in run.displayed},
    }


def set_scores(run: "Run") -> "pd.Series[float]":
    """The mIoU of all images together by (corruption, severity); NaN without masks."""
    names = [str(place) for place in range(len(run.class_colours or []))]
    return measure_segmentation(run.predictions, names).set_index(["corruption", "severity"])["miou"]


def image_payload(run: "Run", displayed: "Displayed", image: int, classes: int) -> dict[str, Any]:
    """Maps of one image, and counts by variant; classes that no map holds are left out of "present"."""
    kept = run.class_maps(image)
    places = [kept.variants.index(variant) for variant in displayed.variants]
    shares = np.stack([class_shares(kept.predicted[place], classes) for place in places])
    truth = None if kept.truth is None else class_shares(kept.truth, classes)
    there = shares.sum(0) + (0 if truth is None else truth)
    rows = run.predictions[run.predictions["image"] == image].set_index(["corruption", "severity"])
    order = [(variant.corruption, variant.severity) for variant in displayed.variants]
    clean = kept.predicted[places[0]]
    return {
        "maps": {variant: class_png(kept.predicted[places[variant]]) for variant in displayed.shown},
        "truth": None if kept.truth is None else class_png(kept.truth),
        "present": np.flatnonzero(there > 0).tolist(),
        "predictedShares": numbers(shares),
        "trueShares": None if truth is None else numbers(truth),
        "flips": [flips(clean, kept.predicted[place], kept.truth) for place in places],
        "iou": numbers(rows["image_iou"].reindex(pd.MultiIndex.from_tuples(order)).to_numpy("float64")),
        "attention": attention_shares(run.attention_by_class, image, displayed.variants, classes),
    }


def class_shares(classes: Classes, count: int) -> npt.NDArray[np.float64]:
    """Share of the pixels that each class covers."""
    return np.bincount(classes.ravel(), minlength=IGNORED + 1)[:count] / classes.size


def flips(clean: Classes, corrupted: Classes, truth: Classes | None) -> list[float | None]:
    """Shares of the pixels that change their class; and, where the truth is known, that leave the right class, that come to it,
    and that go from one wrong class to another. Ignored pixels do not count.
    """
    changed = clean != corrupted
    if truth is None:
        return [number(float(changed.mean())), None, None, None]
    counted = truth != IGNORED
    changed &= counted
    lost, gained = changed & (clean == truth), changed & (corrupted == truth)
    parts = [changed, lost, gained, changed & ~lost & ~gained]
    pixels = max(1, int(counted.sum()))
    return [number(float(part.sum() / pixels)) for part in parts]


def attention_shares(table: "pd.DataFrame", image: int, variants: list[Variant], classes: int) -> dict[int, Any] | None:
    """Share of the received attention that lands on each class of the mask, (variants, classes) by layer; None without a mask."""
    rows = table[table["image"] == image]
    if rows.empty:
        return None
    place = {(variant.corruption, variant.severity): number for number, variant in enumerate(variants)}
    at = [place.get(pair, -1) for pair in zip(rows["corruption"], rows["severity"], strict=True)]
    found: dict[int, Any] = {}
    for layer in rows["layer"].unique():
        values = np.full((len(variants), classes), np.nan)
        part = rows[rows["layer"] == layer]
        values[np.array(at)[rows["layer"] == layer], part["class"]] = part["received_share"]
        found[int(layer)] = numbers(values)
    return found


def class_png(classes: Classes) -> str:
    """A class map as a base64 PNG whose red is the number of the class; a palette keeps it small."""
    picture = Image.fromarray(classes)
    picture.thumbnail((CLASS_MAP_PIXELS, CLASS_MAP_PIXELS), Image.Resampling.NEAREST)
    picture = Image.fromarray(np.asarray(picture), "P")
    picture.putpalette([value for grey in range(IGNORED + 1) for value in (grey, grey, grey)])
    return base64_of(picture, "PNG", optimize=True)
