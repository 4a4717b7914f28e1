"""`overfocus train`, with TAP and ADL where asked for, and `overfocus curves`, which draws the log of a training."""

import os
from pathlib import Path
from typing import Annotated

import typer

from overfocus.training.settings import TrainSettings
from overfocus_cli.from_settings import from_settings
from overfocus_cli.output import AsJson


@from_settings(TrainSettings)
def train(settings: TrainSettings, *, as_json: AsJson = False) -> None:
    """Train or fine-tune a classifier or segmentation model.

    Its model.safetensors goes into `overfocus analyze` as it is.

    The same command continues an interrupted training. Several GPUs or machines: accelerate launch -m overfocus train …; several
    processes without GPUs: torchrun --nproc-per-node N -m overfocus train … --device cpu

    Example: overfocus train photos/ --model vit_small_patch16_224 --recipe finetune --init vit.pth --tap 4 --adl 1
    """
    import overfocus
    from overfocus.text import json_text

    training = overfocus.train(**settings.arguments() | {"progress": True})
    if os.environ.get("RANK", "0") != "0":
        return
    last = {str(name): value for name, value in training.log.iloc[-1].dropna().items()}
    if as_json:
        typer.echo(json_text({"checkpoint": str(training.checkpoint), **last}))
        return
    for note in training.info.notes:
        typer.echo(note)
    from overfocus.training.folder import describe_row

    typer.echo(f"{describe_row(last)}\ncheckpoint: {training.checkpoint}\nlog: {training.path / 'log.csv'}")


def curves(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG",
            help="log.csv of `overfocus train` or of `overfocus.monitor`, or the folder of a training.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Page (.html) or image (.png). Default: curves.html there.", show_default=False),
    ] = None,
) -> None:
    """Draw the curves of a training, also while it runs.

    Example: overfocus curves attention.csv --output attention.html
    """
    from overfocus.curves import write_curves

    if log.is_dir():
        log /= "log.csv"
    if output is not None and output.suffix.lower() not in (".html", ".png"):
        raise typer.BadParameter(f"expected a file that ends in .html or .png, got {output.name}", param_hint="--output")
    typer.echo(str(write_curves(log, output or log.with_name("curves.html"))))
