"""What commands print: JSON, tables, and text from outside in them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overfocus.text import LONGEST_LINE, LONGEST_NAME, json_text, printable, shows_unicode

if TYPE_CHECKING:
    from rich.table import Table


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Ablations = Annotated[
    list[Path] | None,
    typer.Option(
        "--ablation",
        metavar="FOLDER",
        help="What `overfocus ablate` wrote, to show in the report of a comparison; repeatable.",
        show_default=False,
    ),
]


def print_json(value: Any) -> None:
    """Print JSON that can be read back whatever the terminal shows."""
    typer.echo(json_text(value, ascii_only=not shows_unicode(sys.stdout)))


def say(text: str) -> None:
    """Print lines for people, in which no name of a file acts on the terminal; `--json` says the names as they are."""
    typer.echo("\n".join(printable(line, LONGEST_LINE) for line in text.split("\n")))


def cell(text: object, limit: int = LONGEST_NAME) -> str:
    """Text from outside for a table or line of rich: printable, at most `limit` characters, and never read as markup."""
    from rich.markup import escape

    return escape(printable(text, limit))


def new_table(title: str | None, words: list[str], numbers: list[str], *, wrap: bool = False) -> "Table":
    """An empty table with columns of words, then of numbers, whose headings may be wrapped; the title is rich's markup."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    for heading in words:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=not wrap)
    return table
