"""`overfocus analyze`: measure a checkpoint's attention on images, clean and corrupted, and draw the report."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overfocus.processes import is_main_process
from overfocus_cli.hints import require_checkpoint
from overfocus_cli.options import (
    Amp,
    AsJson,
    Checkpoint,
    Corruption,
    Device,
    Images,
    ImageSize,
    Layers,
    Limit,
    MaxPixels,
    Model,
    ModelBatchSize,
    NoEma,
    NoReport,
    Overwrite,
    PerHead,
    Seed,
    Severity,
    Strict,
    TopFraction,
    Workers,
    layer_numbers,
)

if TYPE_CHECKING:
    from overfocus.run import Run


def analyze(
    checkpoint: Checkpoint = None,
    images: Images = None,
    corruption: Corruption = None,
    severity: Severity = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the run. Default: overfocus-run/NAME-ID; another ID for other options.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    model: Model = None,
    no_ema: NoEma = False,
    image_size: ImageSize = None,
    limit: Limit = None,
    layers: Layers = None,
    per_head: PerHead = False,
    top_fraction: TopFraction = 0.05,
    seed: Seed = 0,
    device: Device = None,
    batch_size: ModelBatchSize = None,
    amp: Amp = False,
    workers: Workers = None,
    max_pixels: MaxPixels = 100_000_000,
    strict: Strict = False,
    no_report: NoReport = False,
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
        "layers": layer_numbers(layers),
        "per_head": per_head,
        "top_fraction": top_fraction,
        "seed": seed,
        "batch_size": batch_size,
        "amp": amp,
        "device": device,
    }
    require_checkpoint(checkpoint, command="analyze")
    folder = output or default_output(checkpoint, measured)

    from overfocus.analysis.analyze import analyze as analyze_checkpoint

    run = analyze_checkpoint(
        checkpoint, output=folder, workers=workers, max_pixels=max_pixels, strict=strict, overwrite=overwrite, **measured
    )
    if not is_main_process():
        return
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


def default_output(checkpoint: str | None, measured: dict[str, Any], root: str = "overfocus-run") -> Path:
    """overfocus-run/NAME-ID: the checkpoint's name, and six digits that differ when what is measured differs.

    So the same command finds its run again, and another command does not meet it.
    """
    from hashlib import sha256

    from overfocus.checkpoints.source_name import source_name

    path = Path(checkpoint or "fashion_mnist_vit")
    where = str(path.absolute()) if path.exists() else checkpoint
    digits = sha256(json.dumps([where, measured], sort_keys=True).encode()).hexdigest()[:6]
    return Path(root) / f"{source_name(path)}-{digits}"
