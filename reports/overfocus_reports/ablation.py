"""The part of a page that shows ablations: what predictions lose without the most attended patches, beside the controls."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.figures.ablation import ablation_figure, usual_score
from overfocus.figures.style import save_figure, styled
from overfocus.metrics.catalogue import title_of
from overfocus.run import distinct_names
from overfocus_reports.figures import inline_svg
from overfocus_reports.sections import checkpoint_rows, settings_rows, version_rows

if TYPE_CHECKING:
    import pandas as pd

    from overfocus.results.ablation import Ablation


def ablation_parts(ablations: "Sequence[Ablation]", folder: Path) -> list[dict[str, Any]]:
    """For the template, one per ablation; ablation-<number>.png of each goes into `folder` too."""
    titles = distinct_names(
        [ablation.model for ablation in ablations],
        [ablation.description.checkpoint.source for ablation in ablations],
        [ablation.path.absolute().name for ablation in ablations],
    )
    return [
        _part(ablation, title, f"ablation-{number}", folder)
        for number, (ablation, title) in enumerate(zip(ablations, titles, strict=True))
    ]


def figure_tables(parts: Sequence[dict[str, Any]]) -> dict[str, list[list[Any]]]:
    """The numbers behind each figure, for the page's script."""
    return {part["name"]: [part["tables"][0]["columns"], *part["tables"][0]["rows"]] for part in parts}


def _part(ablation: "Ablation", title: str, name: str, folder: Path) -> dict[str, Any]:
    done = "removed" if ablation.how == "remove" else "corrupted"
    description = ablation.description
    with styled():
        figure = ablation_figure(ablation.table, ablation.differences, ablation.how)
        save_figure(figure, folder / f"{name}.png")
        svg = inline_svg(figure, name, f"{title_of(usual_score(ablation.table))} when patches are {done}, {title}")
    return {
        "name": name,
        "title": title,
        "images": ablation.images,
        "answers": ablation.answers,
        "removed": ablation.how == "remove",
        "lenient": description.checkpoint.lenient,
        "notes": [*description.checkpoint.notes, *description.notes],
        "skipped": description.skipped,
        "figure": svg,
        "tables": [
            _table(f"{name}-table", "Means over images", ablation.table),
            _table(f"{name}-differences", "The most attended patches minus each other choice", ablation.differences),
        ],
        "about": {
            "Checkpoint": checkpoint_rows(description),
            "Settings": settings_rows(description),
            "Versions and time": version_rows(description),
        },
    }


def _table(name: str, title: str, table: "pd.DataFrame") -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "columns": [str(column).replace("_", " ") for column in table.columns],
        "rows": table.astype(object).where(table.notna(), None).to_numpy().tolist(),
    }
