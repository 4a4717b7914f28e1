"""`overfocus train`: train or fine-tune a classifier or segmentation model, with TAP and ADL where asked for."""

import os

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
    for note in training.info["notes"]:
        typer.echo(note)
    from overfocus.training.folder import describe_row

    typer.echo(f"{describe_row(last)}\ncheckpoint: {training.checkpoint}\nlog: {training.path / 'log.csv'}")
