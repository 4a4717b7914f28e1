"""Results of images as tables and arrays, the way they lie in a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from overfocus.analysis.variants import Variant
from overfocus.segmented_run import CLASS_SHARE_COLUMNS

if TYPE_CHECKING:
    import pyarrow

Array = np.ndarray[Any, Any]


class ClassShares(NamedTuple):
    """The received attention of one image in one layer, by class of its mask."""

    classes: Int[np.ndarray, " classes"]
    area: Float[np.ndarray, " classes"]
    """Share of the picture's area."""
    received: Float[np.ndarray, "variants classes"]
    """Share of the received attention."""


@dataclass
class ImageResult:
    """Everything that was measured on one image; the first axis of each array runs over its variants."""

    image: int
    size: tuple[int, int]
    """(width, height) of the file in pixels."""
    values: dict[int, Array]
    """(variants, heads, metrics) by layer."""
    received: dict[int, Array]
    """(variants, rows, columns) by layer."""
    predictions: dict[str, Array]
    pictures: UInt8[np.ndarray, "variants height width 3"] | None = None
    """Only of displayed images."""
    attention: dict[int, Array] = field(default_factory=dict)
    """(variants, windows, queries, keys) by layer; only of displayed images."""
    class_shares: dict[int, ClassShares] = field(default_factory=dict)
    """By layer; empty where the image has no mask."""
    class_maps: UInt8[np.ndarray, "variants height width"] | None = None
    """Predicted class of each pixel; only of displayed images of segmentation models."""
    mask: UInt8[np.ndarray, "height width"] | None = None
    """The right classes beside `class_maps`, where they are known."""

    @property
    def bytes(self) -> int:
        """Memory that the arrays take."""
        shown = [array for array in (self.pictures, self.class_maps, self.mask) if array is not None]
        arrays = [*self.values.values(), *self.received.values(), *self.attention.values(), *shown]
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class Tables:
    """Puts results into the columns of the tables; holds what is the same for all images of a run."""

    images: Sequence[dict[str, Any]]
    """The images of run.json, by number: name, label, …"""
    variants: Sequence[Variant]
    layers: Sequence[dict[str, Any]]
    """The layers of run.json."""
    metric_names: Sequence[str]
    per_head: bool
    class_names: Sequence[str] | None
    class_ids: dict[str, int]
    """Class of each label that means one."""

    def metrics(self, results: Sequence[ImageResult]) -> "pyarrow.Table":
        """One row per image × variant × layer (× head), in this order; NaN where a metric is undefined."""
        import pyarrow

        numbers = [layer["layer"] for layer in self.layers]
        heads = [results[0].values[number].shape[1] for number in numbers]
        slots = [(layer, head) for layer, count in zip(self.layers, heads, strict=True) for head in range(count)]
        repeats = np.tile(np.arange(len(slots)), len(results) * len(self.variants))
        columns = self._identity(results, len(slots)) | {
            "layer": _taken([layer["layer"] for layer, _ in slots], repeats, pyarrow.int32()),
            "module": _taken([layer["module"] for layer, _ in slots], repeats, pyarrow.string()),
            "kind": _taken([layer["kind"] for layer, _ in slots], repeats, pyarrow.string()),
        }
        if self.per_head:
            columns["head"] = _taken([head for _, head in slots], repeats, pyarrow.int32())
        values = np.stack([np.concatenate([result.values[number] for number in numbers], axis=1) for result in results])
        flat = values.reshape(len(repeats), len(self.metric_names))
        return pyarrow.table(columns | {name: pyarrow.array(flat[:, place]) for place, name in enumerate(self.metric_names)})

    def predictions(self, results: Sequence[ImageResult]) -> "pyarrow.Table":
        """One row per image × variant; null where the model has no classifier or the class of the label is not known."""
        import pyarrow

        values = {name: np.concatenate([result.predictions[name] for result in results]) for name in results[0].predictions}
        known = ~np.isnan(values["predicted"])
        numbers = np.where(known, values["predicted"], 0).astype(np.int64)
        names = [
            self.class_names[number] if self.class_names and there else None for number, there in zip(numbers, known, strict=True)
        ]
        if "correct" not in values:
            labels = [self.images[result.image]["label"] for result in results]
            truth = np.repeat(
                [self.class_ids.get(label, -1) if label is not None else -1 for label in labels], len(self.variants)
            )
            values["correct"] = np.where(known & (truth >= 0), numbers == truth, np.nan)
        columns = {"predicted": pyarrow.array(numbers, mask=~known), "predicted_name": pyarrow.array(names, pyarrow.string())}
        for name in ("confidence", "agreement", "confidence_drop", "correct", "output_cosine", "image_iou"):
            if name in values:
                columns[name] = pyarrow.array(values[name].astype(np.float64), from_pandas=True)
        for name in ("intersections", "unions"):
            if name in values:
                columns[name] = pyarrow.array(list(values[name]), pyarrow.list_(pyarrow.int64()))
        return pyarrow.table(self._identity(results, 1) | columns)

    def class_shares(self, results: Sequence[ImageResult]) -> "pyarrow.Table":
        """One row per image × variant × layer × class in the image's mask."""
        import pyarrow

        modules = {layer["layer"]: layer["module"] for layer in self.layers}
        rows = [
            (
                result.image, self.images[result.image]["name"], corruption, severity, layer, modules[layer], int(number),
                self.class_names[number] if self.class_names else None, float(share), float(area),
            )
            for result in results
            for place, (corruption, severity) in enumerate(self.variants)
            for layer, shares in sorted(result.class_shares.items())
            for number, area, share in zip(shares.classes, shares.area, shares.received[place], strict=True)
        ]  # fmt: skip
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(CLASS_SHARE_COLUMNS)
        return pyarrow.table(
            {
                name: pyarrow.array(values, getattr(pyarrow, kind)())
                for (name, kind), values in zip(CLASS_SHARE_COLUMNS.items(), columns, strict=True)
            }
        )

    def class_maps(self, result: ImageResult) -> dict[str, Array]:
        """Predicted and right class of each pixel of one displayed image."""
        assert result.class_maps is not None
        return self._variants(1) | {"predicted": result.class_maps} | ({} if result.mask is None else {"truth": result.mask})

    def received(self, results: Sequence[ImageResult]) -> dict[str, Array]:
        """Received attention of every picture, one array per layer."""
        arrays = {"image": np.repeat([result.image for result in results], len(self.variants))} | self._variants(len(results))
        for layer in results[0].received:
            arrays[f"layer_{layer:02d}"] = np.concatenate([result.received[layer] for result in results])
        return arrays

    def displayed(self, result: ImageResult) -> dict[str, Array]:
        """Pictures and full maps of one displayed image."""
        assert result.pictures is not None
        maps = {f"attention_{layer:02d}": weights for layer, weights in result.attention.items()}
        return self._variants(1) | {"pictures": result.pictures} | maps

    def _variants(self, images: int) -> dict[str, Array]:
        names, severities = zip(*self.variants, strict=True)
        return {"corruption": np.tile(names, images), "severity": np.tile(severities, images)}

    def _identity(self, results: Sequence[ImageResult], repeats: int) -> dict[str, "pyarrow.Array"]:
        """image, name, label, corruption and severity, with `repeats` rows per picture."""
        import pyarrow

        numbers = [result.image for result in results]
        of_image = np.repeat(np.arange(len(results)), len(self.variants) * repeats)
        of_variant = np.tile(np.repeat(np.arange(len(self.variants)), repeats), len(results))
        return {
            "image": _taken(numbers, of_image, pyarrow.int64()),
            "name": _taken([self.images[number]["name"] for number in numbers], of_image, pyarrow.string()),
            "label": _taken([self.images[number]["label"] for number in numbers], of_image, pyarrow.string()),
            "corruption": _taken([name for name, _ in self.variants], of_variant, pyarrow.string()),
            "severity": _taken([severity for _, severity in self.variants], of_variant, pyarrow.int32()),
        }


def _taken(values: Sequence[Any], places: Array, kind: "pyarrow.DataType") -> "pyarrow.Array":
    """`values[place]` for each place."""
    import pyarrow

    return pyarrow.array(values, kind).take(pyarrow.array(places))
