"""Draws the report of a run: report.html, one file that opens offline, and figures/*.png beside it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.errors import RunError
from overfocus.figures.layer_statistics import LayerStatistics, layer_statistics
from overfocus.figures.variants import CLEAN, Variant, middle_severity
from overfocus.figures.wording import GROUPS
from overfocus.metrics.catalogue import CATALOGUE
from overfocus_reports.displayed import Displayed
from overfocus_reports.extremes import image_values
from overfocus_reports.figures import Figures, draw_figures, draw_images
from overfocus_reports.gallery import gallery
from overfocus_reports.how_to_read import reading_of
from overfocus_reports.matrices import matrices_of
from overfocus_reports.page import json_for_html, render
from overfocus_reports.payload import attention_scale, images_payload, layers_payload, statistics_payload, worst_payload
from overfocus_reports.predictions import predictions
from overfocus_reports.provenance import checkpoint_rows, settings_rows, version_rows
from overfocus_reports.summary import Summary, summarise

if TYPE_CHECKING:
    from overfocus.run import Run

PAGE_MEGABYTES = 3.0
"""What the page is meant to weigh with up to eight displayed images; each further one adds an eighth."""

PICTURES_SHARE = 0.35
"""Of the room that pictures and attention matrices have together."""


def draw_report(run: "Run", *, megabytes: float = PAGE_MEGABYTES) -> Path:
    """Write figures/*.png and report.html into the run's folder and return the path of the page.

    `megabytes` is what the page may weigh: the pictures and attention matrices in it are as fine as that allows.

    Raises:
        RunError: the run holds no results yet, or its folder cannot be written.
    """
    folder = run.path / "figures"
    page = run.path / "report.html"
    try:
        folder.mkdir(exist_ok=True)
        text = page_of(run, folder, round(1e6 * megabytes * max(1.0, len(run.displayed) / 8)))
        unfinished = page.with_name(f".{page.name}.{os.getpid()}.unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(page)
    except OSError as error:
        raise RunError(
            f"{run.path}: the report cannot be written there ({error.strerror or error}); check space and rights"
        ) from error
    return page


def page_of(run: "Run", folder: Path, room: int) -> str:
    """The page, in about `room` characters; figures go into `folder`."""
    summary, statistics = summarise(run), layer_statistics(run)
    variants = statistics.variants
    picked = first_picked(variants)
    displayed = Displayed(run, statistics.layers, variants)
    focus = summary.ranked[0].layer if summary.ranked else statistics.layers[0]
    values = image_values(run, variants, statistics.layers)
    scale = attention_scale(displayed)
    drawn = draw_figures(statistics, picked, folder)
    draw_images(displayed, picked, focus, folder, scale["high"])
    payload: dict[str, Any] = statistics_payload(statistics, picked) | {
        "model": summary.model,
        "focus": statistics.layers.index(focus),
        "displayed": run.displayed,
        "shown": displayed.shown,
        "scale": scale,
        "sheets": displayed.sheets(),
        "worst": worst_payload(values, run.displayed),
        "gallery": gallery(run, displayed, values, focus),
        "predictions": predictions(run, variants, values, run.displayed),
    }
    payload["images"] = images_payload(run, mentioned(payload))
    known = {
        "classified": bool(run.predictions["predicted"].notna().any()),
        "labelled": any(entry["label"] is not None for entry in run.images),
    }
    payload |= known
    context = template_context(run, summary, statistics, drawn, picked) | known
    spent = len(render(context, payload))
    payload["pictures"] = displayed.pictures(round(PICTURES_SHARE * (room - spent)))
    spent += len(json_for_html(payload["pictures"]))
    matrices = matrices_of(displayed, max(0, room - spent))
    payload |= layers_payload(statistics, run.partitions, matrices.described) | {"matrices": matrices.encoded}
    return render(context, payload)


def template_context(
    run: "Run", summary: Summary, statistics: LayerStatistics, drawn: Figures, picked: Variant
) -> dict[str, Any]:
    """What the templates show."""
    readings = {metric: reading_of(statistics, metric) for metric in statistics.metrics}
    grouped = {
        heading: [readings[metric] for metric in statistics.metrics if CATALOGUE[metric].group in group.split(", ")]
        for group, heading in GROUPS.items()
    }
    return {
        "run": run,
        "summary": summary,
        "statistics": statistics,
        "picked": picked,
        "groups": {heading: found for heading, found in grouped.items() if found},
        "stability": [readings[metric] for metric in drawn.matrices],
        "figures": drawn,
        "checkpoint": checkpoint_rows(run),
        "settings": settings_rows(run),
        "versions": version_rows(run),
    }


def first_picked(variants: list[Variant]) -> Variant:
    """What the page shows first: the first corruption at its middle severity; the clean version where there is no other."""
    if len(variants) == 1:
        return CLEAN
    first = variants[1].corruption
    return Variant(first, middle_severity([variant.severity for variant in variants if variant.corruption == first]))


def mentioned(payload: dict[str, Any]) -> set[int]:
    """Numbers of the images that the page names."""
    found = set(payload["displayed"]) | set(payload["predictions"]["images"])
    for worst in payload["worst"].values():
        found |= {image for row in worst["image"] for image in row}
    for both in payload["gallery"]["items"].values():
        found |= {item["image"] for end in both for item in end}
    return found
