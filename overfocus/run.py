"""A run folder that `analyze` or `evaluate` wrote, read back as tables and maps; an unfinished run reads as far as it got."""

import os
import re
from collections import Counter
from collections.abc import Collection, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from overfocus.errors import RunError
from overfocus.metrics.catalogue import BUILT_IN, register_metric
from overfocus.runs.description import ImageEntry, Layer, RunDescription, SkippedEntry, read_description
from overfocus.runs.folder import read_arrays, read_table, table_size
from overfocus.runs.notebook import NotebookMethods
from overfocus.settings import shown, typed
from overfocus.text import model_title, source_name
from overfocus.variants import CLEAN, OTHER_IMAGE, Variant, sort_variants

if TYPE_CHECKING:
    import pandas as pd

    from overfocus.statistics.panel import MetricCells


CLASS_SHARE_COLUMNS = {
    "image": "int64", "name": "string", "corruption": "string", "severity": "int32", "layer": "int32", "module": "string",
    "class": "int32", "class_name": "string", "received_share": "float64", "area_share": "float64",
}  # fmt: skip
"""Columns of `attention_by_class` and their types."""

_VARIANTS = {"corruption": ("U", 1), "severity": ("i", 1)}
"""Arrays that say what the variants of the others are."""
BLOCK_ROWS = 2**17
"""Rows of a table that `Run.blocks` reads at once: few enough that a column stays in a processor's cache."""


@dataclass(frozen=True, eq=False)
class DisplayedImage:
    """One image of the run with everything that is needed to show it."""

    variants: list[Variant]
    """The clean one is the first."""
    pixels: UInt8[np.ndarray, "variants height width 3"]
    """The model's input before normalisation."""
    attention: dict[int, Float[np.ndarray, "variants windows queries keys"]]
    """Weights averaged over heads, by layer; of layers of more than 1024 queries the means over blocks of patches, at most 256 a
    side (`overfocus.metrics.pooling.block_side`)."""


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """The classes of the pixels of one displayed image, at the model's input size."""

    variants: list[Variant]
    """The clean one is the first."""
    predicted: UInt8[np.ndarray, "variants height width"]
    truth: UInt8[np.ndarray, "height width"] | None
    """255 where no class counts; None where the classes are not known."""


class Run(NotebookMethods):
    """What `analyze` measured.

    Rows of the tables are sorted by image, then corruption (clean first, then as asked for, the control last), severity and
    layer, however often the run was interrupted.

    Raises:
        RunError: `path` is no run folder, or was written by a newer version.
    """

    path: Path
    description: RunDescription
    """The content of run.json."""

    @typed(RunError)
    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.description = read_run(self.path)
        for measure in self.description.measures:
            register_metric(measure.row())
        self._unpacked: tuple[int, dict[str, np.ndarray]] | None = None

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, model={self.model!r}, images={len(self.images)}, {self.description.status})"

    @property
    def model(self) -> str:
        """Name of the model: its architecture, or that of its file where the architecture is only a class."""
        return model_title(self.description.checkpoint.name, self.description.checkpoint.source)

    @cached_property
    def retained(self) -> "pd.DataFrame":
        """Stability against the control "another image": one row per metric × corruption × severity × layer.

        Columns: metric, corruption, severity, layer, module; value and control, the metric's means over images between an image
        and its corrupted variant and between two different clean images; retained = 1 − D / D_control with the ends low and high
        of its 95 % interval (1: as if not corrupted; 0: no more than another image has in common); count of images. Empty where
        the control was not measured.
        """
        from overfocus.statistics.retained import tabulate_retained

        return tabulate_retained(self)

    @property
    def complete(self) -> bool:
        """Whether the run was finished; if not, `analyze` with the same arguments continues it."""
        return self.description.complete

    @property
    def images(self) -> list[ImageEntry]:
        """The images asked for."""
        return list(self.description.images)

    @property
    def skipped(self) -> list[SkippedEntry]:
        """Images that could not be read: name and reason."""
        return list(self.description.skipped)

    @property
    def layers(self) -> list[Layer]:
        """The measured attention layers in the order in which the model calls them."""
        return list(self.description.layers)

    @property
    def displayed(self) -> list[int]:
        """Numbers of the images whose pixels and full maps were kept and can be read by `maps`."""
        return [number for number in self.description.displayed if self._maps_path(number).is_file()]

    @property
    def class_names(self) -> list[str] | None:
        """Name of each class of the model, or None where they are not known."""
        return self.description.class_names

    @property
    def segmented(self) -> bool:
        """Whether the model predicts a class for every pixel."""
        return self.description.segmented

    @property
    def class_colours(self) -> list[list[int]] | None:
        """Red, green and blue (0 … 255) of each class in images of segmentations; None for other models."""
        return self.description.class_colours

    @property
    def variants(self) -> list[Variant]:
        """The variants in the tables: clean first, corruptions in the order that was asked for; without the control."""
        return self._measured[0]

    @property
    def measured_images(self) -> list[int]:
        """Numbers of the images that have predictions, in the order of the table."""
        return self._measured[1]

    @cached_property
    def _measured(self) -> tuple[list[Variant], list[int]]:
        pairs: dict[tuple[str, int], None] = {}
        numbers: dict[int, None] = {}
        for rows in self.blocks("predictions"):
            pairs |= dict.fromkeys(rows[["corruption", "severity"]].drop_duplicates().itertuples(index=False, name=None))
            numbers |= dict.fromkeys(rows["image"].unique().tolist())
        found = sort_variants(pairs, self.description.settings.corruptions)
        return [variant for variant in found if variant.corrupted or variant.corruption == CLEAN], list(numbers)

    @property
    def measured(self) -> bool:
        """Whether `table` has rows; it has none of an evaluation."""
        return self.description.kind == "analysis" and bool(
            len(self.table) if "table" in vars(self) else self._sizes("metrics")[0]
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Columns of `table`."""
        if "table" in vars(self):
            return tuple(self.table.columns)
        return self._sizes("metrics")[1] if self.description.kind == "analysis" else tuple(_empty_table().columns)

    @cached_property
    def cells(self) -> "MetricCells":
        """Values of the metrics as arrays, read from the folder a few metrics at a time."""
        from overfocus.statistics.panel import MetricCells

        return MetricCells(self)

    @typed(RunError)
    def blocks(self, kind: Literal["metrics", "predictions"], columns: Sequence[str] = ()) -> Iterator["pd.DataFrame"]:
        """The rows of `table` or `predictions`, about a hundred thousand at a time, whole parts of the run each; one block is
        read ahead.

        Columns: image, corruption (a category), severity, layer and head where there are any, and those of `columns` that the
        table has. A run too large for memory is read in this way.

        Raises:
            RunError: a part is missing, damaged or of something else.
        """
        if kind not in ("metrics", "predictions"):
            raise RunError(f"kind must be metrics or predictions, got {shown(kind)}")
        if kind == "metrics" and not self.measured:
            return
        keys = ("image", "corruption", "severity", *(("layer", "head") if kind == "metrics" else ()))
        names = list(dict.fromkeys((*keys, *columns)))
        held: pd.DataFrame | None = vars(self).get("table" if kind == "metrics" else kind)
        if held is not None:
            yield held[[name for name in names if name in held]].astype({"corruption": "category"})
            return
        _, there, sizes = self._sizes(kind)
        self._require_keys(kind, there)
        blocks: list[list[Path]] = [[]]
        rows = 0
        for path, size in zip(self._parts(kind), sizes, strict=True):
            if blocks[-1] and rows + size > BLOCK_ROWS:
                blocks.append([])
                rows = 0
            blocks[-1].append(path)
            rows += size

        def read(paths: list[Path]) -> "pd.DataFrame":
            frame: pd.DataFrame = read_table(paths, names, categories=["corruption"]).to_pandas(split_blocks=True)
            return self._own(kind, frame)

        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(read, blocks[0])
            for following in [*blocks[1:], None]:
                frame = ahead.result()
                if following is not None:
                    ahead = reader.submit(read, following)
                yield frame

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row per image × corruption × severity × layer (× head), one column per metric; NaN where undefined.

        The rows of corruption "other image" are the control: the clean image beside another clean image of the run. Empty for
        an evaluation, which measures predictions alone.
        """
        if self.description.kind != "analysis":
            return _empty_table()
        table = self._read("metrics")
        narrow = table.select_dtypes("float32").columns
        return table.astype(dict.fromkeys(narrow, "float64"))

    @cached_property
    def predictions(self) -> "pd.DataFrame":
        """One row per image × corruption × severity: predicted class, confidence, agreement with the clean image, …"""
        table = self._read("predictions")
        if "predicted" not in table:
            raise RunError(f"{self.path}: the predictions table has no column predicted; measure again with --overwrite")
        return table.astype({"predicted": "Int64"})

    @cached_property
    def attention_by_class(self) -> "pd.DataFrame":
        """One row per image × corruption × severity × layer × class in the image's mask; of segmentation models.

        Columns: image, name, corruption, severity, layer, module, class, class_name; received_share, the share of the layer's
        received attention (mean over heads) that lands on the class, a token's spread evenly over its area; area_share, the
        share of the image that the class covers, which attention without regard to the content would give. What is missing
        from 1 lies on ignored pixels. Empty for images without masks.
        """
        import pandas as pd

        kinds = {name: "object" if kind == "string" else kind for name, kind in CLASS_SHARE_COLUMNS.items()}
        if not any((self.path / "attention_by_class").glob("part-*.parquet")):
            return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
        return self._read("attention_by_class", everywhere=False)

    def summary(self) -> "pd.DataFrame":
        """Mean over images of each metric, per corruption × severity × layer, with a 95 % interval and what was skipped.

        Columns: corruption, severity, layer, module, kind, metric, mean, low, high (Student's t over images; NaN for a single
        image), count (images with a value), skipped (images where the metric is undefined). Heads are averaged first.
        """
        from overfocus.statistics.panel import summarise_metrics

        return summarise_metrics(self)

    def _shown_runs(self) -> tuple[list["Run"], list[str]]:
        return [self], [self.model]

    @typed(RunError)
    def received(self, image: int, corruption: str = CLEAN, severity: int = 0) -> list[Float[np.ndarray, "rows columns"] | None]:
        """Received attention of one image on its patch grid, one array per layer of `layers`; each sums to 1.

        None for a layer whose patches have no known grid.

        Raises:
            RunError: the run does not hold this image in this variant.
        """
        start = max((first for first in self._received_parts if first <= image), default=None)
        if start is not None:
            part = self._received_part(start)
            found = (part["image"] == image) & (part["corruption"] == corruption) & (part["severity"] == severity)
            if found.any():
                row = int(found.argmax())
                names = [f"layer_{layer.layer:02d}" for layer in self.layers]
                return [part[name][row] if name in part else None for name in names]
        raise RunError(
            f"{self.path}: no received attention of image {image} with {corruption} {severity}; see run.table for what there is"
        )

    @typed(RunError)
    def maps(self, image: int, layers: "Collection[int] | None" = None) -> DisplayedImage:
        """Pixels and full attention maps of a displayed image; of these layers only, where they are given.

        Raises:
            RunError: `image` is not one of `displayed`.
        """
        if image not in self.displayed:
            raise RunError(f"{self.path}: full maps are kept of displayed images only; choose from {self.displayed}, got {image}")
        kept = read_arrays(self._maps_path(image), _VARIANTS | {"pictures": ("u", 4)}, {"attention_*": ("f", 4)})
        wanted = [layer.layer for layer in self.layers if layers is None or layer.layer in layers]
        attention = {layer: kept[f"attention_{layer:02d}"] for layer in wanted if f"attention_{layer:02d}" in kept}
        return DisplayedImage(_variants_of(kept), kept["pictures"], attention)

    @typed(RunError)
    def class_maps(self, image: int) -> ClassMaps:
        """Predicted and right classes of a displayed image; of segmentation models.

        Raises:
            RunError: they were not kept.
        """
        path = self.path / "maps" / f"classes-{int(image)}.npz"
        if not path.is_file():
            raise RunError(
                f"{self.path}: no class maps of image {image}; there is one for each displayed image of a segmentation model"
            )
        kept = read_arrays(path, _VARIANTS | {"predicted": ("u", 3)}, {"truth": ("u", 2)})
        return ClassMaps(_variants_of(kept), kept["predicted"], kept.get("truth"))

    @cached_property
    def partitions(self) -> dict[int, Int[np.ndarray, "windows tokens"]]:
        """Place of each window's tokens in the row-major patch grid of the image, −1 for padding, by layer of windows."""
        path = self.path / "maps" / "windows.npz"
        kept = read_arrays(path, {}, {"layer_*": ("i", 2)}) if path.is_file() else {}
        return {int(name.removeprefix("layer_")): places for name, places in kept.items()}

    def _maps_path(self, image: int) -> Path:
        return self.path / "maps" / f"image-{int(image)}.npz"

    def _received_part(self, start: int) -> dict[str, np.ndarray]:
        """The part whose first image is `start`, unpacked once for all images that are asked for in a row."""
        if self._unpacked is None or self._unpacked[0] != start:
            kinds = {"image": ("i", 1)} | _VARIANTS
            self._unpacked = start, read_arrays(self._received_parts[start], kinds, {"layer_*": ("f", 3)})
        return self._unpacked[1]

    @cached_property
    def _received_parts(self) -> dict[int, Path]:
        return committed_parts(self.path, "maps/received", self.description)

    def _read(self, kind: str, *, everywhere: bool = True) -> "pd.DataFrame":
        """A table put together from its parts."""
        if everywhere:
            self._require_keys(kind, self._sizes(kind)[1])
        frame: pd.DataFrame = read_table(self._parts(kind, everywhere=everywhere)).to_pandas()
        return self._own(kind, frame)

    def _require_keys(self, kind: str, columns: Container[str]) -> None:
        """Raise unless a table says of what its rows are."""
        keys = ("image", "corruption", "severity", *(("layer",) if kind == "metrics" else ()))
        if absent := [name for name in keys if name not in columns]:
            raise RunError(f"{self.path}: the {kind} table has no column {absent[0]}; measure again with --overwrite")

    def _own(self, kind: str, rows: "pd.DataFrame") -> "pd.DataFrame":
        """Rows of a table, all of which have to be of images, layers and severities of this run, not of another's."""
        for name, known in self._entries.items():
            if name in rows and (strange := set(rows[name].unique().tolist()) - known):
                raise RunError(
                    f"{self.path}: the {kind} table holds {name} {shown(min(strange, key=str))}, which the run does not have; it "
                    "is damaged or another run's: measure again with --overwrite"
                )
        return rows

    @cached_property
    def _entries(self) -> dict[str, set[int | str]]:
        """What columns of the tables may hold."""
        found: dict[str, set[int | str]] = {"image": {entry.image for entry in self.images}, "severity": set(range(6))}
        if self.description.kind == "analysis":
            found["layer"] = {layer.layer for layer in self.layers}
            found["corruption"] = {CLEAN, OTHER_IMAGE, *self.description.settings.corruptions}
        return found

    def _parts(self, kind: str, *, everywhere: bool = True) -> list[Path]:
        """The parts of a table, one of each that was committed where the table has rows `everywhere`."""
        parts = committed_parts(self.path, f"{kind}/part", self.description)
        absent = [first for first in self.description.parts or [] if first not in parts]
        if everywhere and absent:
            raise RunError(
                f"{self.path}: the part of the {kind} table that begins with image {absent[0]} is missing; start the same "
                "command again to measure it"
            )
        if not parts:
            raise RunError(f"{self.path}: the run holds no results yet; start the same `overfocus analyze` again to continue it")
        return list(parts.values())

    def _sizes(self, kind: str) -> tuple[int, tuple[str, ...], list[int]]:
        """Rows of a table, its columns, and the rows of each part."""
        if kind not in self._known_sizes:
            paths = self._parts(kind)
            found = [table_size(path) for path in paths]
            rows = [size for size, _ in found]
            if 0 in rows:  # none is written empty
                raise RunError(f"{paths[rows.index(0)]}: holds no rows of the {kind} table; measure again with --overwrite")
            self._known_sizes[kind] = sum(rows), tuple(dict.fromkeys(name for _, names in found for name in names)), rows
        return self._known_sizes[kind]

    @cached_property
    def _known_sizes(self) -> dict[str, tuple[int, tuple[str, ...], list[int]]]:
        return {}


def read_run(folder: Path) -> RunDescription:
    """The description of the run in a folder.

    Raises:
        RunError: there is no run, or it is damaged or of another format.
    """
    path = folder / "run.json"
    if not os.path.lexists(path):
        raise RunError(f"{folder}: expected a run folder as `overfocus analyze` writes it, but it holds no run.json")
    return read_description(path, RunDescription)


def committed_parts(folder: Path, name: str, description: RunDescription) -> dict[int, Path]:
    """Parts of a table ("metrics/part") or of maps ("maps/received") by the number of their first item, in that order.

    A part counts only when run.json, which is written after it, says so.
    """
    stem = Path(name)
    parts = {}
    for path in (folder / stem.parent).glob(f"{stem.name}-*"):
        first = path.stem.removeprefix(f"{stem.name}-")
        if path.suffix in (".parquet", ".npz") and first.isascii() and first.isdecimal() and path.is_file():
            number = int(first)
            if number in description.parts if description.parts is not None else number < description.done:
                parts[number] = path
    return dict(sorted(parts.items()))


def _variants_of(kept: dict[str, np.ndarray]) -> list[Variant]:
    return [Variant(str(name), int(severity)) for name, severity in zip(kept["corruption"], kept["severity"], strict=True)]


def _empty_table() -> "pd.DataFrame":
    """A metrics table without rows."""
    import pandas as pd

    kinds = {"image": "int64", "name": "object", "label": "object", "corruption": "object", "severity": "int32"}
    kinds |= {"layer": "int32", "module": "object", "kind": "object"}
    kinds |= {metric.name: "float64" for metric in BUILT_IN if metric.per_layer}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def display_names(runs: Sequence["Run"]) -> tuple[str, ...]:
    """Names that tell runs apart: those of their models, else of the checkpoint files, else of the run folders.

    Where none of these differ for all runs, the models are numbered.
    """
    return distinct_names(
        [run.model for run in runs],
        [run.description.checkpoint.source for run in runs],
        [run.path.absolute().name for run in runs],
    )


def distinct_names(models: Sequence[str], sources: Sequence[str], folders: Sequence[str] = ()) -> tuple[str, ...]:
    """The first of the names of models, of checkpoint files and of folders that differ for all; else numbered: a, a (2)."""
    for names in (models, [source_name(source) for source in sources], folders):
        if len(set(names)) == len(models) and all(names):
            return tuple(names)
    seen: Counter[str] = Counter()
    unique = []
    for name in models:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(unique)


def folder_names(names: Sequence[str]) -> list[str]:
    """Names of the run folders: those given without what a file system may not take; all numbered where two are the same.

    >>> folder_names(["vit", "vit (2)"]), folder_names(["m", "m-3", "m"])
    (['vit', 'vit_(2)'], ['0_m', '1_m-3', '2_m'])
    """
    plain = [re.sub(r"[^\w.()+=-]+", "_", name)[:100].strip("._") or "model" for name in names]
    return plain if len(set(plain)) == len(plain) else [f"{number}_{name}" for number, name in enumerate(plain)]
