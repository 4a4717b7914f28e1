"""`overfocus list`: the names that other commands take, and what they mean."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from overfocus_cli.options import AsJson

_HEADINGS = {"high": "a high value means"}


class Listed(StrEnum):
    """What can be listed."""

    MODELS = "models"
    CORRUPTIONS = "corruptions"
    METRICS = "metrics"


def list_names(
    what: Annotated[Listed, typer.Argument(metavar="WHAT", help="models, corruptions or metrics", show_default=False)],
    pattern: Annotated[
        str,
        typer.Argument(metavar="PATTERN", help="Only names that contain this, or match it where it has a *.", show_default=False),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List what has a name: architectures, corruptions, metrics.

    Example: overfocus list models "deit*distilled*"
    """
    rows = {Listed.MODELS: _models, Listed.CORRUPTIONS: _corruptions, Listed.METRICS: _metrics}[what]()
    rows = [row for row in rows if _fits(row["name"], pattern)]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
    elif not rows:
        typer.echo(f"no {what} fit {pattern!r}")
    elif what is Listed.MODELS:
        typer.echo("\n".join(row["name"] for row in rows))
    else:
        _print_table(rows)


def _fits(name: str, pattern: str) -> bool:
    from fnmatch import fnmatch

    return fnmatch(name, pattern if "*" in pattern else f"*{pattern}*")


def _models() -> list[dict[str, str]]:
    from overfocus.checkpoints.index import index_names

    return [{"name": name} for name in sorted(index_names())]


def _corruptions() -> list[dict[str, str]]:
    from overfocus.corruptions import CORRUPTIONS, GROUPS

    return [
        {"name": name, "groups": ", ".join(group for group, names in GROUPS.items() if name in names)} for name in CORRUPTIONS
    ]


def _metrics() -> list[dict[str, str]]:
    from overfocus.metrics.catalogue import CATALOGUE

    return [
        {
            "name": metric.name,
            "group": metric.group,
            "range": f"{metric.lowest} … {metric.highest}" + (f" {metric.unit}" if metric.unit != "1" else ""),
            "high": metric.high,
        }
        for metric in CATALOGUE.values()
    ]


def _print_table(rows: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in rows[0]:
        table.add_column(_HEADINGS.get(column, column), no_wrap=column in ("name", "group"))
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
