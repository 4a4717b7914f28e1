"""The summary of a run on the terminal and as JSON."""

import math
from typing import TYPE_CHECKING, Any

from overfocus.text import LONGEST_LINE
from overfocus_cli.output import cell, new_table

if TYPE_CHECKING:
    from overfocus.statistics.intervals import Interval
    from overfocus_reports.summary import Retained, Summary

_PREDICTION = {"agreement": "same class", "correct": "accuracy"}
_PIXELS = {"agreement": "same pixels", "correct": "pixel accuracy", "image_iou": "image IoU"}


def print_summary(summary: "Summary") -> None:
    """Print the sentences, how concentrated each layer is on clean images, and what survives each corruption."""
    from rich.console import Console

    from overfocus.statistics.retained import NOT_MEASURED

    console = Console(highlight=False)
    counted = f"{summary.images} images" + (f", {summary.skipped_images} left out" if summary.skipped_images else "")
    if summary.clean_iou == summary.clean_iou:
        counted += f", mIoU on clean images {_percent(summary.clean_iou)}"
    elif summary.clean_accuracy:
        counted += f", {_percent(summary.clean_accuracy.mean)} of the clean images classified correctly"
    console.print(f"\n[bold]{cell(summary.model)}[/bold], {counted}\n")
    if summary.lenient:
        console.print(f"[bold]Measured leniently: this may be another network.[/bold] {cell(summary.notes[0])}\n")
    for sentence in summary.sentences:
        console.print(cell(sentence, LONGEST_LINE))
    for note in summary.notes[summary.lenient :]:
        console.print(f"note: {cell(note, LONGEST_LINE)}")

    layers = new_table(
        "Concentration on clean images", ["layer"], ["top share", "(uniform)", "max ratio", "Gini", "effective"], wrap=True
    )
    worst = next(iter(summary.ranked), None)
    for row in summary.layers:
        values = row.concentration
        layers.add_row(
            row.layer.label,
            _percent(values["top_share"].mean),
            _percent(row.uniform_share),
            _number(values["max_ratio"].mean, ".2f") + "×",
            _number(values["gini"].mean, ".3f"),
            _percent(values["effective_tokens"].mean),
            style="bold" if row is worst else "",
        )
    console.print()
    console.print(layers)
    if summary.custom:
        custom = new_table(
            "Custom metrics and probes", ["images"], [cell(one.measure.title) for one in summary.custom], wrap=True
        )
        for variant in summary.custom[0].values:
            custom.add_row(variant.label, *(_number(one.values[variant].mean, ".4g") for one in summary.custom))
        console.print()
        console.print(custom)
    if not summary.survival:
        return

    headings = _PIXELS if summary.segmented else _PREDICTION
    known = {name: heading for name, heading in headings.items() if any(kept.prediction[name] for kept in summary.survival)}
    columns = [*known.values()] if known else ["output cosine"]  # a model without classifier
    scored = summary.clean_iou == summary.clean_iou  # masks of a segmentation data set
    columns += ["mIoU (set)"] if scored else []
    controlled = bool(summary.retained)
    retained = ["retained"] if controlled else []
    survival = new_table("What survives", ["corruption"], ["top-k kept", "moved", *retained, *columns], wrap=True)
    if controlled:
        control = [_percent(summary.retained[name].control) for name in ("top_overlap", "received_shift")]
        survival.add_row("another image", *control, _number(0, ".2f"), *["–"] * len(columns), style="dim")
    for kept in summary.survival:
        output = _number(kept.prediction["output_cosine"].mean, ".3f")
        survival.add_row(
            kept.variant.label,
            *(_percent(kept.stability[name].mean) for name in ("top_overlap", "received_shift")),
            *([_number(kept.retained["js_divergence"].retained, ".2f")] if controlled else []),
            *([_percent(kept.prediction[name].mean) for name in known] or [output]),
            *([_percent(kept.set_iou)] if scored else []),
        )
    console.print()
    console.print(survival)
    if controlled:
        console.print("another image: the control, two different clean images; retained: 1 − divergence / that of the control")
    else:
        console.print(f"{NOT_MEASURED}: what is kept is not compared with another image")


def summary_as_json(summary: "Summary") -> dict[str, Any]:
    """The same as plain values; NaN as null."""
    return {
        "model": summary.model,
        "images": summary.images,
        "skipped_images": summary.skipped_images,
        "sentences": list(summary.sentences),
        "notes": list(summary.notes),
        "lenient": summary.lenient,
        "layers": [
            {
                "layer": row.layer.number,
                "module": row.layer.module,
                "kind": row.layer.kind,
                "tokens": row.layer.tokens,
                "uniform_top_share": row.uniform_share,
                **_intervals(row.concentration),
            }
            for row in summary.layers
        ],
        "overfocuses": summary.overfocusing.answer,
        "effective_tokens_of_most_concentrated_third": _interval(summary.overfocusing.effective)
        | {"layers": list(summary.overfocusing.layers)},
        "retained": _retained(summary.retained),
        "clean_accuracy": _interval(summary.clean_accuracy),
        "custom": {
            one.measure.name: [
                {"corruption": variant.corruption, "severity": variant.severity, **_interval(value)}
                for variant, value in one.values.items()
            ]
            for one in summary.custom
        },
        **({"clean_miou": _plain(summary.clean_iou)} if summary.segmented else {}),
        "corruptions": [
            {
                "corruption": kept.variant.corruption,
                "severity": kept.variant.severity,
                **_intervals(kept.stability),
                "retained": _retained(kept.retained),
                **_intervals(
                    {name: value for name, value in kept.prediction.items() if name != "image_iou" or summary.segmented}
                ),
                **({"miou": _plain(kept.set_iou)} if summary.segmented else {}),
            }
            for kept in summary.survival
        ],
    }


def _intervals(values: "dict[str, Interval]") -> dict[str, Any]:
    return {name: _interval(value) for name, value in values.items()}


def _interval(value: "Interval") -> dict[str, float | int | None]:
    ends = {"mean": value.mean, "low": value.low, "high": value.high}
    return {name: _plain(number) for name, number in ends.items()} | {"count": value.count}


def _retained(values: "dict[str, Retained]") -> dict[str, dict[str, float | int | None]]:
    return {
        name: {part: _plain(getattr(value, part)) for part in ("control", "retained", "low", "high")} | {"count": value.count}
        for name, value in values.items()
    }


def _plain(number: float) -> float | None:
    return None if math.isnan(number) else number


def _percent(share: float) -> str:
    return _number(share, ".1%").replace("%", " %")


def _number(number: float, form: str) -> str:
    return "–" if math.isnan(number) else format(number, form)
