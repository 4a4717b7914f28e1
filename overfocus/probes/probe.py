"""What a probe is: it describes itself for run.json, attaches what it needs to the model, and makes rows of each batch.

    class Brightness(Probe):
        name = "brightness"
        measures = (MeasureEntry(name="brightness", title="Mean of the input", table="predictions"),)

        def columns(self, batch, output):
            return {"brightness": batch.inputs.mean((1, 2, 3)).cpu().numpy()}

A probe that only gives one value per image and variant needs no more than this: the values become columns of the predictions
table, and are shown wherever that table is.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from overfocus.runs.description import MeasureEntry, RunDescription
from overfocus.sweep.reading import Mask, Sample
from overfocus.variants import CLEAN_VARIANT, CONTROL_VARIANT, Variant

if TYPE_CHECKING:
    from overfocus.checkpoints.loaded import LoadedModel

Array = np.ndarray[Any, Any]
Column = Array | list[Array | None]
"""A value for each image of a batch: an array whose first axis they are, or a list with None where nothing is kept."""


@dataclass(eq=False)
class Batch:
    """Images that go through a model together: some variants of each sample, sample after sample."""

    samples: Sequence[Sample]
    members: Sequence[Sequence[int]]
    """Which of its variants stand for each sample."""
    pixels: list[UInt8[np.ndarray, "height width 3"]]
    """Of every image, before normalisation."""
    device: torch.device
    inputs: Float[Tensor, "images channels height width"] = field(init=False)
    """What the model was given; set before its forward, except where images keep their own size."""

    @property
    def variants(self) -> list[Variant]:
        """Of every image."""
        return [sample.variants[member] for sample, members in zip(self.samples, self.members, strict=True) for member in members]

    @property
    def starts(self) -> list[int]:
        """Place of the first image of each sample, and the number of images at the end."""
        return [0, *np.cumsum([len(members) for members in self.members]).tolist()]

    @property
    def places(self) -> list[int] | None:
        """Place of each image's clean counterpart; None where a sample has none in this batch."""
        places: list[int] = []
        for start, sample, members in zip(self.starts, self.samples, self.members, strict=False):
            own = [sample.variants[member] for member in members]
            if CLEAN_VARIANT not in own:
                return None
            places += [start + own.index(CLEAN_VARIANT)] * len(own)
        return places

    @property
    def reference(self) -> Int[Tensor, " images"] | None:
        """The same as a tensor on the device."""
        places = self.places
        return None if places is None else torch.tensor(places, device=self.device)

    def each(self, values: Sequence[Any]) -> list[Any]:
        """A value of each sample repeated for each of its images."""
        return [value for value, members in zip(values, self.members, strict=True) for _ in members]


@dataclass(eq=False)
class ItemResult:
    """Everything that was measured on one image; the first axis of each column runs over its variants."""

    item: int
    variants: list[Variant]
    size: tuple[int, int] | None = None
    """(width, height) of the file in pixels."""
    columns: dict[str, dict[str, Column]] = field(default_factory=dict)
    """By probe."""
    extra: dict[str, Any] = field(default_factory=dict)
    """By probe, what it keeps of an image beside columns."""
    pixels: UInt8[np.ndarray, "variants height width 3"] | None = None
    """Only of displayed images."""
    mask: Mask | None = None
    """At the model's input size; only of displayed images."""
    reason: str | None = None
    """Why it could not be read; then there are no columns."""

    @property
    def kept(self) -> list[int]:
        """Places of the variants of the image itself, which leave the control out."""
        return [place for place, variant in enumerate(self.variants) if variant != CONTROL_VARIANT]

    @property
    def bytes(self) -> int:
        """Memory that the arrays take."""
        total = sum(array.nbytes for array in (self.pixels, self.mask) if array is not None)
        for columns in self.columns.values():
            for column in columns.values():
                parts = [column] if isinstance(column, np.ndarray) else column
                total += sum(part.nbytes for part in parts if part is not None)
        return total


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of one table without those that say which image and variant a row is of."""

    columns: Mapping[str, Any]
    """Arrays of numpy or pyarrow, a value for each row: image by image, variant by variant."""
    repeats: int = 1
    """Rows per image and variant."""
    control: bool = False
    """Whether the control has rows."""


@dataclass(frozen=True)
class Described:
    """What a probe adds to a new run."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `RunDescription`."""
    arrays: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    """Files of arrays by name."""


class Probe:
    """What is asked of the forwards of one model; a subclass says at least what `columns` are."""

    name: ClassVar[str] = ""
    paired: ClassVar[bool] = False
    """Whether a corrupted image needs its clean counterpart in the same forward."""
    owns_forward: ClassVar[bool] = False
    """Whether `forward` runs the model in the place of a plain call."""
    measures: tuple[MeasureEntry, ...] = ()
    """Columns that are not in the catalogue of metrics, in words."""

    def describe(self, inputs: Tensor) -> Described:
        """What a new run says of the model, from a look at `inputs`: a readable image at every place of a batch, two at least."""
        del inputs
        return Described()

    def prepare(self, description: RunDescription) -> None:
        """Take in the description of the run, new or continued, before the first batch."""

    def rows(self, variants: Sequence[Variant]) -> Mapping[str, int]:
        """Rows of an item, made into these variants, in each table that the probe alone writes."""
        del variants
        return {}

    def attach(self) -> AbstractContextManager[object]:
        """What holds while the model runs, such as a capture."""
        return nullcontext()

    def begin(self, batch: Batch) -> None:
        """A batch is about to go through the model."""

    def forward(self, batch: Batch) -> Any:
        """The model's output for a batch; called only where `owns_forward`."""
        raise NotImplementedError

    def columns(self, batch: Batch, output: Any) -> Mapping[str, Column]:
        """Values of each image of a batch that went through the model; `output` is the tensor that the model returned."""
        raise NotImplementedError

    def finish(self, sample: Sample, result: ItemResult) -> None:
        """Look at the columns of an image when all of its variants are there."""

    def tables(self, results: Sequence[ItemResult]) -> Mapping[str, Table]:
        """The columns of consecutive images as tables by name; here one value per image and variant, of the predictions table."""
        names = list(results[0].columns[self.name])
        return {"predictions": Table({name: self.joined(results, name) for name in names})}

    def arrays(self, results: Sequence[ItemResult], first: int) -> Iterator[tuple[str, Mapping[str, Array], bool]]:
        """Files of arrays of consecutive images, `first` being the number of the first: name, arrays, whether compressed."""
        del results, first
        return iter(())

    def joined(self, results: Sequence[ItemResult], name: str, *, control: bool = False) -> Array:
        """A column of all results one after the other, without the control unless asked for."""
        parts = [np.asarray(result.columns[self.name][name]) for result in results]
        if not control:
            parts = [part[result.kept] for part, result in zip(parts, results, strict=True)]
        return np.concatenate(parts)


def model_device(loaded: "LoadedModel") -> torch.device:
    """Where a model is; the processor if it has no parameters."""
    parameter = next(loaded.model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def variant_columns(results: Sequence[ItemResult]) -> dict[str, Array]:
    """Corruption and severity of every variant of every image, without the control."""
    variants = [result.variants[place] for result in results for place in result.kept]
    names, severities = zip(*variants, strict=True)
    return {"corruption": np.array(names), "severity": np.array(severities)}
