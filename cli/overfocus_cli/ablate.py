"""`overfocus ablate`: what predictions lose without the most attended tokens."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overfocus.processes import is_main_process
from overfocus_cli.analyze import default_output
from overfocus_cli.hints import require_checkpoint
from overfocus_cli.options import (
    AsJson,
    BatchSize,
    Checkpoint,
    Corruption,
    Device,
    Images,
    ImageSize,
    Limit,
    MaxPixels,
    Model,
    NoEma,
    Overwrite,
    Seed,
    Strict,
    Workers,
)

if TYPE_CHECKING:
    from overfocus.ablation.ablation import Ablation


def ablate(
    checkpoint: Checkpoint = None,
    images: Images = None,
    corruption: Corruption = None,
    severity: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="1 (weak) to 5 (strong); repeatable. Default: 3.", show_default=False),
    ] = None,
    fraction: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the tokens to take out; repeatable. Default: 0.01, 0.02, 0.05, 0.1, 0.2 and 0.5.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder to write. Default: overfocus-ablation/NAME-ID; another ID for other options.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    model: Model = None,
    no_ema: NoEma = False,
    image_size: ImageSize = None,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = None,
    batch_size: BatchSize = 16,
    workers: Workers = None,
    max_pixels: MaxPixels = 100_000_000,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Remove the most attended tokens and see what predictions do.

    As many random and as many least attended tokens are taken out for comparison, of clean and of corrupted pictures.

    Example: overfocus ablate checkpoint.pth --images photos/ --corruption noise
    """
    measured: dict[str, Any] = {
        "images": [str(path) for path in images] if images else None,
        "corruptions": corruption or None,
        "severities": severity or None,
        "model": model,
        "use_ema": not no_ema,
        "image_size": image_size,
        "limit": limit,
        "seed": seed,
        "batch_size": batch_size,
        "device": device,
    } | ({"fractions": fraction} if fraction else {})
    require_checkpoint(checkpoint, command="ablate")
    folder = output or default_output(checkpoint, measured, "overfocus-ablation")

    from overfocus.ablation.ablate import ablate as ablate_checkpoint

    found = ablate_checkpoint(
        checkpoint, output=folder, workers=workers, max_pixels=max_pixels, strict=strict, overwrite=overwrite, **measured
    )
    if not is_main_process():
        return
    if as_json:
        tables = {
            name: json.loads(table.to_json(orient="records", double_precision=15))
            for name, table in (("table", found.table), ("differences", found.differences))
        }
        answer = {"ablation": str(folder), "model": found.model, "images": found.images, "sentences": found.sentences}
        typer.echo(json.dumps(answer | tables, ensure_ascii=False, indent=2))
    else:
        _print(found)
        typer.echo(f"\nablation: {folder}")


def _print(found: "Ablation") -> None:
    """The answer in words, then a table per version of the images: what is left without k tokens of each choice."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from overfocus.statistics.wording import decimal, variant_label

    console = Console(highlight=False)
    console.print(f"\n[bold]{escape(found.model)}[/bold], {found.images} images\n")
    for sentence in found.sentences:
        console.print(sentence, markup=False)
    classes = found.table["agreement"].notna().any()
    quantities = {"agreement": "same class"} if classes else {}
    quantities |= {"output_cosine": "output cosine"}
    removed = found.table[found.table["k"] > 0]
    for corruption, severity in dict.fromkeys(zip(removed["corruption"], removed["severity"], strict=True)):
        rows = removed[(removed["corruption"] == corruption) & (removed["severity"] == severity)]
        title = variant_label(str(corruption), int(severity))
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
        table.add_column("tokens out", no_wrap=True)
        for heading in quantities.values():
            for choice in ("top", "random", "bottom"):
                table.add_column(f"{heading}: {choice}", justify="right")
        for (count, share), cells in rows.groupby(["k", "fraction"], sort=False):
            by_choice = cells.set_index("choice")
            values = [decimal(float(by_choice[name][choice])) for name in quantities for choice in ("top", "random", "bottom")]
            table.add_row(f"{count} ({100 * share:.0f} %)", *values)
        console.print()
        console.print(table)
