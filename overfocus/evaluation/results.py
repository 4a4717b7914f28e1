"""Accuracy and calibration from the predictions of an evaluation's run folder."""

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import pandas as pd

CALIBRATION_BINS = 15


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
    return {variant: error for variant, error in errors.items() if variant[1]}, errors.get(("clean", 0))
