"""What commands print: JSON, lines, and tables of runs, comparisons, evaluations and ablations."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overfocus.text import LONGEST_LINE, LONGEST_NAME, json_text, printable, shows_unicode

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from overfocus.evaluation.results import Evaluation
    from overfocus.results.ablation import Ablation
    from overfocus.results.comparison import Comparison
    from overfocus.statistics.intervals import Interval
    from overfocus_reports.summary import Retained, Summary


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Ablations = Annotated[
    list[Path] | None,
    typer.Option(
        "--ablation",
        metavar="FOLDER",
        help="Folder of an ablation to show in the report of a comparison; repeatable.",
        show_default=False,
    ),
]


def print_json(value: Any) -> None:
    """Print JSON that can be read back whatever the terminal shows."""
    typer.echo(json_text(value, ascii_only=not shows_unicode(sys.stdout)))


def say(text: str) -> None:
    """Print lines for people, in which no name of a file acts on the terminal; `--json` says the names as they are."""
    typer.echo("\n".join(printable(line, LONGEST_LINE) for line in text.split("\n")))


def cell(text: object, limit: int = LONGEST_NAME) -> str:
    """Text from outside for a table or line of rich: printable, at most `limit` characters, and never read as markup."""
    from rich.markup import escape

    return escape(printable(text, limit))


def new_table(title: str | None, words: list[str], numbers: list[str], *, wrap: bool = False) -> "Table":
    """An empty table with columns of words, then of numbers, whose headings may be wrapped; the title is rich's markup."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    for heading in words:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=not wrap)
    return table


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


_ANSWERS = {"yes": "green", "no": "red", "mixed": "yellow", "can't tell": "yellow"}
_METRICS_PER_MODEL = 5


def print_comparison(comparison: "Comparison", metrics: list[str] | None = None) -> None:
    """Print the verdicts, the overview of differences (of all metrics or of some), and which metrics predict flips best."""
    from rich.console import Console

    from overfocus.results.comparison import cells
    from overfocus.statistics.differences import OVERVIEW
    from overfocus.statistics.fragility import CLEAN_CONFIDENCE, CORRUPTION_ALONE, POOLED
    from overfocus.statistics.panel import EVERY
    from overfocus.statistics.retained import NOT_MEASURED
    from overfocus.statistics.verdicts import decimal, interval_text, measure_title
    from overfocus_reports.sentences import verdict_line

    console = Console(highlight=False)
    models = ", ".join(comparison.names[1:])
    console.print(
        f"\n[bold]{cell(models)}[/bold] against [bold]{cell(comparison.baseline)}[/bold], {len(comparison.images)} images\n"
    )
    for model in comparison.identical:
        console.print(cell(verdict_line(model, (), comparison.baseline, identical=True), LONGEST_LINE))
    for verdict in comparison.verdicts:
        if verdict.model in comparison.identical:
            continue
        colour, answer = _ANSWERS[verdict.answer], verdict.answer.capitalize()
        said = cell(verdict.sentence, LONGEST_LINE)
        console.print(f"[bold]{verdict.asked}[/bold] [{colour}]{answer}[/{colour}]. {said}")
    for note in comparison.notes:
        console.print(f"note: {cell(note, LONGEST_LINE)}")

    rows = comparison.overview(metrics)
    for model in comparison.names[1:]:
        for title, clean in (("on clean images", True), ("over all corruptions", False)):
            chosen = rows[(rows["model"] == model) & ((rows["corruption"] == "clean") == clean)]
            if not len(chosen):
                continue
            beside = [] if clean else ["control"]
            numbers = ["mean", "baseline", *beside, "difference", "95 % interval", "p"]
            table = new_table(f"{cell(model)}, {title}", ["metric"], numbers)
            for metric, _, _, _, mean, other, control, difference, interval, p_value, _, _ in cells(chosen):
                own = [] if clean else [control.partition(" / ")[0]]
                table.add_row(cell(metric), mean, other, *own, difference, interval, p_value)
            console.print()
            console.print(table)
    overview = comparison.table[comparison.table["family"] == OVERVIEW]
    tests = int(overview["p_value"].notna().sum())
    control = "the same metric between two different clean images" if comparison.controlled else NOT_MEASURED
    console.print(f"p after Holm over {tests} tests, every metric over all layers, clean and corrupted; control: {control}")

    found = comparison.fragility.dropna(subset=["auroc"])
    within = found[(found["layers"] == "all") & (found["corruption"] == EVERY)]
    within = within.assign(strength=(within["auroc"] - 0.5).abs()).sort_values("strength", ascending=False, kind="stable")
    others = found[
        (found["metric"] == CORRUPTION_ALONE) | ((found["metric"] == CLEAN_CONFIDENCE) & (found["corruption"] == EVERY))
    ]
    pooled = found[found["corruption"] == POOLED].set_index(["model", "metric", "layers"])["auroc"]
    for name in comparison.names:
        told = new_table(
            f"Metrics that predict flips of {cell(name)} ({flips_of(within, name)}), within a corruption and severity",
            ["metric"],
            ["AUROC", "95 % interval", "pooled", "Spearman", "95 % interval"],
        )
        listed = within[within["model"] == name].head(_METRICS_PER_MODEL).to_dict("records")
        for row in listed + others[others["model"] == name].to_dict("records") if listed else []:
            alone = row["metric"] == CORRUPTION_ALONE
            area, rank = (
                ["–", "–"] if alone else [
                    decimal(row[score], sign=score == "spearman", places=2),
                    interval_text(row[f"{score}_low"], row[f"{score}_high"], sign=score == "spearman", places=2),
                ]
                for score in ("auroc", "spearman")
            )  # fmt: skip
            together = decimal(pooled.get((name, row["metric"], row["layers"]), float("nan")), places=2)
            told.add_row(measure_title(row["metric"]), *area, together, *rank)
        if told.row_count:
            console.print()
            console.print(told)
    if len(within):
        console.print("of each model, the metrics farthest from 0.5 are shown; intervals are not adjusted for that choice")


def flips_of(found: "pd.DataFrame", name: str) -> str:
    """How many predictions of a model flip, in words."""
    rows = found[found["model"] == name]
    return f"{rows['flipped'].max():,} of {rows['count'].max():,}" if len(rows) else "none"


_WIDTH = 24
_CLASSES_IN_A_LINE = 4
_MISSING_SHOWN = 3


def describe_evaluation(evaluation: "Evaluation") -> str:
    """An evaluation in some lines."""
    summary = evaluation.summary
    lines = [f"{summary['model']} ({summary['checkpoint']}), {summary['data']['images']:,} images"]
    videos = summary["flips"] is not None
    made = "first frames of videos" if videos else f"corrupted ({summary['data']['corruptions']})"
    width = max(24, len(made))
    for kind, words in (("clean", "clean"), ("corrupted", made)):
        if summary[kind] is not None:
            mean = summary[kind]
            five = f"{mean['top5']:7.2%}" if mean["top5"] is not None else "      –"
            shares = f"top-1 {mean['top1']:7.2%}   top-5 {five}"
            lines.append(f"{words:{width}} {shares}   ECE {mean['ece']:.4f}   NLL {mean['nll']:.4f}")
    table = evaluation.table
    corrupted = table[table["severity"] > 0]
    if len(corrupted):
        levels = sorted({int(level) for level in corrupted["severity"]})
        title = "top-1 of first frames" if videos else "top-1 by severity"
        lines.append(f"\n{title:24}" + "".join(f"{level:>9}" for level in levels) + "     mean")
        for name, part in corrupted.groupby("corruption", sort=False):
            by_level = dict(zip(part["severity"], part["top1"], strict=True))
            cells = "".join(f"{by_level[level]:9.2%}" if level in by_level else " " * 9 for level in levels)
            lines.append(f"{str(name).replace('_', ' '):24}{cells}{part['top1'].mean():9.2%}")
    if videos:
        rates = "".join(f"\n{name.replace('_', ' '):24}{rate:9.2%}" for name, rate in summary["flips"]["perturbations"].items())
        lines.append(f"\nmean flip rate {summary['flips']['mean_flip_rate']:.2%}: {summary['flips']['note']}{rates}")
    mce = summary["mce"]
    if mce is not None:
        value = f"mCE {mce['mce']:.1f} %" if mce["mce"] is not None else "mCE not defined"
        relative = f", relative mCE {mce['relative_mce']:.1f} %" if mce["relative_mce"] is not None else ""
        lines.append(f"\n{value}{relative}: {mce['note']}" if mce["relative_to"] else f"\n{mce['note']}")
        lines += [mce["relative_note"]] if mce["relative_note"] else []
    lines += [f"note: {note}" for note in summary["notes"]]
    if summary["data"]["skipped"]:
        lines.append(f"note: images left out because they could not be read: {summary['data']['skipped']}")
    return "\n".join([*lines, f"run: {evaluation.path}\n"])


def print_segmentation(evaluation: "Evaluation") -> None:
    """Print the figures of `evaluation.json` and mIoU by severity."""
    summary, table = evaluation.summary, evaluation.table
    lines = [f"{summary['model']} ({summary['checkpoint']}), {summary['data']['images']:,} images", summary["inference"]]
    conditions: dict[str, Any] = summary["conditions"] or {}
    shown = {"clean": summary["clean"], **conditions}
    for name, scores in shown.items():
        if scores is not None:
            lines.append(
                f"{name:{_WIDTH}} mIoU {_hundredths(scores['miou'])}   pixel accuracy {_hundredths(scores['pixel_accuracy'])}   "
                f"mean of the images' own IoU {_hundredths(scores['image_iou'])}"
            )
    for name, scores in shown.items():
        if scores is not None:
            lines += ["", f"IoU of each class, {name}", *_classes(scores["per_class"])]
    corrupted = table[table["severity"] > 0]
    if len(corrupted):
        lines += ["", f"corrupted: {summary['data']['corruptions']}", *_by_severity(corrupted)]
    if summary["averages"]:
        lines.append("")
    lines += [f"mIoU over {average['label']}: {_average(average)}" for average in summary["averages"]]
    lines += [f"note: {note}" for note in summary["notes"]]
    if summary["data"]["skipped"]:
        lines.append(f"note: images left out because they could not be read: {summary['data']['skipped']}")
    say("\n".join([*lines, f"run: {evaluation.path}\n"]))


def _classes(values: dict[str, float | None]) -> list[str]:
    """Names and IoU, some in a line."""
    width = max(map(len, values))
    cells = [f"{name:{width}} {_hundredths(value)}" for name, value in values.items()]
    rows = [cells[start : start + _CLASSES_IN_A_LINE] for start in range(0, len(cells), _CLASSES_IN_A_LINE)]
    return ["   ".join(row) for row in rows]


def _by_severity(corrupted: "pd.DataFrame") -> list[str]:
    """A line for each corruption."""
    levels = sorted({int(level) for level in corrupted["severity"]})
    lines = [f"{'mIoU by severity':{_WIDTH}}" + "".join(f"{level:>9}" for level in levels) + "     mean"]
    for name, part in corrupted.groupby("corruption", sort=False):
        by_level = dict(zip(part["severity"], part["miou"], strict=True))
        cells = "".join(f"{by_level[level]:9.2%}" if level in by_level else " " * 9 for level in levels)
        lines.append(f"{str(name).replace('_', ' '):{_WIDTH}}{cells}{part['miou'].mean():9.2%}")
    return lines


def _average(average: dict[str, Any]) -> str:
    """The number, or what is missing for it."""
    if average["miou"] is not None:
        return _hundredths(average["miou"]).strip()
    missing = [name.replace("_", " ") for name in average["missing"]]
    more = f" and {len(missing) - _MISSING_SHOWN} more" if len(missing) > _MISSING_SHOWN else ""
    return f"not measured ({', '.join(missing[:_MISSING_SHOWN])}{more} are missing)"


def _hundredths(value: float | None) -> str:
    return "   none" if value is None else f"{value:7.2%}"


def print_ablation(found: "Ablation") -> None:
    """The answer in words, then a table per version of the images: what is left without k patches of each choice."""
    from rich.console import Console
    from rich.table import Table

    from overfocus.statistics.ablation import CHOICES
    from overfocus.statistics.verdicts import decimal, variant_label

    console = Console(highlight=False)
    console.print(f"\n[bold]{cell(found.model)}[/bold], {found.images} images\n")
    for sentence in found.sentences:
        console.print(cell(sentence, LONGEST_LINE))
    classes = found.table["agreement"].notna().any()
    quantities = {"agreement": "same class"} if classes else {}
    quantities |= {"output_cosine": "output cosine"}
    removed = found.table[found.table["k"] > 0]
    done = "removed" if found.how == "remove" else "corrupted"
    for corruption, severity in dict.fromkeys(zip(removed["corruption"], removed["severity"], strict=True)):
        rows = removed[(removed["corruption"] == corruption) & (removed["severity"] == severity)]
        title = f"{variant_label(str(corruption), int(severity))}, patches {done}"
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
        table.add_column("patches", no_wrap=True)
        choices = [choice for choice in CHOICES if choice in set(rows["choice"])]
        for heading in quantities.values():
            for choice in choices:
                table.add_column(f"{heading}: {choice}", justify="right")
        for (count, share), cells in rows.groupby(["k", "fraction"], sort=False):
            by_choice = cells.set_index("choice")
            values = [decimal(float(by_choice[name][choice])) for name in quantities for choice in choices]
            table.add_row(f"{count} ({100 * share:.0f} %)", *values)
        console.print()
        console.print(table)
    fewer = removed[(removed["count"] > 0) & (removed["count"] < found.images)].drop_duplicates(["choice", "k"])
    for choice, k, share, count in zip(*(fewer[name] for name in ("choice", "k", "fraction", "count")), strict=True):
        console.print(
            f"\n{choice}, {k} ({100 * share:.0f} %): mean over {count} of {found.images} images, not those of the other columns; "
            "differences.csv compares on the same images"
        )
    if (removed["count"] == 0).any():
        console.print(
            "\nno value: all other patches together receive less than the most attended ones, so no choice has equal mass"
        )
