"""`overfocus list`: the names that other commands take, and what they mean."""

import sys
from fnmatch import fnmatch
from typing import Annotated

import typer

from overfocus.settings import did_you_mean, shown
from overfocus_cli.output import AsJson, cell, new_table, print_json

_HEADINGS = {"high": "a high value means"}


def list_names(
    what: Annotated[
        str, typer.Argument(metavar="models|corruptions|metrics", help="What to list.", autocompletion=lambda: list(_LISTED))
    ],
    pattern: Annotated[
        str,
        typer.Argument(metavar="PATTERN", help="Only names that contain this, or match it where it has a *.", show_default=False),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List the names of architectures, corruptions or metrics.

    Example: overfocus list models "deit*distilled*"
    """
    if what not in _LISTED:
        raise typer.BadParameter(f"expected {', '.join(_LISTED)}, got {shown(what)}{did_you_mean(what, _LISTED)}")
    rows = _LISTED[what]()
    names = [row["name"] for row in rows]
    rows = [row for row in rows if fnmatch(row["name"], pattern if "*" in pattern else f"*{pattern}*")]
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo(f"no {what} match {shown(pattern)}{did_you_mean(pattern, names)}")
    elif what == "models":
        typer.echo("\n".join(row["name"] for row in rows))
    else:
        _print_table(rows)


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


_LISTED = {"models": _models, "corruptions": _corruptions, "metrics": _metrics}


def _print_table(rows: list[dict[str, str]]) -> None:
    from rich.console import Console

    table = new_table(None, [_HEADINGS.get(column, column) for column in rows[0]], [])
    for column, name in zip(table.columns, rows[0], strict=True):
        column.no_wrap = name in ("name", "group")
    for row in rows:
        table.add_row(*map(cell, row.values()))
    Console(file=sys.stdout).print(table)
