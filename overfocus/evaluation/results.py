"""What an evaluation gives: accuracy, calibration and IoU from the predictions of its run folder, each beside what it is over."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from overfocus.corruptions import GROUPS
from overfocus.errors import RunError
from overfocus.evaluation.corruption_error import corruption_error, describe_levels, describe_tree
from overfocus.files import atomic_file, read_json
from overfocus.run import Run
from overfocus.runs.description import RunDescription
from overfocus.runs.folder import write_csv
from overfocus.segmentation import class_iou, mean_iou, pixel_accuracy
from overfocus.settings import typed
from overfocus.text import json_bytes
from overfocus.variants import CLEAN, CLEAN_VARIANT

if TYPE_CHECKING:
    import pandas as pd


CALIBRATION_BINS = 15
CITYSCAPES_C = (
    "gaussian_blur", "motion_blur", "glass_blur", "defocus_blur", "gaussian_noise", "shot_noise", "speckle_noise",
    "impulse_noise", "contrast", "jpeg_compression", "saturate", "brightness", "snow", "fog", "frost", "spatter",
)  # fmt: skip
"""The 16 corruptions that published scores on Cityscapes-C are means over: noise at severities 1 to 3, the others at 1 to 5."""
IOU = "iou "
"""What the columns of the table begin with that hold the IoU of one class."""


def measure_predictions(predictions: "pd.DataFrame") -> "pd.DataFrame":
    """One row per corruption × severity: images, top1, top5, ece, nll.

    top1 and top5 (NaN for models of at most five classes) are shares of 0 … 1 of the images whose label is one of the model's
    classes, nll the mean negative log-likelihood of their class in nats, ece the expected calibration error of the most
    probable class, 15 bins, 0 … 1.
    """
    import pandas as pd
    from torchmetrics.functional.classification import binary_calibration_error

    rows = []
    for (corruption, severity), part in predictions.groupby(["corruption", "severity"], sort=False):
        known = part[part["correct"].notna()]
        confidence = torch.tensor(known["confidence"].tolist(), dtype=torch.float64)
        right = torch.tensor(known["correct"].tolist(), dtype=torch.int64)
        # whether the most probable class is the right one is a binary event, and its probability the confidence
        ece = float(binary_calibration_error(confidence, right, n_bins=CALIBRATION_BINS)) if len(known) else np.nan
        rows.append(
            {
                "corruption": corruption,
                "severity": severity,
                "images": len(known),
                "top1": known["correct"].mean(),
                "top5": known["correct_top5"].mean(),
                "ece": ece,
                "nll": known["negative_log_likelihood"].mean(),
            }
        )
    return pd.DataFrame(rows, columns=["corruption", "severity", "images", "top1", "top5", "ece", "nll"])


def errors_of(table: "pd.DataFrame") -> tuple[dict[tuple[str, int], float], float | None]:
    """Errors by (corruption, severity), and the clean one if it was measured."""
    errors = {
        (str(corruption), int(severity)): 1 - float(top1)
        for corruption, severity, top1 in zip(table["corruption"], table["severity"], table["top1"], strict=True)
    }
    return {variant: error for variant, error in errors.items() if variant[1]}, errors.get(CLEAN_VARIANT)


@dataclass(frozen=True)
class Average:
    """mIoU over several corruptions."""

    name: str
    label: str
    """What it is the mean of, in words."""
    miou: float | None
    """None where something of it was not measured."""
    missing: list[str]
    """What was not: "fog 3", "snow 1–5"."""


def measure_segmentation(predictions: "pd.DataFrame", class_names: Sequence[str]) -> "pd.DataFrame":
    """One row per corruption × severity: images, miou, pixel_accuracy, image_iou, agreement, and the IoU of each class.

    miou, pixel_accuracy and the IoU of the classes, all 0 … 1, are those of all pixels of the set together; NaN for a class that
    is in no mask and no prediction. image_iou is the mean over the images of each one's own mIoU; agreement that of the share
    of pixels that keep the class which they have without corruption.
    """
    import pandas as pd

    rows = []
    for (corruption, severity), part in predictions.groupby(["corruption", "severity"], sort=False):
        intersections, unions = (np.stack(part[name].to_list()).sum(0) for name in ("intersections", "unions"))
        row: dict[str, Any] = {
            "corruption": corruption,
            "severity": severity,
            "images": len(part),
            "miou": float(mean_iou(intersections, unions)),
            "pixel_accuracy": float(pixel_accuracy(intersections, unions)),
            "image_iou": part["image_iou"].mean(),
            "agreement": part["agreement"].mean(),
        }
        rows.append(row | {IOU + name: value for name, value in zip(class_names, class_iou(intersections, unions), strict=True)})
    return pd.DataFrame(rows)


def average_corruptions(mious: Mapping[tuple[str, int], float]) -> list[Average]:
    """Means over the corruptions of their means over severities; `mious` by (corruption, severity), without the clean images.

    That of the published evaluations and that over the 15 common corruptions stand there even where something is missing,
    without a number then; what was measured in any other choice follows as a mean of its own.
    """
    if not mious:
        return []
    published = {name: range(1, 4) if name.endswith("noise") else range(1, 6) for name in CITYSCAPES_C}
    wanted = (
        ("cityscapes_c", "the 16 corruptions of published Cityscapes-C scores, noise at severities 1–3, others 1–5", published),
        ("common", "the 15 common corruptions at severities 1–5", {name: range(1, 6) for name in GROUPS["common"]}),
    )
    measured = {name: sorted(level for other, level in mious if other == name) for name, _ in mious}
    found = [_average(name, label, parts, mious) for name, label, parts in wanted]
    if not any(
        set(measured) == set(parts) and average.miou is not None for (*_, parts), average in zip(wanted, found, strict=True)
    ):
        choices = {describe_levels(levels) for levels in measured.values()}
        where = "the severities measured of each"
        if len(choices) == 1:
            levels = choices.pop()
            where = f"severities {levels}" if len(levels) > 1 else f"severity {levels}"
        names = f"the {len(measured)} corruptions measured" if len(measured) > 1 else next(iter(measured)).replace("_", " ")
        found.append(_average("measured", f"{names}, at {where}", measured, mious))
    return found


def average_conditions(predictions: "pd.DataFrame", mious: Mapping[str, float]) -> list[Average]:
    """The conditions of ACDC, one by one in `mious`, as their mean and as one set."""
    parts = predictions[predictions["corruption"].isin(list(mious))]
    intersections, unions = (np.stack(parts[name].to_list()).sum(0) for name in ("intersections", "unions"))
    missing = [name for name in ("ACDC fog", "ACDC night", "ACDC rain", "ACDC snow") if name not in mious]
    mean, together = float(np.mean(list(mious.values()))), float(mean_iou(intersections, unions))
    return [
        Average("acdc_mean", "the mean of ACDC's four conditions", None if missing else mean, missing),
        Average("acdc_all", "the images of ACDC's four conditions as one set", None if missing else together, missing),
    ]


def _average(name: str, label: str, parts: Mapping[str, Sequence[int]], mious: Mapping[tuple[str, int], float]) -> Average:
    absent = {corruption: [level for level in levels if (corruption, level) not in mious] for corruption, levels in parts.items()}
    missing = [f"{corruption} {describe_levels(levels)}" for corruption, levels in absent.items() if levels]
    if missing:
        return Average(name, label, None, missing)
    means = [np.mean([mious[corruption, level] for level in levels]) for corruption, levels in parts.items()]
    return Average(name, label, float(np.mean(means)), [])


class Evaluation:
    """Accuracy, calibration and corruption errors of one checkpoint; IoU where it is a segmentation model.

    Raises:
        RunError: the folder holds no finished evaluation.
    """

    @typed(RunError)
    def __init__(self, path: str | Path) -> None:
        self.run = Run(path)
        if self.run.description.kind != "evaluation":
            raise RunError(f"{path}: expected an evaluation as `overfocus evaluate` writes it, but this is another run")

    @property
    def path(self) -> Path:
        """Its run folder."""
        return self.run.path

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row per corruption × severity; ("clean", 0) without corruption.

        Columns: images, top1, top5, ece, nll; of segmentation images, miou, pixel_accuracy, image_iou, agreement, and "iou …" for
        each class.
        """
        if self.run.segmented:
            return measure_segmentation(self.run.predictions, self.run.class_names or [])

        return measure_predictions(self.run.predictions)

    @property
    def summary(self) -> dict[str, Any]:
        """The content of evaluation.json: data and how they were corrupted, clean figures, means and what each is over."""
        return read_json(self.path / "evaluation.json", "the summary of a finished evaluation")


PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "snow", "brightness", "translate", "rotate", "tilt", "scale",
)  # fmt: skip
"""Those that ImageNet-P's mean is over; its archives also hold four to choose a method by, and stronger noise."""


def write_summary(evaluation: Evaluation, baseline: Evaluation | None) -> None:
    """Write evaluation.json and evaluation.csv into the run folder.

    evaluation.json: data (path, clean, images, how corruptions were made, skipped), clean and corrupted (means over corruptions
    and severities of top1, top5, ece, nll; top5 null for models of at most five classes), per_corruption (top-1 means over
    severities), flips (of videos: rates and a note), mce (as `CorruptionError`), notes. Of a video, the figures are those of its
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

    The rate of a perturbation is the mean over its videos of `flip_rate`. AlexNet's rates, by which the authors divide, are in no
    table that could be cited, so that nothing is divided by them.
    """
    videos = evaluation.run.predictions.groupby("corruption", sort=False)["agreement"].mean()
    rates = {str(name): 1 - float(value) for name, value in videos.items()}
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

    evaluation.json: task, data (path, images, how corruptions were made, skipped images), inference (in words), clean (miou,
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
