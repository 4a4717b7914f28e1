"""`overfocus analyze`: measure a checkpoint's attention on images, clean and corrupted, and draw the report."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overfocus_cli.options import AsJson, Checkpoint, Device, ImageSize, Model, NoEma

if TYPE_CHECKING:
    from overfocus.run import Run


def analyze(
    checkpoint: Checkpoint = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Folder (its sub-folders are labels), picture or text list of pictures; repeatable. Without it, bundled ones.",
            show_default=False,
        ),
    ] = None,
    corruption: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Corruption or group (`overfocus list corruptions`); repeatable. Default: one of each group.",
            show_default=False,
        ),
    ] = None,
    severity: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="1 (weak) to 5 (strong); repeatable. Default: 1, 3 and 5.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the run. Default: overfocus-run/NAME-ID; another ID for other options.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that the output folder holds.")] = False,
    model: Model = None,
    no_ema: NoEma = False,
    image_size: ImageSize = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Take at most this many images.", show_default=False)] = None,
    layers: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Layers to measure, e.g. 0,5,-1 (−1 is the last). Default: all.", show_default=False),
    ] = None,
    per_head: Annotated[bool, typer.Option("--per-head", help="A row for each head instead of the mean over heads.")] = False,
    top_fraction: Annotated[float, typer.Option(metavar="SHARE", help="Share of tokens that count as the most attended.")] = 0.05,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the corruptions.")] = 0,
    device: Device = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Pictures in one forward.")] = 16,
    amp: Annotated[bool, typer.Option("--amp", help="Compute in mixed precision.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Processes that read and corrupt. Default: by the number of cores.", show_default=False),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(metavar="N", help="Larger pictures (width × height) are refused before they are decoded.")
    ] = 100_000_000,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a picture that cannot be read; otherwise it is left out.")
    ] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Measure only; `overfocus report` draws later.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint's attention and draw the report.

    Each image is shown to the model clean and corrupted; the run's folder gets tables, figures and report.html. The same
    command continues an interrupted run. With no arguments, the bundled model and images are used.

    Example: overfocus analyze checkpoint.pth --images photos/ --corruption noise --severity 3
    """
    measured: dict[str, Any] = {
        "images": [str(path) for path in images] if images else None,
        "corruptions": corruption or None,
        "severities": severity or None,
        "model": model,
        "use_ema": not no_ema,
        "image_size": image_size,
        "limit": limit,
        "layers": _numbers(layers),
        "per_head": per_head,
        "top_fraction": top_fraction,
        "seed": seed,
        "batch_size": batch_size,
        "amp": amp,
        "device": device,
    }
    folder = output or default_output(checkpoint, measured)

    from overfocus.analysis.analyze import analyze as analyze_checkpoint

    run = analyze_checkpoint(
        checkpoint, output=folder, workers=workers, max_pixels=max_pixels, strict=strict, overwrite=overwrite, **measured
    )
    report = None if no_report else _drawn(run)

    from overfocus_cli.summary_table import print_summary, summary_as_json
    from overfocus_reports import summarise

    summary = summarise(run)
    if as_json:
        found = {"run": str(run.path), "report": str(report) if report else None, **summary_as_json(summary)}
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        print_summary(summary)
        typer.echo(f"\nrun: {run.path}" + (f"\nreport: {report}" if report else ""))


def _drawn(run: "Run") -> Path:
    """The run's report, drawn unless the one that lies there is newer than the run."""
    from overfocus_reports import draw_report

    page = run.path / "report.html"
    if page.is_file() and page.stat().st_mtime_ns >= (run.path / "run.json").stat().st_mtime_ns:
        return page
    return draw_report(run)


def default_output(checkpoint: str | None, measured: dict[str, Any]) -> Path:
    """overfocus-run/NAME-ID: the checkpoint's name, and six digits that differ when what is measured differs.

    So the same command finds its run again, and another command does not meet it.
    """
    from hashlib import sha256

    path = Path(checkpoint or "fashion_mnist_vit")
    where = str(path.absolute()) if path.exists() else checkpoint
    name = path.name.removesuffix(".tar").rpartition(".")[0] if path.is_file() else path.name
    digits = sha256(json.dumps([where, measured], sort_keys=True).encode()).hexdigest()[:6]
    return Path("overfocus-run") / f"{name or path.name}-{digits}"


def _numbers(text: str | None) -> list[int] | None:
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
