"""The commands that look something up: `overfocus inspect`, `check` and `list`."""

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import typer

from overfocus.errors import RunError
from overfocus.limits import CheckSettings
from overfocus.settings import Settings, did_you_mean, setting, shown
from overfocus.sweep.settings import InspectSettings
from overfocus_cli.from_settings import from_settings
from overfocus_cli.output import AsJson, cell, new_table, print_json, say

if TYPE_CHECKING:
    from rich.table import Table

    from overfocus.limits import Limit

_SHOWN_KEYS = 5
_SHOWN_CLASSES = 10
_SHOWN_BROKEN = 10
"""Further rows that break a limit, in words."""
_HEADINGS = {"high": "a high value means"}


@from_settings(InspectSettings)
def inspect_checkpoint(settings: InspectSettings, *, as_json: AsJson = False) -> None:
    """Show what is in a checkpoint.

    The architecture and how it was found, the model's input, and every place that uses attention with its kind and shape.

    Example: overfocus inspect checkpoint.pth
    """
    from overfocus.inspection import inspect

    found = inspect(**settings.arguments())
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found.properties, found.attention, found.verification)
    if found.verification and not found.verification["passed"]:
        raise typer.Exit(1)


def _print(properties: dict[str, Any], sites: list[dict[str, Any]], verification: dict[str, Any] | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    channels, height, width = properties["input_size"]
    described = Table(box=None, show_header=False, pad_edge=False)
    described.add_column(style="bold")
    described.add_column(overflow="fold")
    for name, text in {
        "checkpoint": properties["source"],
        "architecture": f"{properties['architecture']}, found by: {properties['found_by']}",
        "weights": properties["weights_entry"],
        "parameters": f"{properties['parameters']:,}",
        "input": f"{channels} × {height} × {width}, mean {_rounded(properties['mean'])}, "
        f"standard deviation {_rounded(properties['std'])}, "
        f"{properties['interpolation']}, crop {properties['crop_pct']:g}",
        "classes": _classes(properties["num_classes"], properties["class_names"]),
        "sha256": f"{properties['sha256'][:16]}…" if properties["sha256"] else "none: not loaded from one file",
        "missing keys": _keys(properties["missing_keys"]),
        "unexpected keys": _keys(properties["unexpected_keys"]),
    }.items():
        described.add_row(name, cell(text, 2000))
    for note in properties["notes"]:
        described.add_row("note", cell(note, 2000))
    console.print(described)

    console.print()
    console.print(_sites_table(sites))
    if verification:
        console.print()
        console.print(_verification_table(verification["sites"]))
        identical = "identical to the bit" if verification["identical"] else f"different by {verification['difference']:.1e}"
        console.print(f"the model's result with capture and without: {identical}")
        console.print(f"verified: {'yes' if verification['passed'] else 'no'}")


def _sites_table(sites: list[dict[str, Any]]) -> "Table":
    from rich.table import Table

    windowed = any(site["windows"] > 1 for site in sites)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("site", "kind", "heads", "queries × keys", "prefix", "grid", *(["windows"] if windowed else []), "captured"):
        table.add_column(heading, no_wrap=heading != "captured")
    for site in sites:
        shape: tuple[int, ...] = tuple(site["shape"] or ())
        heads = str(shape[1]) if len(shape) == 4 else ""
        table.add_row(
            cell(f"{site['module']} ({site['branch']})" if site["branch"] else site["module"]),
            site["kind"] or "",
            heads,
            " × ".join(map(str, shape[-2:])),
            str(site["prefix_tokens"]),
            "×".join(map(str, site["grid"])) if site["grid"] else "",
            *([str(site["windows"])] if windowed else []),
            cell(_captured(site)),
        )
    return table


def _captured(site: dict[str, Any]) -> str:
    if not site["captured"]:
        return f"no: {site['reason']}"
    return f"yes; {site['note']}" if site.get("note") else "yes"


def _verification_table(sites: list[dict[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("site", "kind", "weights × values: largest error", "row sums: largest error", "passed"):
        table.add_column(heading, no_wrap=heading in ("site", "kind"))
    for site in sites:
        rows = "not softmax rows" if site["row_error"] is None else f"{site['row_error']:.1e}"
        passed = "yes" if site["passed"] else "no"
        table.add_row(cell(site["module"]), site["kind"], f"{site['output_error']:.1e}", rows, passed)
    return table


def _rounded(numbers: list[float]) -> str:
    return " ".join(f"{number:.3f}" for number in numbers)


def _classes(count: int, names: list[str] | None) -> str:
    if not count:
        return "none: the model gives features"
    shown = ", ".join(name.partition(",")[0] for name in (names or [])[:_SHOWN_CLASSES])
    shown += ", …" if len(names or []) > _SHOWN_CLASSES else ""
    return f"{count}: {shown}" if shown else str(count)


def _keys(keys: list[str]) -> str:
    if not keys:
        return "none"
    return f"{len(keys)}: {', '.join(keys[:_SHOWN_KEYS])}{', …' if len(keys) > _SHOWN_KEYS else ''}"


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
            say(f"{'ok  ' if limit.kept else 'FAIL'}  {limit.sentence}")
            for other in limit.others[:_SHOWN_BROKEN]:
                say(f"      {other.sentence}")
            if len(limit.others) > _SHOWN_BROKEN:
                say(f"      and {len(limit.others) - _SHOWN_BROKEN} more; --json lists all")
    if broken:
        raise typer.Exit(1)


def _row(limit: "Limit") -> dict[str, Any]:
    value = None if math.isnan(limit.value) else limit.value
    others = [_row(other) for other in limit.others]
    return dataclasses.asdict(dataclasses.replace(limit, others=())) | {"value": value, "kept": limit.kept, "others": others}


@dataclass(frozen=True)
class ListSettings(Settings):
    """What `overfocus list` takes."""

    what: str = setting(
        help="models, corruptions or metrics.", argument=True, metavar="KIND", one_of=("models", "corruptions", "metrics")
    )
    pattern: str | None = setting(
        None, "Only names that contain this, or match it where it has a *.", none="all", argument=True, metavar="PATTERN"
    )


@from_settings(ListSettings)
def list_names(settings: ListSettings, *, as_json: AsJson = False) -> None:
    """List the names of architectures, corruptions or metrics.

    Example: overfocus list models "deit*distilled*"
    """
    what, pattern = settings.what, settings.pattern or ""
    rows = _LISTED[what]()
    names = [row["name"] for row in rows]
    rows = [row for row in rows if fnmatch(row["name"], pattern if "*" in pattern else f"*{pattern}*")]
    if not rows:
        raise RunError(f"no {what} match {shown(pattern)}; overfocus list {what} shows all{did_you_mean(pattern, names)}")
    if as_json:
        print_json(rows)
    elif what == "models":
        say("\n".join(row["name"] for row in rows))
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


_LISTED: dict[str, Callable[[], list[dict[str, str]]]] = {"models": _models, "corruptions": _corruptions, "metrics": _metrics}


def _print_table(rows: list[dict[str, str]]) -> None:
    from rich.console import Console

    table = new_table(None, [_HEADINGS.get(column, column) for column in rows[0]], [])
    for column, name in zip(table.columns, rows[0], strict=True):
        column.no_wrap = name in ("name", "group")
    for row in rows:
        table.add_row(*map(cell, row.values()))
    Console(file=sys.stdout).print(table)
