"""What the templates show."""

from collections.abc import Sequence
from typing import Any

from overfocus.figures.style import model_colour
from overfocus.metrics.catalogue import CATALOGUE, HEADINGS
from overfocus.variants import Variant
from overfocus_reports.figures import Figures
from overfocus_reports.how_to_read import Reading, reading_of
from overfocus_reports.model import Model
from overfocus_reports.payload import is_labelled, metrics_of
from overfocus_reports.provenance import checkpoint_rows, settings_rows, version_rows


def template_context(models: Sequence[Model], drawn: Figures, picked: Variant) -> dict[str, Any]:
    """For the templates; those of the parts that only a comparison has find `comparison` None."""
    readings = {metric: first_reading(models, metric) for metric in metrics_of(models)}
    grouped = {
        heading: [reading for metric, reading in readings.items() if CATALOGUE[metric].group == group]
        for group, heading in HEADINGS.items()
    }
    return {
        "title": models[0].name,
        "models": [shown_model(model, number) for number, model in enumerate(models)],
        "statistics": models[0].statistics,
        "displayed": models[0].run.displayed,
        "picked": picked,
        "groups": {heading: found for heading, found in grouped.items() if found},
        "stability": [readings[metric] for metric in drawn.grids],
        "figures": drawn,
        "classified": any(model.classified for model in models),
        "labelled": is_labelled(models),
        "segmented": any(model.run.segmented for model in models),
        "comparison": None,
    }


def first_reading(models: Sequence[Model], metric: str) -> Reading:
    """How a metric is read, with the numbers of the first model that has it."""
    statistics = next(model.statistics for model in models if metric in model.statistics.values)
    return reading_of(statistics, metric)


def shown_model(model: Model, number: int) -> dict[str, Any]:
    """One model: its summary and where it came from. `suffix` tells its elements' identifiers apart from the first one's."""
    return {
        "number": number,
        "suffix": f"-{number}" if number else "",
        "name": model.name,
        "colour": model_colour(number),
        "run": model.run,
        "summary": model.summary,
        "classified": model.classified,
        "checkpoint": checkpoint_rows(model.run),
        "settings": settings_rows(model.run),
        "versions": version_rows(model.run),
    }
