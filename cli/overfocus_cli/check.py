"""`overfocus check`: whether a run keeps within limits, for continuous integration and model cards."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import typer

from overfocus.limits import CheckSettings
from overfocus_cli.from_settings import from_settings
from overfocus_cli.output import AsJson, print_json

if TYPE_CHECKING:
    from overfocus.limits import Limit

_SHOWN = 10
"""Further rows that break a limit, in words."""


@from_settings(CheckSettings)
def check(settings: CheckSettings, *, as_json: AsJson = False) -> None:
    """Check that a run keeps within limits; exit status 1 if not.

    What counts is the mean over images in the worst layer under the worst variant; an undefined value fails. Every layer and
    variant that fails is printed. What is retained of a metric of stability against the control is retained.METRIC.

    Example: overfocus check overfocus-run/vit-3f2a1c --max top_share=0.3 --min retained.js_divergence=0.5 --min agreement=0.8
    """
    from overfocus.limits import check as check_run

    limits = check_run(**settings.arguments())
    broken = [limit for limit in limits if not limit.kept]
    if as_json:
        print_json({"passed": not broken, "limits": [_row(limit) for limit in limits]})
    else:
        for limit in limits:
            typer.echo(f"{'ok  ' if limit.kept else 'FAIL'}  {limit.sentence}")
            for other in limit.others[:_SHOWN]:
                typer.echo(f"      {other.sentence}")
            if len(limit.others) > _SHOWN:
                typer.echo(f"      and {len(limit.others) - _SHOWN} more; --json lists all")
    if broken:
        raise typer.Exit(1)


def _row(limit: "Limit") -> dict[str, Any]:
    value = None if math.isnan(limit.value) else limit.value
    others = [_row(other) for other in limit.others]
    return dataclasses.asdict(dataclasses.replace(limit, others=())) | {"value": value, "kept": limit.kept, "others": others}
