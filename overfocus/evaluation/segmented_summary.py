"""The figures of an evaluation of a segmentation model in one file, each average beside what it is over."""

from dataclasses import asdict
from math import isnan
from typing import Any

from overfocus.evaluation.evaluation import Evaluation
from overfocus.evaluation.segmented_results import IOU, average_conditions, average_corruptions
from overfocus.evaluation.summary_files import describe_subject, write_files


def write_segmented_summary(evaluation: Evaluation) -> None:
    """Write evaluation.json and evaluation.csv into the run folder.

    evaluation.json: task, data (path, images, how corruptions were made, skipped pictures), inference (in words), clean (miou,
    pixel_accuracy, image_iou, per_class), conditions (the same for each of ACDC's), per_corruption (mIoU, mean over the
    severities measured), averages (each with a name, what it is the mean of, the mIoU or null and what is missing for it), notes.
    evaluation.csv is `Evaluation.table`.
    """
    info, table = evaluation.run.info, evaluation.table
    corrupted = table[table["severity"] > 0]
    rows = {str(row["corruption"]): row for row in table[table["severity"] == 0].to_dict("records")}
    clean = rows.pop("clean", None)
    mious = {
        (str(name), int(severity)): float(miou)
        for name, severity, miou in zip(corrupted["corruption"], corrupted["severity"], corrupted["miou"], strict=True)
    }
    averages = average_corruptions(mious)
    if rows:
        averages += average_conditions(evaluation.run.predictions, {name: float(row["miou"]) for name, row in rows.items()})
    content: dict[str, Any] = {
        "task": "segmentation",
        **describe_subject(info),
        "inference": info["inference"],
        "clean": None if clean is None else _scores(clean),
        "conditions": {name: _scores(row) for name, row in rows.items()} or None,
        "per_corruption": {
            str(name): float(value) for name, value in corrupted.groupby("corruption", sort=False)["miou"].mean().items()
        },
        "averages": [asdict(average) for average in averages],
        "notes": info["notes"],
    }
    write_files(evaluation, content)


def _scores(row: dict[Any, Any]) -> dict[str, Any]:
    """One row of the table; null for classes that do not occur."""
    scores: dict[str, Any] = {name: float(row[name]) for name in ("miou", "pixel_accuracy", "image_iou")}
    values = {str(name).removeprefix(IOU): float(value) for name, value in row.items() if str(name).startswith(IOU)}
    return scores | {"per_class": {name: None if isnan(value) else value for name, value in values.items()}}
