"""Evaluations of classifiers and segmentation models, and ablations, on the terminal."""

from typing import TYPE_CHECKING, Any

from overfocus.text import LONGEST_LINE
from overfocus_cli.output import cell, say

if TYPE_CHECKING:
    import pandas as pd

    from overfocus.evaluation.results import Evaluation
    from overfocus.results.ablation import Ablation

_WIDTH = 24
_CLASSES_IN_A_LINE = 4
_MISSING_SHOWN = 3


def describe_evaluation(evaluation: "Evaluation") -> str:
    """An evaluation in some lines."""
    summary = evaluation.summary
    lines = [f"{summary['model']} ({summary['checkpoint']}), {summary['data']['images']:,} images"]
    films = summary["flips"] is not None
    made = "first frames of films" if films else f"corrupted ({summary['data']['corruptions']})"
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
        title = "top-1 of first frames" if films else "top-1 by severity"
        lines.append(f"\n{title:24}" + "".join(f"{level:>9}" for level in levels) + "     mean")
        for name, part in corrupted.groupby("corruption", sort=False):
            by_level = dict(zip(part["severity"], part["top1"], strict=True))
            cells = "".join(f"{by_level[level]:9.2%}" if level in by_level else " " * 9 for level in levels)
            lines.append(f"{str(name).replace('_', ' '):24}{cells}{part['top1'].mean():9.2%}")
    if films:
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
                f"{name:{_WIDTH}} mIoU {_percent(scores['miou'])}   pixel accuracy {_percent(scores['pixel_accuracy'])}   "
                f"mean of the pictures' own IoU {_percent(scores['image_iou'])}"
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
        lines.append(f"note: pictures left out because they could not be read: {summary['data']['skipped']}")
    say("\n".join([*lines, f"run: {evaluation.path}\n"]))


def _classes(values: dict[str, float | None]) -> list[str]:
    """Names and IoU, some in a line."""
    width = max(map(len, values))
    cells = [f"{name:{width}} {_percent(value)}" for name, value in values.items()]
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
        return _percent(average["miou"]).strip()
    missing = [name.replace("_", " ") for name in average["missing"]]
    more = f" and {len(missing) - _MISSING_SHOWN} more" if len(missing) > _MISSING_SHOWN else ""
    return f"not measured ({', '.join(missing[:_MISSING_SHOWN])}{more} are missing)"


def _percent(value: float | None) -> str:
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
    if (removed["count"] == 0).any():
        console.print(
            "\nno value: all other patches together receive less than the most attended ones, so none are of equal mass"
        )
