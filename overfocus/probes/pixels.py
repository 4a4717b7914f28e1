"""What a segmentation model says of each picture: a class for every pixel, and what a corruption changes about them."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from overfocus.checkpoints.loaded import LoadedModel
from overfocus.forward import output_tensor
from overfocus.probes.classes import prediction_columns
from overfocus.probes.probe import Array, Batch, Column, ItemResult, Probe, Table, model_device, variant_columns
from overfocus.runs.description import RunDescription
from overfocus.segmentation.inference import (
    Inference,
    InferenceSettings,
    PixelPrediction,
    is_segmentation,
    pixel_columns,
    predict_pixels,
)
from overfocus.sweep.reading import InputSize, Mask
from overfocus.variants import CLEAN_VARIANT, CONTROL_VARIANT, Variant

SEGMENTATION: Literal["segmentation"] = "segmentation"
"""In run.json, the "task" of such a model; other runs name none."""
BATCH_SIZE = 4
"""Images that go through such a model at once unless told: at 1024×1024 each takes about a gigabyte."""


def predicts_pixels(loaded: LoadedModel) -> bool:
    """Whether a model gives a class for every pixel; one that is neither ours nor timm's is run once to see."""
    if is_segmentation(loaded.model) or hasattr(loaded.model, "pretrained_cfg") or not loaded.num_classes:
        return is_segmentation(loaded.model)
    with torch.no_grad():
        output = loaded.model(torch.zeros(1, *loaded.input_size, device=model_device(loaded)))
    return is_segmentation(loaded.model, output_tensor(output))


class PixelsProbe(Probe):
    """Predictions of a segmentation model at its input size; class maps are kept of displayed images."""

    name: ClassVar[str] = "pixels"

    def __init__(self, loaded: LoadedModel, displayed: Sequence[int] = ()) -> None:
        self.loaded = loaded
        self.displayed = frozenset(displayed)
        self._names: Sequence[str] | None = None
        self._clean: tuple[int, PixelPrediction, Tensor] | None = None
        """An item, and what the model says of it without corruption."""

    def prepare(self, description: RunDescription) -> None:
        """Take the names of the classes and the displayed images."""
        self._names, self.displayed = description.class_names, frozenset(description.displayed)

    def rows(self, variants: Sequence[Variant]) -> Mapping[str, int]:
        """One per variant, the control left out."""
        return {"predictions": sum(variant != CONTROL_VARIANT for variant in variants)}

    def columns(self, batch: Batch, output: Any) -> Mapping[str, Column]:
        """The columns of the predictions table, and class maps; only one picture's logits exist at full size at a time."""
        size = batch.inputs.shape[2], batch.inputs.shape[3]
        masks = [_fitted(sample.mask, size) for sample in batch.samples]
        rows, maps = [], []
        for place, (item, mask, logits) in enumerate(
            zip(batch.each([sample.item for sample in batch.samples]), batch.each(masks), output, strict=True)
        ):
            row, prediction = self._row(item, batch.variants[place] == CLEAN_VARIANT, logits.float(), size, mask)
            rows.append(row)
            maps.append(prediction.on_host if item in self.displayed else None)
        columns: dict[str, Column] = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
        return columns | {"class_map": maps}

    def tables(self, results: Sequence[ItemResult]) -> Mapping[str, Table]:
        """The predictions table."""
        names = [name for name in results[0].columns[self.name] if name != "class_map"]
        return {"predictions": Table(prediction_columns({name: self.joined(results, name) for name in names}, self._names))}

    def arrays(self, results: Sequence[ItemResult], first: int) -> Iterator[tuple[str, Mapping[str, Array], bool]]:
        """Predicted and right class of each pixel of displayed images."""
        del first
        for result in results:
            maps = result.columns[self.name].get("class_map")
            kept = [] if maps is None else [maps[place] for place in result.kept]
            if kept and all(one is not None for one in kept):
                truth = {} if result.mask is None else {"truth": result.mask}
                arrays = variant_columns([result]) | {"predicted": np.stack([np.asarray(one) for one in kept])} | truth
                yield f"maps/classes-{result.item}.npz", arrays, True

    def _row(
        self, item: int, clean: bool, logits: Tensor, size: tuple[int, int], mask: Mask | None
    ) -> tuple[dict[str, Any], PixelPrediction]:
        prediction = predict_pixels(logits, size)
        if clean:
            self._clean = item, prediction, logits
        known = None if clean or self._clean is None or self._clean[0] != item else self._clean
        row = pixel_columns(logits, prediction, mask, None if known is None else known[1])
        return row | self._more(None if known is None else known[2], logits), prediction

    def _more(self, clean: Tensor | None, logits: Tensor) -> dict[str, float]:
        """Columns beyond those of every segmentation."""
        return {"output_cosine": np.nan if clean is None else _cosine(clean, logits)}


class WindowsProbe(PixelsProbe):
    """Predictions of a segmentation model for images at their own size, whole or in sliding windows, scored at that of the masks.

    The variants of an image may come in several batches, the clean one first.
    """

    owns_forward: ClassVar[bool] = True

    def __init__(self, loaded: LoadedModel, settings: InferenceSettings, batch_size: int, names: Sequence[str]) -> None:
        """`names` are those of the items, for messages."""
        super().__init__(loaded)
        self.settings = settings
        self.inference: Inference = settings.for_model(loaded, batch_size)
        self.names = names
        self.device = model_device(loaded)

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """Logits of each picture; those of one size go through the model together.

        Raises:
            RunError: the window that was asked for is larger than an image.
        """
        items = batch.each([sample.item for sample in batch.samples])
        pictures = list(zip(items, batch.pixels, strict=True))
        for (height, width), group in groupby(pictures, key=lambda picture: picture[1].shape[:2]):
            same = list(group)
            self.settings.require_room(self.names[same[0][0]], (height, width))
            together = max(1, self.inference.together // self.inference.windows((height, width)))
            for start in range(0, len(same), together):
                pixels = [pixels for _, pixels in same[start : start + together]]
                inputs = self.loaded.preprocess.normalize_batch(pixels, self.device)
                yield from self.inference.logits(self.loaded.model, inputs)

    def columns(self, batch: Batch, output: Any) -> Mapping[str, Column]:
        """The columns of the predictions table."""
        masks = batch.each([sample.mask for sample in batch.samples])
        items = batch.each([sample.item for sample in batch.samples])
        rows = []
        for item, variant, mask, logits in zip(items, batch.variants, masks, output, strict=True):
            assert mask is not None  # an evaluation has masks
            height, width = mask.shape
            row, _ = self._row(item, variant == CLEAN_VARIANT, logits.float(), (height, width), mask)
            rows.append(row)
        return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}

    def _more(self, clean: Tensor | None, logits: Tensor) -> dict[str, float]:
        del clean, logits
        return {}


def _fitted(mask: Mask | None, size: tuple[int, int]) -> Mask | None:
    return None if mask is None else InputSize(*size, "nearest").fit_mask(mask)


def _cosine(clean: Tensor, corrupted: Tensor) -> float:
    return float(nn.functional.cosine_similarity(clean.float().flatten(), corrupted.float().flatten(), dim=0))
