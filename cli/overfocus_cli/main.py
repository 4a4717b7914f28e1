"""Where the program begins: the commands it has, and how trouble is told."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from overfocus.errors import OverfocusError
from overfocus.version import __version__
from overfocus_cli.ablate import ablate
from overfocus_cli.analyze import analyze
from overfocus_cli.compare import compare
from overfocus_cli.evaluate import evaluate
from overfocus_cli.figure import figure
from overfocus_cli.heatmap import heatmap
from overfocus_cli.inspect_checkpoint import inspect_checkpoint
from overfocus_cli.list_names import list_names
from overfocus_cli.report import report
from overfocus_cli.train import train

UsageError: Any = typer.BadParameter.__base__
"""click's class, which typer does not export and newer releases bring a copy of their own of."""


class OneLineErrors(TyperGroup):
    """A group that tells what went wrong in one line: exit status 1, 2 for wrong usage, or 130 after Ctrl-C."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Read the options that stand before the command."""
        with _one_line():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Read the rest and run the command; `ctx` is click's context, whose class differs between typer's releases."""
        with _one_line():
            return super().invoke(ctx)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except OverfocusError as error:
        _stop(str(error), 1, error)
    except KeyboardInterrupt as error:
        _stop("interrupted; the same command continues where it stopped", 130, error)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # what it prints is the help
            raise
        command = error.ctx.command_path if error.ctx else "overfocus"
        _stop(f"{error.format_message().rstrip('.')}; see {command} --help", 2, error)


def _stop(message: str, status: int, cause: BaseException) -> NoReturn:
    typer.echo(f"overfocus: {' '.join(message.split())}", err=True)
    raise typer.Exit(status) from cause


# rich would draw boxes around the help and take a third of its time
app = typer.Typer(
    name="overfocus",
    cls=OneLineErrors,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("analyze")(analyze)
app.command("compare")(compare)
app.command("ablate")(ablate)
app.command("report")(report)
app.command("inspect")(inspect_checkpoint)
app.command("figure")(figure)
app.command("heatmap")(heatmap)
app.command("train")(train)
app.command("evaluate")(evaluate)
app.command("list")(list_names)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"overfocus {__version__}")
        raise typer.Exit


@app.callback()
def overfocus(
    version: Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Show whether a Vision Transformer's attention hangs on a few fragile tokens.

    Example: overfocus analyze
    """


def run() -> None:
    """Entry point of the console script and of `python -m overfocus`."""
    # Threads of OpenMP that spin while they wait take the core from the processes that read and corrupt images, and on a
    # busy machine from each other; read when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.formatwarning = lambda message, *_: f"overfocus: warning: {' '.join(str(message).split())}\n"
    app()
