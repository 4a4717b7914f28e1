"""Where the numbers come from: checkpoint, settings, versions, as rows of (name, value) for the page."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overfocus.run import Run

NOTHING = "–"
MOST_ITEMS = 8
"""Of a list, such as missing keys, before the rest is only counted."""


def checkpoint_rows(run: "Run") -> list[tuple[str, str]]:
    """The checkpoint: what it is, how it was recognised, what of it did not fit."""
    known = run.description.checkpoint
    size = known.input_size
    rows = {
        "architecture": known.name,
        "found by": known.found_by,
        "source": known.source,
        "SHA-256": known.sha256,
        "weights": known.weights_entry,
        "parameters": f"{known.parameters:,}" if known.parameters is not None else None,
        "input": f"{size[1]} × {size[2]} pixels, {size[0]} channel{'s' if size[0] != 1 else ''}" if size else None,
        "classes": known.num_classes,
        "mean, standard deviation": f"{in_words(known.mean)}; {in_words(known.std)}",
        "missing keys": in_words(known.missing_keys) or "none",
        "unexpected keys": in_words(known.unexpected_keys) or "none",
        "notes": "; ".join(known.notes),
    }
    return [(name, in_words(value) or NOTHING) for name, value in rows.items()]


def settings_rows(run: "Run") -> list[tuple[str, str]]:
    """What was asked for."""
    rows = {name.replace("_", " "): value for name, value in asdict(run.description.settings).items() if value is not None}
    return [(name, in_words(value) or NOTHING) for name, value in rows.items()]


def version_rows(run: "Run") -> list[tuple[str, str]]:
    """What it ran with, when, and how long it took."""
    known = run.description
    rows: dict[str, Any] = {"overfocus": known.overfocus, "started": known.created} | known.versions
    rows |= {name.replace("_", " "): value for name, value in known.timing.items()}
    return [(name, in_words(value) or NOTHING) for name, value in rows.items()]


def in_words(value: Any) -> str:
    """A value of run.json as text; long lists are cut and counted."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {in_words(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(in_words(part) for part in value[:MOST_ITEMS])
        return shown + (f" and {len(value) - MOST_ITEMS} more" if len(value) > MOST_ITEMS else "")
    return str(value)
