"""Where the program begins: the commands it has, and how problems are reported."""

import atexit
import gc
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from overfocus.errors import OverfocusError, explain
from overfocus.processes import end_in_order, is_main_process, reports_errors
from overfocus.settings import did_you_mean
from overfocus.text import make_streams_printable, one_line
from overfocus.version import __version__
from overfocus_cli.draw import curves, figure, heatmap, report
from overfocus_cli.look_up import check, inspect_checkpoint, list_names
from overfocus_cli.measure import ablate, analyze, compare, evaluate, train

UsageError: Any = typer.BadParameter.__base__
"""click's class, which typer does not export and newer releases bring a copy of their own of."""
_CONTINUED = ("analyze", "compare", "ablate", "evaluate", "train")
"""Commands that go on where they were interrupted."""


class OneLineErrors(TyperGroup):
    """A group that reports what went wrong in one line: exit status 1, 2 for wrong usage, 130 after Ctrl-C, 143 after SIGTERM.

    `--debug`, anywhere on the command line, or the variable OVERFOCUS_DEBUG lets tracebacks through.
    """

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **options: Any) -> Any:
        """Read the options that precede the command."""
        make_streams_printable()
        if not is_main_process():
            warnings.simplefilter("ignore")
        self._debug = bool(os.environ.get("OVERFOCUS_DEBUG"))
        options_end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:options_end]:
            self._debug = True
            args.remove("--debug")
        with _one_line("", debug=self._debug):
            _require_no_empty(args)
            return super().make_context(info_name, args, *more, **options)

    def invoke(self, ctx: Any) -> Any:
        """Read the rest and run the command; `ctx` is click's context, whose class differs between typer's releases."""
        named = getattr(ctx, "_protected_args", None) or getattr(ctx, "protected_args", None) or [""]
        with _one_line(named[0], debug=self._debug):
            return super().invoke(ctx)


def _require_no_empty(args: list[str]) -> None:
    """Raise a usage error if an argument is empty, as an unset shell variable makes it; `compare --model ''` has a meaning."""
    for place, text in enumerate(args):
        before = args[place - 1] if place and args[place - 1].startswith("--") else ""
        if (not text and before != "--model") or re.fullmatch(r"--(?!model=)[a-z-]+=", text):
            name = before or text.rstrip("=") or f"argument {place + 1}"
            raise typer.BadParameter(f"{name} is empty (is a shell variable unset?); leave it out or give it a value")


@contextmanager
def _one_line(command: str, *, debug: bool) -> Iterator[None]:
    """The last catch around a command: whatever was raised in it becomes one line."""
    try:
        yield
        sys.stdout.flush()
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except BrokenPipeError as error:
        with suppress(OSError, ValueError):  # what is still buffered would be complained about at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        more = "; the same command continues where it stopped" if command in _CONTINUED else ""
        asked = getattr(error, "signal", signal.SIGINT)
        words = "interrupted" if asked == signal.SIGINT else f"ended by {asked.name}"
        _stop(f"{words}{more}", 128 + asked, error)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # what it prints is the help
            raise
        path = error.ctx.command_path if error.ctx else "overfocus"
        message = error.format_message().rstrip(".").replace("Value error, ", "")  # pydantic begins a wrong choice with it
        if choice := re.search(r"'([^']*)' is not one of (.*)", message):
            message += did_you_mean(choice[1], re.findall(r"'([^']*)'", choice[2]))
        _stop(message + (f" See {path} --help" if message.endswith("?") else f"; see {path} --help"), 2, error)
    except BaseException as error:
        if debug:
            raise
        _stop(explain(error) if isinstance(error, OverfocusError) else f"{command or 'overfocus'}: {explain(error)}", 1, error)


def _stop(message: str, status: int, cause: BaseException) -> NoReturn:
    if reports_errors():
        with suppress(OSError, ValueError):  # standard error may be gone, with the terminal or by 2>&-
            typer.echo(f"overfocus: {one_line(message)}", err=True)
    raise typer.Exit(status) from cause


# rich would draw boxes around the help and take a third of its time
app = typer.Typer(
    name="overfocus",
    cls=OneLineErrors,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("analyze")(analyze)
app.command("compare")(compare)
app.command("ablate")(ablate)
app.command("check")(check)
app.command("report")(report)
app.command("inspect")(inspect_checkpoint)
app.command("figure")(figure)
app.command("heatmap")(heatmap)
app.command("train")(train)
app.command("curves")(curves)
app.command("evaluate")(evaluate)
app.command("list")(list_names)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"overfocus {__version__}")
        raise typer.Exit


@app.callback()
def overfocus(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; also with OVERFOCUS_DEBUG=1.")] = False,
) -> None:
    """Show whether a Vision Transformer's attention depends on a few fragile tokens.

    Example: overfocus analyze
    """


def run() -> None:
    """Entry point of the console script and of `python -m overfocus`."""
    # Threads of OpenMP that spin while they wait take the core from the processes that read and corrupt images, and on a
    # busy machine from each other; read when torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["MPLBACKEND"] = "agg"  # figures go to files, whatever matplotlib has for windows
    os.environ.pop("SOURCE_DATE_EPOCH", None)  # they carry no dates, and matplotlib fails on an invalid one
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they name no file; of one that cannot be read we say so
    warnings.formatwarning = lambda message, *_: f"overfocus: warning: {one_line(message)}\n"
    # A million objects come with the libraries and stay: looking through them for garbage takes a fifth of a short run.
    gc.set_threshold(10_000, 20, 20)
    atexit.register(gc.freeze)
    end_in_order()
    app(prog_name="overfocus")
