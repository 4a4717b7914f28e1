"""Accuracy, calibration and IoU from the predictions of an evaluation's run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from overfocus.corruptions import GROUPS
from overfocus.evaluation.severities import describe_levels
from overfocus.segmentation.scores import class_iou, mean_iou, pixel_accuracy
from overfocus.variants import CLEAN_VARIANT

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
    classes, nll the mean negative
    log-likelihood of their class in nats, ece the expected calibration error of the most probable class, 15 bins, 0 … 1.
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
    is in no mask and no prediction. image_iou is the mean over the pictures of each one's own mIoU; agreement that of the share
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
    """Means over the corruptions of their means over severities; `mious` by (corruption, severity), without the clean pictures.

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
        Average("acdc_all", "the pictures of ACDC's four conditions as one set", None if missing else together, missing),
    ]


def _average(name: str, label: str, parts: Mapping[str, Sequence[int]], mious: Mapping[tuple[str, int], float]) -> Average:
    absent = {corruption: [level for level in levels if (corruption, level) not in mious] for corruption, levels in parts.items()}
    missing = [f"{corruption} {describe_levels(levels)}" for corruption, levels in absent.items() if levels]
    if missing:
        return Average(name, label, None, missing)
    means = [np.mean([mious[corruption, level] for level in levels]) for corruption, levels in parts.items()]
    return Average(name, label, float(np.mean(means)), [])
