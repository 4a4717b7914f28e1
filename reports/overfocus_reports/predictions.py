"""What the model predicted before and after, image by image, for the page."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from overfocus.variants import Variant
from overfocus_reports.encoding import number
from overfocus_reports.extremes import RANKED_BY, ImageValues

if TYPE_CHECKING:
    from overfocus.run import Run

MOST_CELLS = 6000
"""Images × variants that fit; images beyond are left to the parquet files and counted."""


def predictions(run: "Run", variants: list[Variant], values: ImageValues, first: list[int]) -> dict[str, Any]:
    """Predicted class, confidence and share of attention that moved as (variants, images); images in `first` come first.

    Classes are numbers into "classes"; null where the model has no classifier. "left" counts the images that did not fit.
    """
    table = run.predictions
    every = [int(image) for image in table["image"].unique()]
    ordered = list(dict.fromkeys([*(image for image in first if image in every), *every]))
    kept = ordered[: max(len(first), MOST_CELLS // len(variants))]
    table = table.set_index(["corruption", "severity", "image"]).sort_index()
    texts = table["predicted_name"].fillna(table["predicted"].map(lambda value: None if pd.isna(value) else f"class {value}"))
    classes = {name: place for place, name in enumerate(sorted(texts.dropna().unique()))}
    predicted, confidence = [], []
    for variant in variants:
        rows = pd.MultiIndex.from_tuples([(variant.corruption, variant.severity, image) for image in kept])
        predicted.append([classes.get(text) for text in texts.reindex(rows)])
        confidence.append([number(float(value), 3) for value in table["confidence"].reindex(rows).astype("float64")])
    places = [values.images.index(image) for image in kept]
    return {
        "images": kept,
        "classes": list(classes),
        "predicted": predicted,
        "confidence": confidence,
        "moved": [[number(float(moved), 3) for moved in row] for row in values.over_layers[RANKED_BY][:, places]],
        "left": len(ordered) - len(kept),
    } | pixel_scores(run, table, variants, kept)


def pixel_scores(run: "Run", table: pd.DataFrame, variants: list[Variant], images: list[int]) -> dict[str, Any]:
    """Of segmentation: shares of the pixels that keep their class, and each image's own mean IoU, as (variants, images)."""
    if not run.segmented:
        return {}
    rows = [
        pd.MultiIndex.from_tuples([(variant.corruption, variant.severity, image) for image in images]) for variant in variants
    ]
    return {
        name: [[number(float(value), 3) for value in table[column].reindex(index).astype("float64")] for index in rows]
        for name, column in (("kept", "agreement"), ("iou", "image_iou"))
    }
