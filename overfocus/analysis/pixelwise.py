"""What a segmentation model says of a batch, pixel by pixel, put into the columns of the predictions table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from overfocus.segmentation.columns import PixelPrediction, pixel_columns, predict_pixels
from overfocus.segmentation.prediction import is_segmentation

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel

Array = np.ndarray[Any, Any]
Mask = UInt8[np.ndarray, "height width"]

SEGMENTATION = "segmentation"
"""In run.json, the "task" of such a model; other runs name none."""
BATCH_SIZE = 4
"""Pictures that go through such a model at once unless told: at 1024×1024 each takes about a gigabyte."""


def predicts_pixels(loaded: "LoadedModel") -> bool:
    """Whether a model gives a class for every pixel; one that is neither ours nor timm's is run once to see."""
    from overfocus.analysis.measuring import output_tensor

    if is_segmentation(loaded.model) or hasattr(loaded.model, "pretrained_cfg") or not loaded.num_classes:
        return is_segmentation(loaded.model)
    device = next((parameter.device for parameter in loaded.model.parameters()), None)
    with torch.no_grad():
        output = loaded.model(torch.zeros(1, *loaded.input_size, device=device))
    return is_segmentation(loaded.model, output_tensor(output))


def pixel_predictions(
    logits: Float[Tensor, "pictures classes rows columns"],
    size: tuple[int, int],
    reference: Int[Tensor, " pictures"],
    masks: Sequence[Mask | None],
) -> tuple[dict[str, Array], UInt8[np.ndarray, "pictures height width"]]:
    """Columns of the predictions table by picture, and the class of every pixel of pictures of `size` (height, width).

    `reference` is the place of each picture's clean counterpart, `masks` the right classes where they are known. Only one
    picture's logits exist at full size at a time.
    """
    rows: list[dict[str, Any]] = []
    seen: list[PixelPrediction] = []
    for place, clean_place in enumerate(reference.tolist()):
        corrupted = clean_place != place
        own = logits[place].float()
        seen.append(predict_pixels(own, size))
        columns = pixel_columns(own, seen[place], masks[place], seen[clean_place] if corrupted else None)
        rows.append(columns | {"output_cosine": _cosine(logits[clean_place], own) if corrupted else np.nan})
    table = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    return table, np.stack([prediction.on_host for prediction in seen])


def _cosine(clean: Tensor, corrupted: Tensor) -> float:
    return float(nn.functional.cosine_similarity(clean.float().flatten(), corrupted.float().flatten(), dim=0))
