"""Evaluating classifiers: pictures at the model's input size, one class each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from overfocus.analysis.labels import match_labels
from overfocus.analysis.measuring import output_tensor
from overfocus.analysis.pixels import describe_pixels
from overfocus.analysis.variants import CLEAN, Variant
from overfocus.checkpoints.loaded import LoadedModel
from overfocus.corruptions import corrupt
from overfocus.datasets import LabelledImages
from overfocus.errors import ImageError, RunError
from overfocus.evaluation.imagenet import is_imagenet
from overfocus.evaluation.layouts import EvaluationData, Portion
from overfocus.evaluation.pictures import Item, Pictures
from overfocus.evaluation.plan import EvaluationSettings
from overfocus.evaluation.scoring import require_classifier, score
from overfocus.evaluation.sequences import FilmFolders, flip_rate
from overfocus.evaluation.task import Array, Batching, Description, Row
from overfocus.preprocessing import Preprocess

FRAMES = 30
"""Frames that a film has about."""


class Classification:
    """The task of one evaluation."""

    def __init__(
        self,
        data: EvaluationData[LabelledImages],
        labels: Sequence[str],
        variants: Sequence[Variant],
        settings: EvaluationSettings,
    ) -> None:
        self.data = data
        self.labels = labels
        """Those of the pictures that are evaluated, each once."""
        self.variants = variants
        self.settings = settings

    def describe(self, loaded: LoadedModel) -> Description:
        """Class names, and which labels mean none of them.

        Raises:
            RunError: the model has no classifier, or no label means a class of it.
        """
        labels = self.labels
        if loaded.num_classes == 0:
            raise RunError(f"{loaded.source}: expected a classifier, but the checkpoint gives features")
        classes = match_labels(labels, loaded.class_names, loaded.num_classes)
        if not classes.ids:
            names = ", ".join((classes.names or [])[:3]) or "not named"
            raise RunError(
                f"{loaded.source}: none of the labels ({', '.join(labels[:3])}) means one of its {loaded.num_classes} classes "
                f"({names}); name the folders after the classes or by their numbers"
            )
        unknown = [label for label in labels if label not in classes.ids]
        notes = (
            [f"{len(unknown)} of {len(labels)} labels mean no class of the model ({', '.join(unknown[:3])})"] if unknown else []
        )
        if self.data.synsets is not None:
            notes.append(f"{self.data.layout}: predictions are restricted to its {len(self.data.synsets)} classes")
        if self.data.layout == "ImageNet-P":
            notes.append("ImageNet-P: accuracy and calibration are those of the first frame of each film")
        return Description(
            fixed={"pixels": describe_pixels(loaded.preprocess), "class_names": classes.names},
            found={"imagenet_labels": is_imagenet(labels), "notes": notes},
        )

    def geometry(self, loaded: LoadedModel) -> tuple[object, ...]:
        """How pictures are resized and cropped."""
        preprocess = loaded.preprocess
        return (preprocess.input_size[1:], preprocess.interpolation, preprocess.crop_pct, preprocess.crop_mode)

    def batching(self) -> Batching:
        """All variants of a picture together, and as many pictures as fill a batch."""
        pictures = FRAMES if self.data.layout == "ImageNet-P" else len(self.variants)
        return Batching(max(1, self.settings.batch_size // pictures), (range(len(self.variants)),), prefetched=4)

    def reader(self, loaded: LoadedModel) -> "ClassificationReader":
        """Resizes before it corrupts."""
        return ClassificationReader(self.data.portions, self.variants, loaded.preprocess, self.settings.seed)

    def predictor(self, loaded: LoadedModel) -> "ClassPredictor":
        """The classes of the labels, in the order of the model."""
        return ClassPredictor(loaded, self, match_labels(self.labels, loaded.class_names, loaded.num_classes).ids)


@dataclass(frozen=True)
class ClassificationReader:
    """Reads pictures at a model's input size."""

    portions: Sequence[Portion[LabelledImages]]
    variants: Sequence[Variant]
    preprocess: Preprocess
    seed: int

    def __call__(self, item: Item, places: range) -> Pictures:
        images = self.portions[item.portion].images
        try:
            if isinstance(images, FilmFolders):
                return Pictures(item, np.stack([self.preprocess.resize(frame) for frame in images.frames(item.index)]))
            picture = images.image(item.index)
        except ImageError as error:
            return Pictures(item, reason=str(error))
        clean = self.preprocess.resize(picture)
        chosen = [self.variants[place] for place in places]
        variants = [clean if variant == CLEAN else corrupt(clean, *variant, seed=self.seed) for variant in chosen]
        return Pictures(item, np.stack(variants), places=places)


class ClassPredictor:
    """Sends pictures through one classifier."""

    def __init__(self, loaded: LoadedModel, task: Classification, class_ids: dict[str, int]) -> None:
        self.loaded = loaded
        self.task = task
        self.class_ids = class_ids
        self.device = next(loaded.model.parameters()).device
        self.allowed = self._allowed()

    def __call__(self, pictures: Sequence[Pictures]) -> list[Row]:
        """The columns of the predictions table of each picture that could be read."""
        readable = [picture for picture in pictures if picture.pixels is not None]
        rows: list[Row] = [(picture.item.number, None, picture.reason) for picture in pictures if picture.pixels is None]
        if not readable:
            return rows
        inputs = [pixels for picture in readable if picture.pixels is not None for pixels in picture.pixels]
        size = self.task.settings.batch_size
        logits = torch.cat([self._logits(inputs[start : start + size]) for start in range(0, len(inputs), size)])
        require_classifier(logits, self.loaded.num_classes, self.loaded.source)
        sizes = torch.tensor([len(picture.pixels) for picture in readable if picture.pixels is not None], device=logits.device)
        targets = torch.tensor([self._target(picture.item) for picture in readable], device=logits.device)
        starts_of = sizes.cumsum(0) - sizes
        variants = self.task.variants
        reference = starts_of.repeat_interleave(sizes) if CLEAN in variants and len(variants) > 1 else None
        columns = score(logits, targets.repeat_interleave(sizes), reference, self.allowed)
        for picture, start, count in zip(readable, starts_of.tolist(), sizes.tolist(), strict=True):
            cells = {name: values[start : start + count] for name, values in columns.items()}
            portion = self.task.data.portions[picture.item.portion]
            if isinstance(portion.images, FilmFolders):
                cells = _as_film(cells, noisy="noise" in portion.corruption)
            rows.append((picture.item.number, cells, None))
        return rows

    def _logits(self, inputs: Sequence[Array]) -> Tensor:
        return output_tensor(self.loaded.model(self.loaded.preprocess.normalize_batch(inputs, self.device)))

    def _target(self, item: Item) -> int:
        images = self.task.data.portions[item.portion].images
        return self.class_ids.get(images.class_names[int(images.labels[item.index])], -1)

    def _allowed(self) -> Int[Tensor, " classes"] | None:
        """Classes that predictions are restricted to."""
        if self.task.data.synsets is None:
            return None
        ids = match_labels(self.task.data.synsets, self.loaded.class_names, self.loaded.num_classes).ids
        return torch.from_numpy(np.array(sorted(ids.values()), np.int64)).to(self.device)


def _as_film(cells: dict[str, Array], *, noisy: bool) -> dict[str, Array]:
    """The row of a film: its first frame, and as agreement the share of the others that do not flip."""
    first = {name: values[:1] for name, values in cells.items()}
    return first | {"agreement": np.array([1 - flip_rate(cells["predicted"].astype(int), noisy=noisy)])}
