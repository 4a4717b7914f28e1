"""Options of commands that are written by hand."""

from typing import Annotated, Any

import typer

from overfocus.sweep.settings import parse_size

Checkpoint = Annotated[
    str | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Checkpoint (.pth, .pt, .tar, .safetensors), hub folder or timm name; without one, the bundled small ViT.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="Architecture (a timm name), where the checkpoint does not tell.", show_default=False
    ),
]
NoEma = Annotated[
    bool, typer.Option("--no-ema", help="Take the plain weights where the checkpoint also holds averaged (EMA) ones.")
]


def _size(text: str) -> int | tuple[int, int]:
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


ImageSize = Annotated[
    Any | None,
    typer.Option(
        "--image-size",
        metavar="PIXELS",
        parser=_size,
        help="Side of the model's input in pixels, or HEIGHTxWIDTH; otherwise as trained.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, … Default: CUDA where there is.", show_default=False),
]
