"""Options that several commands share."""

from pathlib import Path
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
Verify = Annotated[
    bool, typer.Option("--verify", help="Check the captured attention against what the model produces; exit 1 if it differs.")
]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="Folder (its sub-folders are labels), picture or text list of pictures; repeatable. For segmentation also a data "
        "set with masks. Without it, bundled ones.",
        show_default=False,
    ),
]
Corruption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Corruption or group (`overfocus list corruptions`); repeatable. Default: one of each group.",
        show_default=False,
    ),
]
Severity = Annotated[
    list[int] | None,
    typer.Option(metavar="N", help="1 (weak) to 5 (strong); repeatable. Default: 1, 3 and 5.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that the output folder holds.")]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Take at most this many images.", show_default=False)]
Layers = Annotated[
    str | None,
    typer.Option(metavar="N,N,…", help="Layers to measure, e.g. 0,5,-1 (−1 is the last). Default: all.", show_default=False),
]
PerHead = Annotated[bool, typer.Option("--per-head", help="A row for each head instead of the mean over heads.")]
TopFraction = Annotated[float, typer.Option(metavar="SHARE", help="Share of tokens that count as the most attended.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of the corruptions.")]
BatchSize = Annotated[int, typer.Option(metavar="N", help="Pictures in one forward.")]
ModelBatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", metavar="N", help="Pictures in one forward. Default: 16, and 4 for segmentation.", show_default=False
    ),
]
Amp = Annotated[bool, typer.Option("--amp", help="Compute in mixed precision.")]
Workers = Annotated[
    int | None,
    typer.Option(metavar="N", help="Processes that read and corrupt. Default: by the number of cores.", show_default=False),
]
MaxPixels = Annotated[
    int, typer.Option(metavar="N", help="Larger pictures (width × height) are refused before they are decoded.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at a picture that cannot be read; otherwise it is left out.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Measure only; `overfocus report` draws later.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]


def layer_numbers(text: str | None) -> list[int] | None:
    """The numbers in "0,5,-1".

    Raises:
        typer.BadParameter: something in it is no whole number.
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected numbers such as 0,5,-1, got {text!r}", param_hint="--layers") from None
