"""The evaluation of a segmentation model on the terminal: mIoU, classes, corruptions, and what each average is over."""

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from overfocus.evaluation.results import Evaluation

_WIDTH = 24
_CLASSES_IN_A_LINE = 4
_MISSING_SHOWN = 3


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
                f"mean of the images' own IoU {_percent(scores['image_iou'])}"
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
    typer.echo("\n".join([*lines, f"run: {evaluation.path}\n"]))


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
