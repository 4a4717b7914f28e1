"""`overfocus report`: draw the figures and the page again from a saved run or comparison."""

import json
from pathlib import Path
from typing import Annotated

import typer

from overfocus_cli.hints import require_run
from overfocus_cli.output import AsJson


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER…", help="What `overfocus analyze`, `compare` or `ablate` wrote.", show_default=False),
    ],
    ablation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="What `overfocus ablate` wrote, to show with a comparison; repeatable.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the report of saved runs, comparisons and ablations again.

    Writes figures and report.html into each folder; neither the models nor the images are needed.

    Example: overfocus report overfocus-run/*
    """
    drawn = [str(_drawn(folder, ablation or [])) for folder in folders]
    typer.echo(json.dumps(drawn, indent=2) if as_json else "\n".join(drawn))


def _drawn(folder: Path, ablations: list[Path]) -> Path:
    require_run(folder)
    from overfocus.results.ablation import Ablation
    from overfocus.results.comparison import is_comparison, read_comparison
    from overfocus.run import Run
    from overfocus_reports import draw_ablation, draw_comparison, draw_report

    if is_comparison(folder):
        return draw_comparison(read_comparison(folder), [Ablation(path) for path in ablations])
    run = Run(folder)
    return draw_ablation(Ablation(folder)) if run.description.kind == "ablation" else draw_report(run)
