"""`overfocus compare`: checkpoints on the same corrupted pictures, or saved runs, against the first."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overfocus.processes import is_main_process
from overfocus_cli.analyze import default_output
from overfocus_cli.options import (
    Amp,
    AsJson,
    Corruption,
    Device,
    Images,
    ImageSize,
    Layers,
    Limit,
    MaxPixels,
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
    from overfocus.results.comparison import Comparison


class Format(StrEnum):
    """How the table is printed."""

    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"


def compare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BASELINE OTHER…",
            help="Checkpoints (files, hub folders, timm names), or folders of saved runs; the first is the baseline. "
            "Default: the two bundled ones.",
            show_default=False,
        ),
    ] = None,
    images: Images = None,
    corruption: Corruption = None,
    severity: Severity = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the comparison. Default: overfocus-comparison/NAME-ID; another ID for other options.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[Format, typer.Option(help="How the table is printed.")] = Format.TABLE,
    overwrite: Overwrite = False,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Architecture, where checkpoints do not tell: one for all, or repeated for each ('' where it does tell).",
            show_default=False,
        ),
    ] = None,
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
    resamples: Annotated[int, typer.Option(metavar="N", min=1, help="Bootstrap resamples behind each interval.")] = 10_000,
    ablation: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER", help="What `overfocus ablate` wrote, to show in the report; repeatable.", show_default=False
        ),
    ] = None,
    no_report: NoReport = False,
    as_json: AsJson = False,
) -> None:
    """Compare checkpoints, or saved runs, with the first of them.

    Every model sees the same images with the same corrupted pixels. The folder gets tables, a run per model and report.html;
    the same command continues an interrupted comparison.

    Example: overfocus compare baseline.pth retrained.pth --images photos/ --corruption noise
    """
    asked: dict[str, Any] = {
        "images": [str(path) for path in images] if images else None,
        "corruptions": corruption or None,
        "severities": severity or None,
        "model": [name or None for name in model] if model and len(model) > 1 else model[0] if model else None,
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
    others = [str(Path(source).absolute()) if Path(source).exists() else source for source in (sources or [])[1:]]
    folder = output or default_output(sources[0] if sources else None, asked | {"others": others}, "overfocus-comparison")

    from overfocus.results.compare import compare as compare_models

    comparison = compare_models(
        sources or None,
        output=folder,
        workers=workers,
        max_pixels=max_pixels,
        strict=strict,
        overwrite=overwrite,
        resamples=resamples,
        **asked,
    )
    if not is_main_process():
        return
    report = None if no_report else _drawn(comparison, ablation or [])
    if as_json:
        found = {"comparison": str(folder), "report": str(report) if report else None, **comparison.as_dict()}
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
    elif format is Format.TABLE:
        from overfocus_cli.comparison_table import print_comparison

        print_comparison(comparison)
        typer.echo(f"\ncomparison: {folder}" + (f"\nreport: {report}" if report else ""))
    else:
        typer.echo(comparison.to_markdown() if format is Format.MARKDOWN else comparison.to_latex(), nl=False)


def _drawn(comparison: "Comparison", ablations: list[Path]) -> Path:
    from overfocus.ablation.ablation import Ablation
    from overfocus_reports import draw_comparison

    return draw_comparison(comparison, [Ablation(path) for path in ablations])
