"""The figures of an evaluation in one file, each beside what it is over."""

from collections.abc import Mapping
from dataclasses import asdict
from math import isnan
from typing import Any

from overfocus.evaluation.corruption_error import corruption_error, describe_tree
from overfocus.evaluation.evaluation import Evaluation
from overfocus.evaluation.results import IOU, average_conditions, average_corruptions, errors_of
from overfocus.files import atomic_file
from overfocus.runs.description import RunDescription
from overfocus.runs.tables import write_csv
from overfocus.text import json_bytes
from overfocus.variants import CLEAN

PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "snow", "brightness", "translate", "rotate", "tilt", "scale",
)  # fmt: skip
"""Those that ImageNet-P's mean is over; its archives also hold four to choose a method by, and stronger noise."""


def write_summary(evaluation: Evaluation, baseline: Evaluation | None) -> None:
    """Write evaluation.json and evaluation.csv into the run folder.

    evaluation.json: data (path, clean, images, how corruptions were made, skipped), clean and corrupted (means over corruptions
    and severities of top1, top5, ece, nll; top5 null for models of at most five classes), per_corruption (top-1 means over
    severities), flips (of films: rates and a note), mce (as `CorruptionError`), notes. Of a film, the figures are those of its
    first frame. evaluation.csv is `Evaluation.table`.
    """
    description, table = evaluation.run.description, evaluation.table
    corrupted = table[table["severity"] > 0]
    clean = table[table["severity"] == 0]
    errors, clean_error = errors_of(table)
    by = None
    if baseline is not None:
        by = (f"the baseline {baseline.path.name}", *errors_of(baseline.table))
    imagenet = description.checkpoint.num_classes == 1000 and description.imagenet_labels
    made = description.settings.made or "none"
    content: dict[str, Any] = {
        **_subject(description),
        "clean": _means(clean),
        "corrupted": _means(corrupted),
        "per_corruption": {
            str(name): float(value) for name, value in corrupted.groupby("corruption", sort=False)["top1"].mean().items()
        },
        "flips": _flips(evaluation) if made == "ImageNet-P" else None,
        "mce": corruption_error(
            errors,
            clean_error,
            made=made,
            imagenet=imagenet,
            baseline=by,
            constants=description.settings.constants,
            pixels=description.pixels,
            tree_geometry=description.settings.tree_geometry,
        ).as_dict()
        if errors and made != "ImageNet-P"
        else None,
        "notes": description.checkpoint.notes + description.notes,
        "lenient": description.checkpoint.lenient,
    }
    _write(evaluation, content)


def _flips(evaluation: Evaluation) -> dict[str, Any]:
    """Flip rate of each perturbation, the mean over ImageNet-P's ten, shares of 0 … 1, and what the mean is and is not.

    The rate of a perturbation is the mean over its films of `flip_rate`. AlexNet's rates, by which the authors divide, are in no
    table that could be cited, so that nothing is divided by them.
    """
    films = evaluation.run.predictions.groupby("corruption", sort=False)["agreement"].mean()
    rates = {str(name): 1 - float(value) for name, value in films.items()}
    counted = [name for name in rates if name in PERTURBATIONS] or list(rates)
    over = f"{len(counted)} of ImageNet-P's ten perturbations" if counted[0] in PERTURBATIONS else "perturbations of no benchmark"
    geometry = describe_tree(evaluation.run.description.settings.tree_geometry, evaluation.run.description.pixels)
    return {
        "mean_flip_rate": sum(rates[name] for name in counted) / len(counted),
        "perturbations": rates,
        "note": f"mean over {over}{geometry}; not divided by AlexNet's rates, so not comparable with published mFR or mFP",
    }


def _means(table: Any) -> dict[str, float | None] | None:
    """Means of the columns, None for one that is not defined."""
    if not len(table):
        return None
    means = {name: float(table[name].mean()) for name in ("top1", "top5", "ece", "nll")}
    return {name: None if isnan(mean) else mean for name, mean in means.items()}


def write_segmented_summary(evaluation: Evaluation) -> None:
    """Write evaluation.json and evaluation.csv into the run folder.

    evaluation.json: task, data (path, images, how corruptions were made, skipped pictures), inference (in words), clean (miou,
    pixel_accuracy, image_iou, per_class), conditions (the same for each of ACDC's), per_corruption (mIoU, mean over the
    severities measured), averages (each with a name, what it is the mean of, the mIoU or null and what is missing for it), notes.
    evaluation.csv is `Evaluation.table`.
    """
    description, table = evaluation.run.description, evaluation.table
    corrupted = table[table["severity"] > 0]
    rows = {str(row["corruption"]): row for row in table[table["severity"] == 0].to_dict("records")}
    clean = rows.pop(CLEAN, None)
    mious = {
        (str(name), int(severity)): float(miou)
        for name, severity, miou in zip(corrupted["corruption"], corrupted["severity"], corrupted["miou"], strict=True)
    }
    averages = average_corruptions(mious)
    if rows:
        averages += average_conditions(evaluation.run.predictions, {name: float(row["miou"]) for name, row in rows.items()})
    content: dict[str, Any] = {
        "task": "segmentation",
        **_subject(description),
        "inference": description.inference,
        "clean": None if clean is None else _scores(clean),
        "conditions": {name: _scores(row) for name, row in rows.items()} or None,
        "per_corruption": {
            str(name): float(value) for name, value in corrupted.groupby("corruption", sort=False)["miou"].mean().items()
        },
        "averages": [asdict(average) for average in averages],
        "notes": description.checkpoint.notes + description.notes,
        "lenient": description.checkpoint.lenient,
    }
    _write(evaluation, content)


def _scores(row: dict[Any, Any]) -> dict[str, Any]:
    """One row of the table; null for classes that do not occur."""
    scores: dict[str, Any] = {name: float(row[name]) for name in ("miou", "pixel_accuracy", "image_iou")}
    values = {str(name).removeprefix(IOU): float(value) for name, value in row.items() if str(name).startswith(IOU)}
    return scores | {"per_class": {name: None if isnan(value) else value for name, value in values.items()}}


def _subject(description: RunDescription) -> dict[str, Any]:
    """Checkpoint, model and data of a run."""
    settings = description.settings
    return {
        "checkpoint": description.checkpoint.source,
        "model": description.checkpoint.name,
        "data": {
            "images": len(description.images),
            "path": settings.images,
            "clean": settings.clean,
            "corruptions": settings.made,
            "skipped": len(description.skipped),
        },
    }


def _write(evaluation: Evaluation, content: Mapping[str, Any]) -> None:
    """Write `content` as evaluation.json and the table as evaluation.csv into the run folder."""
    with atomic_file(evaluation.path / "evaluation.json") as file:
        file.write(json_bytes(content))
    write_csv(evaluation.path / "evaluation.csv", evaluation.table)
