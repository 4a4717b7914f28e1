"""The data that the page's script works on, as one JSON object; names are in camel case because JavaScript reads them."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from overfocus.figures.colours import DIFFERENCE, SEQUENTIAL, line_style, lookup_table
from overfocus.figures.layer_statistics import LayerStatistics
from overfocus.figures.stability_map import scale_of
from overfocus.figures.variants import Variant
from overfocus.figures.wording import title_of, unit_of
from overfocus.metrics.catalogue import CATALOGUE
from overfocus_reports.displayed import RECEIVED, Displayed
from overfocus_reports.encoding import FLOOR, numbers
from overfocus_reports.extremes import ImageValues

if TYPE_CHECKING:
    import numpy.typing as npt

    from overfocus.run import Run


def statistics_payload(statistics: LayerStatistics, picked: Variant) -> dict[str, Any]:
    """Layers, variants, heads, and every metric's means; intervals over images only for all heads together."""
    return {
        "variants": [{"corruption": v.corruption, "severity": v.severity, "label": v.label} for v in statistics.variants],
        "picked": statistics.variants.index(picked),
        "corruptions": statistics.corruptions,
        "severities": statistics.severities,
        "heads": statistics.heads,
        "lineColours": [line_style(place)[0] for place in range(len(statistics.corruptions))],
        "metrics": {metric: metric_payload(statistics, metric) for metric in statistics.metrics},
        "colours": {"sequential": hexadecimal(SEQUENTIAL), "difference": "".join(DIFFERENCE).replace("#", "")},
        "received": {"floor": FLOOR, "perOctave": RECEIVED.per_octave},
    }


def metric_payload(statistics: LayerStatistics, metric: str) -> dict[str, Any]:
    """Means as (heads, variants, layers), their intervals as (variants, layers)."""
    parts = statistics.values[metric]
    stable = CATALOGUE[metric].group == "stability"
    scale = scale_of([statistics], metric)
    return {
        "title": title_of(metric),
        "unit": unit_of(metric),
        "stability": stable,
        "scale": {"low": scale.low, "high": scale.high, "reverse": scale.reverse, "digits": scale.digits},
        "mean": numbers(parts["mean"]),
        "low": numbers(parts["low"][0]),
        "high": numbers(parts["high"][0]),
        "count": parts["count"][0].astype(int).tolist(),
        "uniform": numbers(np.array(statistics.uniform(metric))),
        "chance": numbers(np.array(statistics.chance(metric))),
    }


def layers_payload(
    statistics: LayerStatistics, partitions: "dict[int, npt.NDArray[np.int32]]", matrices: list[dict[str, Any] | None]
) -> dict[str, Any]:
    """Each layer's name, geometry and where its received attention lies on the sheet; and where windows lie on the image.

    Layers share what their windows have in common: "partition" is a number into "partitions".
    """
    found: list[dict[str, Any]] = []
    different: dict[str, int] = {}
    start = 0
    for layer, matrix in zip(statistics.layers, matrices, strict=True):
        lies = partitions.get(layer.number)
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


def images_payload(run: "Run", wanted: set[int]) -> dict[int, dict[str, Any]]:
    """Name and label of the images that the page mentions."""
    return {entry["image"]: {"name": entry["name"], "label": entry["label"]} for entry in run.images if entry["image"] in wanted}


def attention_scale(displayed: Displayed) -> dict[str, float]:
    """The one colour scale of all maps, in powers of two of uniform attention: the received attention of every shown map fits."""
    largest = [
        float(profile.max() * profile.size)
        for image in displayed.run.displayed
        for place in displayed.shown
        for profile in displayed.received_maps(image, displayed.variants[place])
        if profile is not None
    ]
    high = np.ceil(np.log2(max(largest, default=4.0)))
    return {"low": -3.0, "high": float(np.clip(high, 2, 8))}


def hexadecimal(name: str) -> str:
    """A colour map as 256 times six hexadecimal digits."""
    return lookup_table(name).tobytes().hex()
