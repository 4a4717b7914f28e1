"""Draws the report of a run: report.html, one file that opens offline, and figures/*.png beside it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.errors import RunError
from overfocus_reports.context import template_context
from overfocus_reports.figures import draw_figures, draw_images
from overfocus_reports.matrices import matrices_of
from overfocus_reports.model import Model, first_picked
from overfocus_reports.page import json_for_html, render
from overfocus_reports.payload import images_payload, layers_payload, model_payload, shared_payload

if TYPE_CHECKING:
    from overfocus.run import Run

PAGE_MEGABYTES = 3.0
"""What the page is meant to weigh with up to eight displayed images; each further one adds an eighth."""
MODEL_MEGABYTES = 1.5
"""What each further model adds."""
SEGMENTED_MEGABYTES = 5.0
"""What pictures and class maps of segmentation add, large as they are."""
PICTURES_SHARE = 0.35
"""Of the room that pictures and attention matrices have together."""
SEGMENTED_SHARE = 0.85
"""The same for segmentation, whose attention matrices are too large to be kept."""


def draw_report(run: "Run", *, megabytes: float | None = None) -> Path:
    """Write figures/*.png and report.html into the run's folder and return the path of the page.

    `megabytes` is what the page may weigh, by default 3, and 8 for segmentation: the pictures and attention matrices in it are
    as fine as that allows.

    Raises:
        RunError: the run holds no results yet or no attention, or its folder cannot be written.
    """
    if not len(run.table):
        raise RunError(
            f"{run.path}: this run measured predictions only, so there is no attention to draw; `overfocus compare` compares it"
        )
    models = [Model(run, run.model)]
    return write_page(models, run.path, room_of(models) if megabytes is None else megabytes, {}, {})


def room_of(models: Sequence[Model]) -> float:
    """Megabytes that a page may weigh unless told."""
    segmented = sum(model.run.segmented for model in models)
    return PAGE_MEGABYTES + MODEL_MEGABYTES * (len(models) - 1) + SEGMENTED_MEGABYTES * segmented


def write_page(models: Sequence[Model], path: Path, megabytes: float, context: dict[str, Any], payload: dict[str, Any]) -> Path:
    """Write figures and page into the folder `path`; `context` and `payload` are what a comparison adds.

    Raises:
        RunError: the folder cannot be written.
    """
    folder = path / "figures"
    room = round(1e6 * megabytes * max(1.0, len(models[0].run.displayed) / 8))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = page_of(models, folder, room, context, payload)
    except OSError as error:
        raise unwritable(path, error) from error
    return write_text(path, text)


def write_text(path: Path, text: str) -> Path:
    """Write the page into the folder `path`, whole or not at all, and return its path.

    Raises:
        RunError: it cannot be written.
    """
    page = path / "report.html"
    unfinished = page.with_name(f".{page.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(page)
    except OSError as error:
        raise unwritable(path, error) from error
    return page


def unwritable(path: Path, error: OSError) -> RunError:
    """The one line that says so."""
    return RunError(f"{path}: the report cannot be written there ({error.strerror or error}); check space and rights")


def page_of(models: Sequence[Model], folder: Path, room: int, context: dict[str, Any], payload: dict[str, Any]) -> str:
    """The page, in about `room` characters; figures go into `folder`."""
    picked = first_picked(models)
    shared = shared_payload(models, picked)
    drawn = draw_figures(models, picked, folder)
    draw_images(models, picked, folder, shared["scale"]["high"])
    parts = [model_payload(model) for model in models]
    payload = shared | {"models": parts, "images": images_payload(models, parts)} | payload
    context = template_context(models, drawn, picked) | context
    spent = len(render(context, payload))
    share = SEGMENTED_SHARE if context["segmented"] else PICTURES_SHARE
    pictures(models, parts, round(share * (room - spent)))
    spent += sum(len(json_for_html(part["pictures"])) for part in parts)
    for model, part in zip(models, parts, strict=True):
        matrices = matrices_of(model.displayed, max(0, room - spent) // len(models))
        part |= layers_payload(model, matrices.described) | {"matrices": matrices.encoded}
    return render(context, payload)


def pictures(models: Sequence[Model], parts: Sequence[dict[str, Any]], room: int) -> None:
    """Add the pictures to each model's part; those of a model that saw the very pixels of the first stand once."""
    different = [model for model in models[1:] if not model.displayed.same_pictures(models[0].displayed)]
    for model, part in zip(models, parts, strict=True):
        own = model is models[0] or model in different
        part["pictures"] = model.displayed.pictures(room // (1 + len(different))) if own else None
