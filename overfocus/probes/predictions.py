"""What a model says of each image, its class or a class for every pixel, and what a corruption changes about that."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from overfocus.checkpoints.loaded import LoadedModel
from overfocus.errors import RunError
from overfocus.forward import output_tensor
from overfocus.metrics.formulas import agreement, confidence_drop
from overfocus.probes.probe import Array, Batch, Column, ItemResult, Probe, Table, model_device, variant_columns
from overfocus.runs.description import RunDescription
from overfocus.segmentation.inference import (
    NO_CLASS,
    Inference,
    InferenceSettings,
    PixelPrediction,
    is_segmentation,
    pixel_columns,
    predict_pixels,
)
from overfocus.sweep.reading import InputSize, Mask, Sample
from overfocus.variants import CLEAN_VARIANT, CONTROL_VARIANT, Variant

PREDICTION = ("predicted", "confidence", "agreement", "confidence_drop", "correct", "output_cosine")
"""Columns of the predictions table."""
SCORES = ("correct_top5", "negative_log_likelihood")
"""Columns that an evaluation has besides."""


class ClassesProbe(Probe):
    """Predictions of a classifier; of a model without one, how its features change."""

    name: ClassVar[str] = "classes"

    def __init__(self, loaded: LoadedModel, targets: Sequence[int]) -> None:
        """`targets` are the class of each item, −1 where it is not known or none of the model's."""
        self.loaded = loaded
        self.targets = targets
        self._names: Sequence[str] | None = None

    def prepare(self, description: RunDescription) -> None:
        """Take the names of the classes."""
        self._names = description.class_names

    def rows(self, variants: Sequence[Variant]) -> Mapping[str, int]:
        """One per variant, the control left out."""
        return {"predictions": sum(variant != CONTROL_VARIANT for variant in variants)}

    def columns(self, batch: Batch, output: Any) -> Mapping[str, Column]:
        """The columns of the predictions table; NaN where undefined.

        Raises:
            RunError: there is no predicted class because the model's output holds NaN.
        """
        return self._on_host(self._score(batch, output.float()), PREDICTION)

    def tables(self, results: Sequence[ItemResult]) -> Mapping[str, Table]:
        """The predictions table."""
        columns = {name: self.joined(results, name) for name in results[0].columns[self.name]}
        return {"predictions": Table(prediction_columns(columns, self._names))}

    def _score(
        self, batch: Batch, logits: Float[Tensor, "images *features"], allowed: Int[Tensor, " classes"] | None = None
    ) -> dict[str, Float[Tensor, " images"]]:
        targets = torch.tensor(batch.each([self.targets[sample.item] for sample in batch.samples]), device=logits.device)
        classes = self.loaded.num_classes
        known = bool(classes) and logits.shape[1:] == (classes,)
        return score(logits, targets, batch.reference, allowed, classifier=known)

    def _on_host(self, columns: Mapping[str, Tensor], names: Sequence[str]) -> Mapping[str, Column]:
        found = {name: columns[name].double().cpu().numpy() for name in names}
        if bool((np.isnan(found["confidence"]) & ~np.isnan(found["predicted"])).any()):
            raise RunError(f"{self.loaded.source}: {NO_CLASS}")
        return found


class ScoresProbe(ClassesProbe):
    """Predictions of a classifier with what accuracy and calibration are made of; of videos, how often they flip."""

    def __init__(
        self,
        loaded: LoadedModel,
        targets: Sequence[int],
        *,
        allowed: Sequence[int] | None = None,
        videos: Mapping[int, bool] | None = None,
    ) -> None:
        """`allowed` are the classes that predictions are restricted to; `videos` the items that are videos, and whether noisy."""
        super().__init__(loaded, targets)
        self.allowed = allowed
        self.videos = videos or {}

    def columns(self, batch: Batch, output: Any) -> Mapping[str, Column]:
        """The columns of the predictions table; NaN where undefined.

        Raises:
            RunError: the model has no classifier, or its output holds NaN.
        """
        classes = self.loaded.num_classes
        if not classes or output.ndim != 2 or output.shape[1] != classes:
            raise RunError(
                f"{self.loaded.source}: expected a classifier, got an output of shape {tuple(output.shape[1:])} and {classes} "
                "classes; evaluate needs a checkpoint with its classifier"
            )
        allowed = None if self.allowed is None else torch.tensor(list(self.allowed), dtype=torch.int64, device=output.device)
        return self._on_host(self._score(batch, output.float(), allowed), (*PREDICTION, *SCORES))

    def finish(self, sample: Sample, result: ItemResult) -> None:
        """The row of a video: its first frame, and as agreement the share of the others that do not flip."""
        if sample.item not in self.videos:
            return
        columns = result.columns[self.name]
        classes = np.asarray(columns["predicted"]).astype(int)
        first: dict[str, Column] = {name: values[:1] for name, values in columns.items()}
        first["agreement"] = np.array([1 - flip_rate(classes, noisy=self.videos[sample.item])])
        result.columns[self.name], result.variants = first, result.variants[:1]


def score(
    logits: Float[Tensor, "images *features"],
    targets: Int[Tensor, " images"],
    reference: Int[Tensor, " images"] | None,
    allowed: Int[Tensor, " classes"] | None = None,
    *,
    classifier: bool = True,
) -> dict[str, Float[Tensor, " images"]]:
    """The columns of the predictions table; NaN where undefined, as is correct_top5 where there are at most five classes.

    Args:
        logits: of all classes, or features of any shape.
        targets: the class of each image, −1 where it means none of the model's.
        reference: place of each image's clean counterpart in the batch; None if there are none.
        allowed: classes that predictions are restricted to; the others are left out before the softmax.
        classifier: whether these are logits; of features the cosine alone is defined.
    """
    logits = logits.float()
    undefined = torch.full((len(logits),), torch.nan, device=logits.device)
    columns = dict.fromkeys((*PREDICTION, *SCORES), undefined)
    corrupted = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    if reference is not None:
        corrupted = reference != torch.arange(len(reference), device=reference.device)
        cosine = nn.functional.cosine_similarity(logits[reference].flatten(1), logits.flatten(1))
        columns["output_cosine"] = cosine.where(corrupted, undefined)
    if not classifier:
        return columns
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
    return columns


def prediction_columns(values: Mapping[str, Array], class_names: Sequence[str] | None) -> dict[str, Any]:
    """Columns for the predictions table: null where undefined, the name of the class beside its number, lists for counts."""
    import pyarrow

    known = ~np.isnan(values["predicted"])
    numbers = np.where(known, values["predicted"], 0).astype(np.int64)
    names = [class_names[number] if class_names and there else None for number, there in zip(numbers, known, strict=True)]
    columns = {"predicted": pyarrow.array(numbers, mask=~known), "predicted_name": pyarrow.array(names, pyarrow.string())}
    for name, column in values.items():
        if name != "predicted" and column.ndim == 1:
            columns[name] = pyarrow.array(column.astype(np.float64), from_pandas=True)
        elif name != "predicted":
            columns[name] = pyarrow.array(list(column), pyarrow.list_(pyarrow.int64()))
    return columns


def flip_rate(predicted: Int[np.ndarray, " frames"] | Sequence[int], *, noisy: bool) -> float:
    """Share of the frames after the first whose class differs from that of the frame before; of the first where `noisy`.

    Frames of a noise perturbation differ by noise that is drawn anew, so that none of them comes before another. The measure of
    ImageNet-P: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
    2019, section 4.3.

    >>> round(flip_rate([1, 1, 2, 1], noisy=False), 3), round(flip_rate([1, 1, 2, 1], noisy=True), 3)
    (0.667, 0.333)
    """
    classes = np.asarray(predicted)
    before = classes[:1] if noisy else classes[:-1]
    return float(np.mean(classes[1:] != before))


SEGMENTATION: Literal["segmentation"] = "segmentation"
"""In run.json, the "task" of such a model; other runs name none."""
BATCH_SIZE = 4
"""Images that go through such a model at once by default: at 1024×1024 each takes about a gigabyte."""


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
        """The columns of the predictions table, and class maps; only one image's logits exist at full size at a time."""
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
        """Logits of each image; those of one size go through the model together.

        Raises:
            RunError: the window that was asked for is larger than an image.
        """
        items = batch.each([sample.item for sample in batch.samples])
        images = list(zip(items, batch.pixels, strict=True))
        for (height, width), group in groupby(images, key=lambda image: image[1].shape[:2]):
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
