"""`overfocus train`: train or fine-tune a classifier or segmentation model, with TAP and ADL where asked for."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from overfocus_cli.options import AsJson


def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder of class folders (or of train/ and val/ with them), of IDX files, or a Hugging Face data set. For "
            "segmentation: Cityscapes, ACDC, or images/ beside masks/.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the training.")] = Path("overfocus-training"),
    task: Annotated[
        str, typer.Option(metavar="NAME", help="classification, or segmentation: a class for every pixel.")
    ] = "classification",
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Architecture: a name of timm or overfocus, or VisionTransformer; for segmentation it gets the SegFormer head. "
            "Default: that of --init.",
            show_default=False,
        ),
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Argument of the architecture, e.g. patch_size=4; repeatable.", show_default=False
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Weights to start from: a checkpoint or a timm name.", show_default=False),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(metavar="NAME", help="supervised, or mae: a masked autoencoder without labels, for --init (--recipe mae)."),
    ] = "supervised",
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="fan, rvt, segmentation (the paper's), finetune, small, segmentation_small, mae, or a YAML file. "
            "Default: small, segmentation_small or mae, by task and objective.",
            show_default=False,
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Replace a setting of the recipe, e.g. mixup=0.8; repeatable.", show_default=False
        ),
    ] = None,
    tap: Annotated[
        int | None,
        typer.Option(metavar="K", help="Token-aware average pooling with K branches (the paper: 4).", show_default=False),
    ] = None,
    tap_pooling: Annotated[
        str, typer.Option(metavar="NAME", help="What a branch takes of its neighbourhood: average, max, gaussian or learned.")
    ] = "average",
    adl: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHT",
            help="Weight of the attention diversification loss (the paper: 1), or auto. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    adl_warmup: Annotated[
        float | None, typer.Option(metavar="EPOCHS", help="Let that weight rise from 0 over so many epochs.", show_default=False)
    ] = None,
    adl_layers: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Only these layers, e.g. 3,4,-1. Default: all.", show_default=False)
    ] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Default: the recipe's.", show_default=False)] = None,
    iterations: Annotated[
        int | None, typer.Option(metavar="N", help="Steps to take, in place of epochs.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Images in one forward of one process. Default: the recipe's.", show_default=False),
    ] = None,
    accumulation: Annotated[
        int | None, typer.Option(metavar="N", help="Forwards of one step. Default: the recipe's, 1.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="The highest one, not scaled by the batch. Default: the recipe's.", show_default=False),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Data to validate with. Default: val/ or test/ of DATA.", show_default=False),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", min=1, help="Side of the model's input. Default: the model's.", show_default=False),
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,…", help="Names of the classes, where the data only number them.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Train on so many pictures only, spread evenly.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of weights, order and augmentation.")] = 0,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="float32, bfloat16 or float16. Default: bfloat16 on GPUs that have it.", show_default=False
        ),
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Keep fewer activations: less memory, a third more time.")
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the model with torch.compile.")] = False,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu or cuda. Default: what accelerate finds.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Processes that read and augment. Default: by the number of cores.", show_default=False
        ),
    ] = None,
    log_every: Annotated[int, typer.Option(metavar="STEPS", help="Between two rows of log.csv.")] = 50,
    save_every: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Between two checkpoints. Default: an epoch.", show_default=False)
    ] = None,
    validate_every: Annotated[int, typer.Option(metavar="EPOCHS", help="Between two validations.")] = 1,
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A tracker of accelerate, e.g. wandb; repeatable. Default: tensorboard.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the training that the output folder holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train or fine-tune a classifier or segmentation model; its model.safetensors goes into `overfocus analyze` as it is.

    The same command continues an interrupted training. Several GPUs or machines: accelerate launch -m overfocus train …; several
    processes without GPUs: torchrun --nproc-per-node N -m overfocus train … --device cpu

    Example: overfocus train photos/ --model vit_small_patch16_224 --recipe finetune --init vit.pth --tap 4 --adl 1
    """
    changes: dict[str, Any] = _pairs(setting, "--set")
    named = {
        "epochs": epochs,
        "iterations": iterations,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "learning_rate": learning_rate,
        "precision": precision,
        "adl": adl,
        "adl_warmup": adl_warmup,
        "adl_layers": None if adl_layers is None else f"[{adl_layers}]",
    }
    changes |= {name: value for name, value in named.items() if value is not None}
    if learning_rate is not None:
        changes["reference_batch"] = None

    from overfocus.training.train import train as train_model

    training = train_model(
        data,
        output,
        task=task,
        model=model,
        model_args={name: _literal(value) for name, value in _pairs(model_arg, "--model-arg").items()},
        init=init,
        tap=tap,
        tap_pooling=tap_pooling,
        validation=validation,
        objective=objective,
        recipe=recipe,
        changes=changes,
        image_size=image_size,
        class_names=class_names.split(",") if class_names else None,
        limit=limit,
        seed=seed,
        device=device,
        workers=workers,
        checkpointing=checkpointing,
        compiled=compiled,
        log_every=log_every,
        save_every=save_every,
        validate_every=validate_every,
        trackers=tracker,
        overwrite=overwrite,
        progress=True,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    last = {str(name): value for name, value in training.log.iloc[-1].dropna().items()}
    if as_json:
        typer.echo(json.dumps({"checkpoint": str(training.checkpoint), **last}, indent=2))
        return
    for note in training.info["notes"]:
        typer.echo(note)
    from overfocus.training.progress import describe_row

    typer.echo(f"{describe_row(last)}\ncheckpoint: {training.checkpoint}\nlog: {training.path / 'log.csv'}")


def _pairs(entries: list[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE entries as a table.

    Raises:
        typer.BadParameter: an entry has no equals sign.
    """
    pairs = {}
    for entry in entries or []:
        name, equals, value = entry.partition("=")
        if not (equals and name):
            raise typer.BadParameter(f"expected NAME=VALUE, got {entry!r}", param_hint=option)
        pairs[name.strip()] = value.strip()
    return pairs


def _literal(text: str) -> Any:
    """A number, truth value, list or null as in JSON; anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
