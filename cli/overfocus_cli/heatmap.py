"""`overfocus heatmap`: attention over images as PNG files."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from overfocus_cli.hints import require_checkpoint
from overfocus_cli.options import Checkpoint, Device, ImageSize, Model, NoEma
from overfocus_cli.output import AsJson


class Method(StrEnum):
    """What a heat map shows."""

    RECEIVED = "received"
    ROLLOUT = "rollout"
    ROW = "row"
    GRADIENT_ROLLOUT = "gradient-rollout"
    GRAD_CAM = "grad-cam"


class HeadFusion(StrEnum):
    """How rollout makes one map of all heads."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"


def heatmap(
    checkpoint: Checkpoint = None,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE…", help="Images, folders or text lists of images; without them, bundled ones.", show_default=False
        ),
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="received: what each patch receives from all; row: where one token attends; rollout: through all layers; "
            "gradient-rollout and grad-cam: what speaks for a class."
        ),
    ] = Method.RECEIVED,
    layer: Annotated[
        int | None, typer.Option(metavar="N", help="Layer from 0, or −1 for the last. Default: all.", show_default=False)
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="N|all",
            help="Head from 0, or all for a sheet of every head. Default: the mean over heads.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="NAME|N",
            help="Class that gradient-rollout and grad-cam explain. Default: the one predicted for the clean image.",
            show_default=False,
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            metavar="ROW,COL|class",
            help="Token that attends, for row and rollout. Default: the class token, or without one the middle patch.",
            show_default=False,
        ),
    ] = None,
    corruption: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Show the image under this corruption or group too; repeatable.", show_default=False),
    ] = None,
    severity: Annotated[int, typer.Option(metavar="N", help="1 (weak) to 5 (strong).")] = 3,
    head_fusion: Annotated[HeadFusion, typer.Option(help="How rollout makes one map of all heads.")] = HeadFusion.MEAN,
    discard_ratio: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0.0, max=0.999, help="Share of a layer's weights, the smallest, that rollout drops."),
    ] = 0.0,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the PNG files.")] = Path("overfocus-heatmaps"),
    model: Model = None,
    no_ema: NoEma = False,
    image_size: ImageSize = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the corruptions.")] = 0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Draw attention over images.

    Colours are multiples of uniform attention (for a class: of the mean relevance); windows (Swin) are put back where they lie.

    Example: overfocus heatmap checkpoint.pth cat.jpg --method row --query class --layer -1
    """
    asked = _query(query)
    require_checkpoint(checkpoint, images, command="heatmap")

    from overfocus.heatmaps import HeatMapRequest, draw_heat_maps

    try:
        request = HeatMapRequest(method.value, layer, _head(head), asked, head_fusion.value, discard_ratio, target)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    written = draw_heat_maps(
        checkpoint,
        list(images) if images else None,
        request,
        corruptions=corruption or (),
        severity=severity,
        seed=seed,
        output=output,
        model=model,
        use_ema=not no_ema,
        image_size=image_size,
        device=device,
    )
    paths = [str(path) for path in written]
    typer.echo(json.dumps(paths, indent=2) if as_json else "\n".join(paths))


def _head(text: str | None) -> int | Literal["all"] | None:
    """The head's number, or all.

    Raises:
        typer.BadParameter: it is neither.
    """
    if text is None or text == "all":
        return text  # type: ignore[return-value]
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number or all; got {text!r}", param_hint="--head") from None


def _query(text: str | None) -> tuple[int, int] | Literal["class"] | None:
    """The patch in "3,4", or the class token.

    Raises:
        typer.BadParameter: it is neither.
    """
    if text is None:
        return None
    if text == "class":
        return "class"
    row, _, column = text.partition(",")
    try:
        return int(row), int(column)
    except ValueError:
        raise typer.BadParameter(f"expected ROW,COL such as 3,4, or class; got {text!r}", param_hint="--query") from None
