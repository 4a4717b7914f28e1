"""What the kinds of models that can be evaluated have to say for themselves, so that one session evaluates them all."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from overfocus.analysis.variants import Variant
from overfocus.checkpoints.loaded import LoadedModel
from overfocus.evaluation.layouts import EvaluationData
from overfocus.evaluation.pictures import Pictures, Reader

Array = np.ndarray[Any, Any]
Row = tuple[int, dict[str, Array] | None, str | None]
"""(item, columns of the predictions table by variant, None), or (item, None, why it could not be read)."""


class Predictor(Protocol):
    """What one model says of pictures."""

    def __call__(self, pictures: Sequence[Pictures]) -> list[Row]: ...


@dataclass(frozen=True)
class Batching:
    """How items and their variants are put together."""

    items: int
    """Pictures that are read together."""
    pieces: tuple[range, ...]
    """The variants of a picture in parts, one after the other; several only where `items` is 1."""
    prefetched: int
    """Batches that each process of the loader reads ahead."""


@dataclass(frozen=True)
class Description:
    """What a task adds to run.json."""

    fixed: dict[str, Any]
    """What a continued run has in common with the one that lies in its folder."""
    found: dict[str, Any]
    """What is written when a run begins."""


class Task(Protocol):
    """Classification or segmentation, on one data set and its variants."""

    data: EvaluationData[Any]
    variants: Sequence[Variant]
    """Made of each item; a single ("clean", 0) where the portions say what the pictures are."""

    def describe(self, loaded: LoadedModel) -> Description:
        """What to write of a model.

        Raises:
            RunError: the model does not fit the task or the data.
        """
        ...

    def geometry(self, loaded: LoadedModel) -> Hashable:
        """Models for which this is equal share the pictures."""
        ...

    def batching(self) -> Batching:
        """How pictures are put together."""
        ...

    def reader(self, loaded: LoadedModel) -> Reader:
        """What reads pictures for a model."""
        ...

    def predictor(self, loaded: LoadedModel) -> Predictor:
        """What sends them through it."""
        ...
