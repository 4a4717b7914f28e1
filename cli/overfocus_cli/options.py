"""Options of commands that are written by hand."""

from typing import Annotated

import typer

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
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="PIXELS",
        min=1,
        help="Side of the model's input in pixels; otherwise as trained.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, … Default: CUDA where there is.", show_default=False),
]
