"""The data that the page's script works on, as one JSON object; names are in camel case because JavaScript reads them."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from overfocus.figures.overlay import LOWEST, highest
from overfocus.figures.stability import scale_of, shows_retained
from overfocus.figures.style import DIFFERENCE, SEQUENTIAL, line_style, lookup_table, model_colour
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.statistics.layers import LayerStatistics
from overfocus.variants import Variant
from overfocus_reports.displayed import RECEIVED
from overfocus_reports.encoding import FLOOR, numbers
from overfocus_reports.extremes import ImageValues
from overfocus_reports.gallery import gallery
from overfocus_reports.model import Model
from overfocus_reports.predictions import predictions
from overfocus_reports.segmentation import segmentation_payload


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
    """One model: its means, worst images, galleries and predictions; pictures, maps and layers come when room is known."""
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
    """Each layer's name, geometry and where its received attention lies on the sheet; and where windows lie on the image.

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
