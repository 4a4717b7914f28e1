"""`overfocus report`: draw the pictures and the page again from a saved run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from overfocus_cli.options import AsJson


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders that `overfocus analyze` wrote.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Draw the report of a saved run again.

    Writes figures and report.html into the run's folder; neither the model nor the images are needed.

    Example: overfocus report overfocus-run/*
    """
    from overfocus.run import Run
    from overfocus_reports import draw_report

    drawn = [str(draw_report(Run(path))) for path in runs]
    typer.echo(json.dumps(drawn, indent=2) if as_json else "\n".join(drawn))
