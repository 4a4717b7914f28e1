"""The data that the page's script works on, as one JSON object; names are in camel case because JavaScript reads them."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from overfocus.datasets.masks import IGNORED
from overfocus.errors import OverfocusError
from overfocus.figures.images import LOWEST, ReceivedMaps, highest
from overfocus.figures.stability import scale_of, shows_retained
from overfocus.figures.style import DIFFERENCE, SEQUENTIAL, line_style, lookup_table, model_colour
from overfocus.images.sources import read_image
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.runs.description import Layer
from overfocus.statistics.panel import LayerStatistics
from overfocus.variants import CLEAN_VARIANT, Variant
from overfocus_reports.displayed import (
    FLOOR,
    RANKED_BY,
    RECEIVED,
    Displayed,
    ImageValues,
    base64_of,
    image_uri,
    number,
    numbers,
    png,
)
from overfocus_reports.model import Model
from overfocus_reports.summary import set_scores

if TYPE_CHECKING:
    from overfocus.run import Run
    from overfocus_reports.displayed import Displayed


SIZE = 4
"""Images at each end of the ranking."""
MOST_THUMBNAILS = 24
"""Thumbnails that are read from files; images beyond are named without one."""
PIXELS = 112


def gallery(run: "Run", displayed: Displayed, values: ImageValues, layer: Layer) -> dict[str, Any]:
    """Per shown variant the images at both ends with the share of attention that moved and the maps of `layer` before and after.

    Thumbnails of displayed images are those of the explorer; the others are read from their files where those still are.
    """
    variants, received, place = displayed.variants, displayed.received_maps, displayed.layers.index(layer)
    ends = {variant: values.gallery(variant, SIZE) for variant in displayed.shown if variant}
    for image in sorted({image for both in ends.values() for end in both for image in end}):
        for variant in (0, *ends):  # in the order of the files, each of which is unpacked once
            received(image, variants[variant])
    items = {
        variant: [
            [item_of(received, variants[variant], image, values.moved(variant, image), place) for image in end] for end in both
        ]
        for variant, both in ends.items()
    }
    wanted = Counter(image for both in ends.values() for end in both for image in end if image not in run.displayed)
    files = {entry.image: entry.path for entry in run.images}
    images = {image: read_thumbnail(files[image]) for image, _ in wanted.most_common(MOST_THUMBNAILS)}
    return {"items": items, "pictures": images, "layer": layer.number}


def item_of(received: ReceivedMaps, variant: Variant, image: int, moved: float, place: int) -> dict[str, Any]:
    """One image of a gallery; "maps" holds the clean and the corrupted received attention side by side."""
    clean, corrupted = received(image, CLEAN_VARIANT)[place], received(image, variant)[place]
    maps = None
    if clean is not None and corrupted is not None:
        maps = png(RECEIVED.encode(np.concatenate([clean, corrupted], axis=1) * clean.size))
    return {"image": image, "moved": number(moved), "maps": maps}


def read_thumbnail(path: str | None) -> str | None:
    """A small version of an image file; None where it cannot be read any more."""
    if path is None:
        return None
    try:
        return image_uri(np.asarray(shrunk(path)), PIXELS, 70)
    except OverfocusError:
        return None


def shrunk(path: str) -> Any:
    """The image at four times the size that is kept, so that a large one is not scaled twice at full size."""
    image = read_image(path)
    image.thumbnail((4 * PIXELS, 4 * PIXELS))
    return image


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
    shorter = first_synonyms(run.class_names or [])
    texts = table["predicted_name"].fillna(table["predicted"].map(lambda value: None if pd.isna(value) else f"class {value}"))
    texts = texts.map(lambda name: shorter.get(name, name), na_action="ignore")
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


def first_synonyms(names: Sequence[str]) -> dict[str, str]:
    """Class names cut at their first comma where that stays distinct.

    >>> first_synonyms(["tench, Tinca tinca", "crane", "crane, bird"])
    {'tench, Tinca tinca': 'tench', 'crane': 'crane', 'crane, bird': 'crane, bird'}
    """
    times = Counter(name.partition(", ")[0] for name in names)
    return {name: cut if times[cut := name.partition(", ")[0]] == 1 else name for name in names}


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


def shared_payload(models: Sequence[Model], picked: Variant) -> dict[str, Any]:
    """What all models have in common: versions of the images, colours and scales."""
    first = models[0].statistics
    return {
        "variants": [{"corruption": v.corruption, "severity": v.severity, "label": v.label} for v in first.variants],
        "picked": first.variants.index(picked),
        "corruptions": first.corruptions,
        "severities": first.severities,
        "lineColours": [line_style(place)[0] for place in range(len(first.corruptions))],
        "modelColours": [model_colour(number) for number in range(len(models))],
        "metrics": {metric: scale_payload(models, metric) for metric in metrics_of(models)},
        "colours": {"sequential": hexadecimal(SEQUENTIAL), "difference": "".join(DIFFERENCE).replace("#", "")},
        "received": {"floor": FLOOR, "perOctave": RECEIVED.per_octave},
        "scale": attention_scale(models),
        "displayed": models[0].run.displayed,
        "shown": models[0].displayed.shown,
        "classified": any(model.classified for model in models),
        "labelled": is_labelled(models),
    }


def metrics_of(models: Sequence[Model]) -> list[str]:
    """The metrics that any of the models has, in the order of the catalogue."""
    return [name for name in CATALOGUE if any(name in model.statistics.values for model in models)]


def is_labelled(models: Sequence[Model]) -> bool:
    """Whether any image has a label."""
    return any(entry.label is not None for entry in models[0].run.images)


def scale_payload(models: Sequence[Model], metric: str) -> dict[str, Any]:
    """Name, unit and the one colour scale of a metric."""
    every = [model.statistics for model in models if metric in model.statistics.values]
    scale = scale_of(every, metric)
    return {
        "title": title_of(metric),
        "retained": CATALOGUE[metric].group == "stability" and shows_retained(every, metric),
        "unit": CATALOGUE[metric].unit,
        "stability": CATALOGUE[metric].group == "stability",
        "scale": {"low": scale.low, "high": scale.high, "reverse": scale.reverse, "digits": scale.digits},
    }


def model_payload(model: Model) -> dict[str, Any]:
    """One model: its means, worst images, galleries and predictions; images, maps and layers come when room is known."""
    statistics = model.statistics
    return {
        "name": model.name,
        "heads": statistics.heads,
        "focus": statistics.layers.index(model.focus),
        "metrics": {metric: metric_payload(statistics, metric) for metric in statistics.metrics},
        "sheets": model.displayed.sheets(),
        "segmentation": segmentation_payload(model.run, model.displayed),
        "worst": worst_payload(model.values, model.run.displayed),
        "gallery": gallery(model.run, model.displayed, model.values, model.focus),
        "predictions": predictions(model.run, statistics.variants, model.values, model.run.displayed),
    }


def metric_payload(statistics: LayerStatistics, metric: str) -> dict[str, Any]:
    """Means as (heads, variants, layers); their intervals as (variants, layers), for all heads together only."""
    parts = statistics.values[metric]
    return {
        "mean": numbers(parts["mean"]),
        "low": numbers(parts["low"][0]),
        "high": numbers(parts["high"][0]),
        "count": parts["count"][0].astype(int).tolist(),
        "uniform": numbers(np.array(statistics.uniform(metric))),
        "control": numbers(np.array(statistics.another_image(metric))),
        "retained": numbers(statistics.means(metric, retained=True)) if metric in statistics.retained else None,
    }


def layers_payload(model: Model, matrices: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Each layer's name, geometry and where its received attention is on the sheet; and where windows are on the image.

    Layers share what their windows have in common: "partition" is a number into "partitions".
    """
    found: list[dict[str, Any]] = []
    different: dict[str, int] = {}
    start = 0
    for layer, matrix in zip(model.statistics.layers, matrices, strict=True):
        lies = model.run.partitions.get(layer.number)
        size = layer.image_grid[0] * layer.image_grid[1] if layer.image_grid else 0
        found.append(
            {
                "label": layer.label,
                "number": layer.number,
                "module": layer.module,
                "kind": layer.kind,
                "tokens": layer.tokens,
                "imageGrid": layer.image_grid,
                "windows": layer.windows,
                "partition": different.setdefault(json.dumps(lies.tolist()), len(different)) if lies is not None else None,
                "start": start,
                "size": size,
                "matrix": matrix,
            }
        )
        start += size
    return {"layers": found, "partitions": [json.loads(text) for text in different]}


def worst_payload(values: ImageValues, displayed: list[int]) -> dict[str, Any]:
    """Per metric, variant and layer (the first entry is over layers): the worst image of all and of the displayed ones."""
    found: dict[str, Any] = {}
    for metric in values.values:
        image, value = values.worst(metric)
        shown, shown_value = values.worst(metric, displayed)
        found[metric] = {
            "image": image.tolist(),
            "value": numbers(value),
            "shown": shown.tolist(),
            "shownValue": numbers(shown_value),
        }
    return found


def images_payload(models: Sequence[Model], payloads: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Name and label of the images that the page mentions."""
    wanted = set(models[0].run.displayed).union(*(mentioned(payload) for payload in payloads))
    return {entry.image: {"name": entry.name, "label": entry.label} for entry in models[0].run.images if entry.image in wanted}


def mentioned(payload: dict[str, Any]) -> set[int]:
    """Numbers of the images that one model's part of the page names."""
    found = set(payload["predictions"]["images"])
    for worst in payload["worst"].values():
        found |= {image for row in worst["image"] for image in row}
    for both in payload["gallery"]["items"].values():
        found |= {item["image"] for end in both for item in end}
    return found


def attention_scale(models: Sequence[Model]) -> dict[str, float]:
    """The one colour scale of all maps, in powers of two of uniform attention: received attention of every shown map fits."""
    profiles = (
        profile * profile.size
        for model in models
        for image in model.run.displayed
        for place in model.displayed.shown
        for profile in model.displayed.received_maps(image, model.displayed.variants[place])
        if profile is not None
    )
    return {"low": LOWEST, "high": highest(profiles)}


def hexadecimal(name: str) -> str:
    """A colour map as 256 times six hexadecimal digits."""
    return lookup_table(name).tobytes().hex()


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
        "iou": numbers(rows["image_iou"].reindex(pd.MultiIndex.from_tuples(order)).to_numpy("float64", na_value=np.nan)),
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
    image = Image.fromarray(classes)
    image.thumbnail((CLASS_MAP_PIXELS, CLASS_MAP_PIXELS), Image.Resampling.NEAREST)
    image = Image.fromarray(np.asarray(image), "P")
    image.putpalette([value for grey in range(IGNORED + 1) for value in (grey, grey, grey)])
    return base64_of(image, "PNG", optimize=True)
