"""What one classifier says of a batch, picture by picture."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from overfocus.errors import RunError
from overfocus.metrics.prediction import agreement, confidence_drop

Array = np.ndarray[Any, Any]
COLUMNS = (
    "predicted", "confidence", "agreement", "confidence_drop", "correct", "output_cosine", "correct_top5",
    "negative_log_likelihood",
)  # fmt: skip


def score(
    logits: Float[Tensor, "pictures classes"],
    targets: Int[Tensor, " pictures"],
    reference: Int[Tensor, " pictures"] | None,
    allowed: Int[Tensor, " classes"] | None = None,
) -> dict[str, Float[np.ndarray, " pictures"]]:
    """The columns of the predictions table; NaN where undefined, as is correct_top5 where there are at most five classes.

    Args:
        logits: of all classes.
        targets: the class of each picture, −1 where it means none of the model's.
        reference: place of each picture's clean counterpart in the batch; None where there are none.
        allowed: classes that predictions are restricted to; the others are left out before the softmax.
    """
    logits = logits.float()
    undefined = torch.full((len(logits),), torch.nan, device=logits.device)
    columns = dict.fromkeys(COLUMNS, undefined)
    if reference is not None:
        corrupted = reference != torch.arange(len(reference), device=reference.device)
        clean = logits[reference]
        columns["output_cosine"] = nn.functional.cosine_similarity(clean, logits).where(corrupted, undefined)
    if allowed is not None:
        barred = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        barred[allowed] = False
        logits = logits.masked_fill(barred, -torch.inf)
    if reference is not None:
        columns["agreement"] = agreement(logits[reference], logits).where(corrupted, undefined)
        columns["confidence_drop"] = confidence_drop(logits[reference], logits).where(corrupted, undefined)
    confidence, predicted = logits.softmax(-1).max(-1)
    known = targets >= 0
    classes = targets.clamp_min(0)
    choices = logits.shape[1] if allowed is None else len(allowed)
    likelihood = -logits.log_softmax(-1).gather(-1, classes.unsqueeze(-1)).squeeze(-1)
    columns["predicted"], columns["confidence"] = predicted.double(), confidence
    columns["correct"] = (predicted == classes).float().where(known, undefined)
    if choices > 5:  # of five classes, the right one is always among the first five
        five = logits.topk(5, dim=-1).indices
        columns["correct_top5"] = (five == classes.unsqueeze(-1)).any(-1).float().where(known, undefined)
    columns["negative_log_likelihood"] = likelihood.where(known, undefined)
    return {name: value.double().cpu().numpy() for name, value in columns.items()}


def require_classifier(logits: Tensor, classes: int, name: str) -> None:
    """Raise a `RunError` unless a model gives one logit per class."""
    if not classes or logits.ndim != 2 or logits.shape[1] != classes:
        raise RunError(
            f"{name}: expected a classifier, got an output of shape {tuple(logits.shape[1:])} and {classes} classes; "
            "evaluate needs a checkpoint with its classifier"
        )
