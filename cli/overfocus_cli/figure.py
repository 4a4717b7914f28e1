"""`overfocus figure`: figures for papers from saved runs."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from overfocus.figures.style import PlainFigure


class Kind(StrEnum):
    """What can be drawn."""

    COLUMNS = "columns"
    STABILITY = "stability"
    LAYERS = "layers"
    MATRIX = "matrix"
    ABLATION = "ablation"


class Format(StrEnum):
    """File formats."""

    PDF = "pdf"
    SVG = "svg"
    PNG = "png"


def figure(
    kind: Annotated[
        Kind,
        typer.Argument(
            help="columns: attention matrices, clean and corrupted; stability: metrics against severity; layers: metrics over "
            "depth; matrix: layer × corruption; ablation: what `overfocus ablate` measured.",
            show_default=False,
        ),
    ],
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Run folders; several are drawn on shared scales.", show_default=False)
    ],
    format: Annotated[
        Format | None, typer.Option("--format", help="Default: by the ending of --output, else pdf.", show_default=False)
    ] = None,
    width: Annotated[str, typer.Option(metavar="SIZE", help="Width on paper: 3.3in, 8.4cm, 84mm or 240pt.")] = "3.3in",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write. Default: KIND.FORMAT here.", show_default=False)
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="`overfocus list metrics`; repeatable.", show_default=False)
    ] = None,
    corruption: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One of the run's; repeatable.", show_default=False)
    ] = None,
    severity: Annotated[
        int | None, typer.Option(metavar="N", help="One of the run's. Default: the middle one.", show_default=False)
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of columns: layer of the first run. Default: the most overfocused.", show_default=False),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="NAME|N", help="Of columns: a displayed image. Default: the first.", show_default=False),
    ] = None,
) -> None:
    """Draw a figure for a paper.

    Fonts are embedded, labels are words, there is no title; the runs share scales.

    Example: overfocus figure layers overfocus-run/* --metric gini --width 3.3in --output gini.pdf
    """
    from overfocus.figures.style import inches

    try:
        size = inches(width)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--width") from None
    path = _path(kind, format, output)

    from overfocus.figures.draw import KINDS, draw
    from overfocus.figures.style import paper, save_figure
    from overfocus.run import Run, display_names

    if kind is Kind.ABLATION:
        with paper():
            typer.echo(str(save_figure(_ablation(runs, metric, size), path)))
        return
    opened = [Run(folder) for folder in runs]
    with paper():
        drawn = draw(
            next(known for known in KINDS if known == kind.value),
            opened,
            display_names(opened),
            width=size,
            metrics=metric or None,
            corruptions=corruption or None,
            severity=severity,
            layer=layer,
            image=int(image) if image is not None and image.isdecimal() else image,
        )
        typer.echo(str(save_figure(drawn, path)))


def _ablation(folders: list[Path], metrics: list[str] | None, width: float) -> "PlainFigure":
    """The figure of one ablation; call inside `paper()`.

    Raises:
        typer.BadParameter: more than one ablation, or more than one metric.
        RunError: the folder holds no ablation, or it has no such metric.
    """
    from overfocus.figures.ablation import ablation_figure
    from overfocus.results.ablation import Ablation

    if len(folders) > 1 or len(metrics or ()) > 1:
        raise typer.BadParameter("a figure shows one metric of one ablation; draw one figure for each", param_hint="RUN…")
    found = Ablation(folders[0])
    score = metrics[0] if metrics else None
    return ablation_figure(found.table, found.differences, found.how, score=score, width=width)


def _path(kind: Kind, asked: Format | None, output: Path | None) -> Path:
    """Where to write; the format follows the file's ending unless it was given.

    Raises:
        typer.BadParameter: the ending is no format, or another than the format given.
    """
    if output is None:
        return Path(f"{kind.value}.{(asked or Format.PDF).value}")
    ending = output.suffix.lstrip(".").lower()
    if not ending:
        return output.with_name(f"{output.name}.{(asked or Format.PDF).value}")
    if ending not in list(Format) or (asked is not None and ending != asked.value):
        expected = f".{asked.value}" if asked else ", ".join(f".{known.value}" for known in Format)
        raise typer.BadParameter(f"expected a file that ends in {expected}, got {output.name}", param_hint="--output")
    return output
