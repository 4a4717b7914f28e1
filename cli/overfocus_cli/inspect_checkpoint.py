"""`overfocus inspect`: what a checkpoint is and which attention a model made of it uses."""

import json
from typing import TYPE_CHECKING, Any

import typer

from overfocus_cli.options import Checkpoint, ImageSize, Model, NoEma, Verify
from overfocus_cli.output import AsJson

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from overfocus.checkpoints.load import LoadedModel

_SHOWN_KEYS = 5
_SHOWN_CLASSES = 10


def inspect_checkpoint(
    checkpoint: Checkpoint = None,
    model: Model = None,
    no_ema: NoEma = False,
    image_size: ImageSize = None,
    verify: Verify = False,
    as_json: AsJson = False,
) -> None:
    """Show what is in a checkpoint.

    The architecture and how it was found, the model's input, and every place that uses attention with its kind and shape.

    Example: overfocus inspect checkpoint.pth
    """
    from overfocus.checkpoints.load import load_model
    from overfocus.samples import sample_checkpoint

    loaded = load_model(checkpoint or sample_checkpoint(), model=model, use_ema=not no_ema, image_size=image_size)
    facts = _facts(loaded)
    verification = _verify(loaded) if verify else None
    sites = verification["coverage"] if verification else _attention_sites(loaded)
    if as_json:
        checked = {"verification": verification} if verification else {}
        typer.echo(json.dumps(facts | {"attention": sites} | checked, ensure_ascii=False, indent=2))
    else:
        _print(facts, sites, verification)
    if verification and not verification["passed"]:
        raise typer.Exit(1)


def _facts(loaded: "LoadedModel") -> dict[str, Any]:
    return {
        "source": loaded.source,
        "sha256": loaded.sha256,
        "architecture": loaded.name,
        "found_by": loaded.found_by,
        "weights_entry": loaded.weights_entry,
        "parameters": loaded.parameters,
        "input_size": list(loaded.input_size),
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        "interpolation": loaded.interpolation,
        "crop_pct": loaded.crop_pct,
        "num_classes": loaded.num_classes,
        "class_names": loaded.class_names,
        "missing_keys": loaded.missing_keys,
        "unexpected_keys": loaded.unexpected_keys,
        "notes": loaded.notes,
    }


def _attention_sites(loaded: "LoadedModel") -> list[dict[str, Any]]:
    """The coverage table of one forward of noise; which sites a model has does not depend on the picture."""
    import torch

    from overfocus.capturing import capture

    with torch.no_grad(), capture(loaded.model, reduce=lambda _: None) as captured:
        loaded.model(_noise(loaded))
    return [site.row() for site in captured.coverage]


def _verify(loaded: "LoadedModel") -> dict[str, Any]:
    """Captured weights × values against what the model produced, row sums, and the model's result with capture and without."""
    from overfocus.verification import verify

    return verify(loaded.model, _noise(loaded)).as_dict()


def _noise(loaded: "LoadedModel") -> "Tensor":
    """Two random pictures, so that the axis of the batch shows itself."""
    import torch

    return torch.randn(2, *loaded.input_size, generator=torch.Generator().manual_seed(0))


def _print(facts: dict[str, Any], sites: list[dict[str, Any]], verification: dict[str, Any] | None) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    channels, height, width = facts["input_size"]
    described = Table(box=None, show_header=False, pad_edge=False)
    described.add_column(style="bold")
    described.add_column(overflow="fold")
    for name, text in {
        "checkpoint": facts["source"],
        "architecture": f"{facts['architecture']}, found by: {facts['found_by']}",
        "weights": facts["weights_entry"],
        "parameters": f"{facts['parameters']:,}",
        "input": f"{channels} × {height} × {width}, mean {_rounded(facts['mean'])}, standard deviation {_rounded(facts['std'])}, "
        f"{facts['interpolation']}, crop {facts['crop_pct']:g}",
        "classes": _classes(facts["num_classes"], facts["class_names"]),
        "sha256": f"{facts['sha256'][:16]}…" if facts["sha256"] else "none: not loaded from one file",
        "missing keys": _keys(facts["missing_keys"]),
        "unexpected keys": _keys(facts["unexpected_keys"]),
    }.items():
        described.add_row(name, escape(text))
    for note in facts["notes"]:
        described.add_row("note", escape(note))
    console.print(described)

    console.print()
    console.print(_sites_table(sites))
    if verification:
        console.print()
        console.print(_verification_table(verification["sites"]))
        identical = "identical to the bit" if verification["identical"] else f"different by {verification['difference']:.1e}"
        console.print(f"the model's result with capture and without: {identical}")
        console.print(f"verified: {'yes' if verification['passed'] else 'no'}")


def _sites_table(sites: list[dict[str, Any]]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    windowed = any(site["windows"] > 1 for site in sites)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("site", "kind", "heads", "queries × keys", "prefix", "grid", *(["windows"] if windowed else []), "captured"):
        table.add_column(heading, no_wrap=heading != "captured")
    for site in sites:
        shape: tuple[int, ...] = tuple(site["shape"] or ())
        heads = str(shape[1]) if len(shape) == 4 else ""
        table.add_row(
            escape(f"{site['module']} ({site['branch']})" if site["branch"] else site["module"]),
            site["kind"] or "",
            heads,
            " × ".join(map(str, shape[-2:])),
            str(site["prefix_tokens"]),
            "×".join(map(str, site["grid"])) if site["grid"] else "",
            *([str(site["windows"])] if windowed else []),
            "yes" if site["captured"] else escape(f"no: {site['reason']}"),
        )
    return table


def _verification_table(sites: list[dict[str, Any]]) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("site", "kind", "weights × values: largest error", "row sums: largest error", "passed"):
        table.add_column(heading, no_wrap=heading in ("site", "kind"))
    for site in sites:
        rows = "not softmax rows" if site["row_error"] is None else f"{site['row_error']:.1e}"
        passed = "yes" if site["passed"] else "no"
        table.add_row(escape(site["module"]), site["kind"], f"{site['output_error']:.1e}", rows, passed)
    return table


def _rounded(numbers: list[float]) -> str:
    return " ".join(f"{number:.3f}" for number in numbers)


def _classes(count: int, names: list[str] | None) -> str:
    if not count:
        return "none: the model gives features"
    shown = ", ".join(name.partition(",")[0] for name in (names or [])[:_SHOWN_CLASSES])
    shown += ", …" if len(names or []) > _SHOWN_CLASSES else ""
    return f"{count}: {shown}" if shown else str(count)


def _keys(keys: list[str]) -> str:
    if not keys:
        return "none"
    return f"{len(keys)}: {', '.join(keys[:_SHOWN_KEYS])}{', …' if len(keys) > _SHOWN_KEYS else ''}"
