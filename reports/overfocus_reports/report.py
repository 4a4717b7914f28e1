"""Draws reports: report.html, one file that loads nothing and opens offline, and figures beside it."""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from overfocus.errors import RunError, explain
from overfocus.figures.images import LOWEST
from overfocus.figures.style import DIFFERENCE, SEQUENTIAL, model_colour
from overfocus.files import atomic_file, remove_unfinished
from overfocus.metrics.catalogue import CATALOGUE, HEADINGS
from overfocus.statistics.verdicts import decimal
from overfocus.text import visible
from overfocus.variants import Variant
from overfocus_reports.displayed import matrices_of
from overfocus_reports.figures import Figures, draw_figures, draw_images, line_keys, pair_of
from overfocus_reports.model import Model, first_picked, shared_runs
from overfocus_reports.payload import (
    hexadecimal,
    images_payload,
    is_labelled,
    layers_payload,
    metrics_of,
    model_payload,
    shared_payload,
)
from overfocus_reports.sections import (
    Reading,
    ablation_parts,
    ablation_tables,
    checkpoint_rows,
    differences_payload,
    fragility_part,
    heads_part,
    reading_of,
    settings_rows,
    version_rows,
)
from overfocus_reports.sentences import percent, verdict_line

if TYPE_CHECKING:
    from overfocus.results.ablation import Ablation
    from overfocus.results.comparison import Comparison
    from overfocus.run import Run


STYLES = ("base.css", "controls.css", "panels.css", "explorer.css", "segmentation.css", "comparison.css", "print.css")
SCRIPTS = (
    "data.js", "state.js", "colour.js", "decode.js", "download.js", "tables.js", "pickers.js", "curves.js", "heatmaps.js",
    "tokens.js", "canvas.js", "explorer.js", "token_listening.js", "side.js", "matrix.js", "gallery.js", "segmentation.js",
    "segmentation_download.js", "predictions.js", "differences.js", "theme.js", "start.js",
)  # fmt: skip
"""In the order of the page."""


def render(context: dict[str, Any], payload: dict[str, Any]) -> str:
    """The page from what the templates show and what the script works on."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("overfocus_reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "short": short, "value": exact}
    script = "(() => {\n'use strict';\n" + "\n".join(asset(name) for name in SCRIPTS) + "\n})();"
    page = environment.get_template("page.html.jinja").render(
        **context,
        style=Markup("\n".join(asset(name) for name in STYLES)),
        script=Markup(script),
        policy=policy(script),
        data=Markup(json_for_html(payload)),
    )
    return visible(page)


def asset(name: str) -> str:
    """A file of the folder assets."""
    return resources.files("overfocus_reports").joinpath("assets", name).read_text(encoding="utf-8")


def policy(script: str) -> str:
    """A content-security policy under which the page loads nothing and runs only this one script, identified by its hash."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def json_for_html(payload: object) -> str:
    """JSON that can stand inside a `<script>` element, whatever names it holds; every character of these visible."""
    text = json.dumps(_visible_names(payload), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _visible_names(part: Any) -> Any:
    if isinstance(part, str):
        return visible(part)
    if isinstance(part, Mapping):
        return {_visible_names(key): _visible_names(value) for key, value in part.items()}
    return [_visible_names(value) for value in part] if isinstance(part, list | tuple) else part


def short(value: object) -> str:
    """A cell of a table for people: three places of a number (two digits of a tiny one), a dash for none."""
    if isinstance(value, float):
        tiny = 0 < abs(value) < 0.0005
        return f"{value:.1e}".replace("e-0", "e-").replace("-", "−") if tiny else decimal(value)
    return "–" if value is None else str(value)


def exact(value: object) -> str:
    """A cell of a table for sorting and for CSV."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else str(value)


def template_context(models: Sequence[Model], drawn: Figures, picked: Variant, high: float) -> dict[str, Any]:
    """Values for the templates; `comparison` is None for parts that only a comparison has. `high` ends the colour scale."""
    heads = [part for number, model in enumerate(models) if (part := heads_part(model.run, number))]
    readings = {metric: first_reading(models, metric) for metric in metrics_of(models)}
    grouped = {
        heading: [reading for metric, reading in readings.items() if CATALOGUE[metric].group == group]
        for group, heading in HEADINGS.items()
    }
    return {
        "title": models[0].name,
        "models": [shown_model(model, number) | {"pair": pair_of(model, high)} for number, model in enumerate(models)],
        "heads": heads,
        "head_tables": {part["name"]: part["table"] for one in heads for part in one["maps"]},
        "statistics": models[0].statistics,
        "line_keys": line_keys(models[0]),
        "displayed": models[0].run.displayed,
        "picked": picked,
        "groups": {heading: found for heading, found in grouped.items() if found},
        "stability": [readings[metric] for metric in drawn.grids],
        "figures": drawn,
        "classified": any(model.classified for model in models),
        "labelled": is_labelled(models),
        "segmented": any(model.run.segmented for model in models),
        "comparison": None,
        "ablations": [],
    }


def first_reading(models: Sequence[Model], metric: str) -> Reading:
    """How a metric is read, with the numbers of the first model that has it."""
    statistics = next(model.statistics for model in models if metric in model.statistics.values)
    return reading_of(statistics, metric)


def shown_model(model: Model, number: int) -> dict[str, Any]:
    """One model: its summary and where it came from. `suffix` distinguishes its elements' identifiers from the first one's."""
    return {
        "number": number,
        "suffix": f"-{number}" if number else "",
        "name": model.name,
        "colour": model_colour(number),
        "run": model.run,
        "summary": model.summary,
        "classified": model.classified,
        "checkpoint": checkpoint_rows(model.run.description),
        "settings": settings_rows(model.run.description),
        "versions": version_rows(model.run.description),
    }


PAGE_MEGABYTES = 3.0
"""What the page is meant to weigh with up to eight displayed images; each further one adds an eighth."""
MODEL_MEGABYTES = 1.5
"""What each further model adds."""
SEGMENTED_MEGABYTES = 5.0
"""What images and class maps of segmentation add, large as they are."""
IMAGES_SHARE = 0.35
"""Of the room that images and attention matrices have together."""
SEGMENTED_SHARE = 0.85
"""The same for segmentation, whose attention matrices are too large to be kept."""


def draw_report(run: "Run", *, megabytes: float | None = None) -> Path:
    """Write figures/*.png and report.html into the run's folder and return the path of the page.

    `megabytes` is what the page may weigh, by default 3, and 8 for segmentation: the images and attention matrices in it are
    as fine as that allows.

    Raises:
        RunError: the run holds no results yet or no attention, or its folder cannot be written.
    """
    if not run.measured:
        raise RunError(
            f"{run.path}: this run measured predictions only, so there is no attention to draw; `overfocus compare` compares it"
        )
    models = [Model(run, run.model)]
    return write_page(models, run.path, room_of(models) if megabytes is None else megabytes, {}, {})


def room_of(models: Sequence[Model]) -> float:
    """Megabytes that a page may weigh by default."""
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
    try:
        remove_unfinished(path)
        with atomic_file(page) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise unwritable(path, error) from error
    return page


def unwritable(path: Path, error: OSError) -> RunError:
    """The one line that says so."""
    return RunError(f"{path}: the report cannot be written there ({explain(error)})")


def page_of(models: Sequence[Model], folder: Path, room: int, context: dict[str, Any], payload: dict[str, Any]) -> str:
    """The page, in about `room` characters; figures go into `folder`."""
    picked = first_picked(models)
    shared = shared_payload(models, picked)
    drawn = draw_figures(models, picked, folder)
    draw_images(models, picked, folder, shared["scale"]["high"])
    parts = [model_payload(model) for model in models]
    payload = shared | {"models": parts, "images": images_payload(models, parts)} | payload
    context = template_context(models, drawn, picked, shared["scale"]["high"]) | context
    payload |= {"figureTables": context.pop("head_tables") | payload.get("figureTables", {})}
    spent = len(render(context, payload))
    share = SEGMENTED_SHARE if context["segmented"] else IMAGES_SHARE
    images(models, parts, round(share * (room - spent)))
    spent += sum(len(json_for_html(part["pictures"])) for part in parts)
    for model, part in zip(models, parts, strict=True):
        matrices = matrices_of(model.displayed, max(0, room - spent) // len(models))
        part |= layers_payload(model, matrices.described) | {"matrices": matrices.encoded}
    return render(context, payload)


def images(models: Sequence[Model], parts: Sequence[dict[str, Any]], room: int) -> None:
    """Add the images to each model's part; those of a model that saw exactly the pixels of the first are stored once."""
    different = [model for model in models[1:] if not model.displayed.same_images(models[0].displayed)]
    for model, part in zip(models, parts, strict=True):
        own = model is models[0] or model in different
        part["pictures"] = model.displayed.images(room // (1 + len(different))) if own else None


def draw_comparison(comparison: "Comparison", ablations: "Sequence[Ablation]" = (), *, megabytes: float | None = None) -> Path:
    """Write figures/*.png and report.html into the comparison's folder and return the path of the page.

    `megabytes` is what the page may weigh with up to eight displayed images; by default 3, 1.5 for each model after the first
    and 5 for each segmentation model. Runs without attention (of `overfocus evaluate`) are compared by their predictions only.

    Raises:
        RunError: the comparison has no folder, or it cannot be written.
    """
    path = comparison.path
    if path is None:
        raise RunError("the comparison has no folder for its report; give Comparison(…, path=…) one")
    measured = [(run, name) for run, name in zip(comparison.runs, comparison.names, strict=True) if run.measured]
    models = [Model(run, name) for run, (_, name) in zip(shared_runs([run for run, _ in measured]), measured, strict=True)]
    colours = {name: model_colour(number) for number, name in enumerate(comparison.names)}
    folder = path / "figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fragility = fragility_part(comparison, colours, folder)
        ablated = ablation_parts(ablations, folder)
    except OSError as error:
        raise unwritable(path, error) from error
    verdicts = []
    for model in comparison.names[1:]:
        found = [verdict for verdict in comparison.verdicts if verdict.model == model]
        same = model in comparison.identical
        line = verdict_line(model, found, comparison.baseline, identical=same)
        verdicts.append({"model": model, "line": line, "verdicts": [] if same else found})
    context = {
        "title": " against ".join([", ".join(comparison.names[1:]), comparison.names[0]]),
        "comparison": {
            "images": len(comparison.images),
            "baseline": comparison.baseline,
            "verdicts": verdicts,
            "rule": comparison.rule,
            "notes": comparison.notes,
            "colours": colours,
            "controlled": comparison.controlled,
            "fragility": fragility,
        },
        "ablations": ablated,
    }
    payload = {
        "differences": differences_payload(comparison.table, colours),
        "figureTables": ablation_tables(ablated) | ({"reliability": fragility["table"]} if fragility else {}),
    }
    if models:
        room = room_of(models) if megabytes is None else megabytes
        return write_page(models, path, room, context, payload)
    return write_text(path, render(without_models() | context, bare_payload() | payload))


def draw_ablation(ablation: "Ablation") -> Path:
    """Write figures/ablation-0.png and report.html into the ablation's folder and return the path of the page.

    Raises:
        RunError: the folder cannot be written.
    """
    folder = ablation.path / "figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        parts = ablation_parts([ablation], folder)
    except OSError as error:
        raise unwritable(ablation.path, error) from error
    context: dict[str, Any] = {"title": f"{parts[0]['title']}, patches {'removed' if parts[0]['removed'] else 'corrupted'}"}
    context |= {"comparison": None, "ablations": parts}
    return write_text(
        ablation.path, render(without_models() | context, bare_payload() | {"figureTables": ablation_tables(parts)})
    )


def without_models() -> dict[str, Any]:
    """What the templates need where no run measured attention."""
    return {"models": [], "statistics": None, "stability": [], "classified": True, "labelled": True, "segmented": False}


def bare_payload() -> dict[str, Any]:
    """What the script needs then."""
    return {
        "models": [],
        "variants": [],
        "displayed": [],
        "shown": [],
        "scale": {"low": LOWEST, "high": 4.0},
        "colours": {"sequential": hexadecimal(SEQUENTIAL), "difference": "".join(DIFFERENCE).replace("#", "")},
    }
