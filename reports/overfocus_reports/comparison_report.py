"""Draws the report of a comparison: the page of a run with several models, and what only a comparison says."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.errors import RunError
from overfocus.figures.overlay import LOWEST
from overfocus.figures.style import DIFFERENCE, SEQUENTIAL, model_colour
from overfocus_reports.ablations import ablation_parts
from overfocus_reports.differences import differences_payload
from overfocus_reports.fragility import fragility_part
from overfocus_reports.model import Model
from overfocus_reports.page import render
from overfocus_reports.payload import hexadecimal
from overfocus_reports.report import room_of, unwritable, write_page, write_text
from overfocus_reports.shared_run import shared_runs

if TYPE_CHECKING:
    from overfocus.ablation.ablation import Ablation
    from overfocus.results.comparison import Comparison


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
    measured = [(run, name) for run, name in zip(comparison.runs, comparison.names, strict=True) if len(run.table)]
    models = [Model(run, name) for run, (_, name) in zip(shared_runs([run for run, _ in measured]), measured, strict=True)]
    colours = {name: model_colour(number) for number, name in enumerate(comparison.names)}
    folder = path / "figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fragility = fragility_part(comparison, colours, folder)
        ablated = ablation_parts(ablations, folder)
    except OSError as error:
        raise unwritable(path, error) from error
    verdicts = {model: [verdict for verdict in comparison.verdicts if verdict.model == model] for model in comparison.names[1:]}
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
            "ablations": ablated,
        },
    }
    payload = {
        "differences": differences_payload(comparison.table, colours),
        "figureTables": {part["figure_name"]: [part["columns"], *part["rows"]] for part in ablated}
        | ({"reliability": fragility["table"]} if fragility else {}),
    }
    if models:
        room = room_of(models) if megabytes is None else megabytes
        return write_page(models, path, room, context, payload)
    return write_text(path, render(without_models() | context, bare_payload() | payload))


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
