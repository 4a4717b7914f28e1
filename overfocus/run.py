"""A run folder that `analyze` wrote, read back as tables and maps; an unfinished run can be read as far as it got."""

import contextlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from overfocus.errors import RunError
from overfocus.figures.notebook_methods import NotebookMethods
from overfocus.segmented_run import SegmentedRun

if TYPE_CHECKING:
    from collections.abc import Collection

    import pandas as pd

    from overfocus.runs.description import RunDescription

FORMAT = 1
"""Version of the layout of a run folder that this package writes and reads."""


@dataclass(frozen=True, eq=False)
class DisplayedImage:
    """One image of the run with everything that is needed to show it."""

    variants: list[tuple[str, int]]
    """(corruption, severity) of each variant; the first is ("clean", 0)."""
    pictures: UInt8[np.ndarray, "variants height width 3"]
    """The model's input before normalisation."""
    attention: dict[int, Float[np.ndarray, "variants windows queries keys"]]
    """Weights averaged over heads, by layer; layers of more than 1024 queries are left out."""


class Run(SegmentedRun, NotebookMethods):
    """What `analyze` measured.

    Rows of the tables are sorted by image, then corruption (clean first, then as asked for), severity and layer, however
    often the run was interrupted.

    Raises:
        RunError: `path` is no run folder, or was written by a newer version.
    """

    path: Path
    info: dict[str, Any]
    """The content of run.json."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = read_info(self.path)
        self._unpacked: tuple[int, dict[str, np.ndarray]] | None = None

    def __repr__(self) -> str:
        model, status = self.info["checkpoint"]["name"], self.info["status"]
        return f"Run({str(self.path)!r}, model={model!r}, images={len(self.images)}, {status})"

    @cached_property
    def description(self) -> "RunDescription":
        """The content of run.json as a type."""
        from overfocus.runs.description import RunDescription, decode_description

        return decode_description(json.dumps(self.info).encode(), RunDescription, self.path / "run.json")

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
        return bool(self.info["status"] == "complete")

    @property
    def images(self) -> list[dict[str, Any]]:
        """The images asked for: image (number), name, path, label, width and height in pixels (None until read)."""
        return list(self.info["images"])

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """Images that could not be read: name and reason."""
        return list(self.info["skipped"])

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The measured attention layers in the order in which the model calls them."""
        return list(self.info["layers"])

    @property
    def displayed(self) -> list[int]:
        """Numbers of the images whose pictures and full maps were kept and can be read by `maps`."""
        return [number for number in self.info["displayed"] if self._maps_path(number).is_file()]

    @property
    def class_names(self) -> list[str] | None:
        """Name of each class of the model, or None where they are not known."""
        names: list[str] | None = self.info["class_names"]
        return names

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row per image × corruption × severity × layer (× head), one column per metric; NaN where undefined.

        Empty for an evaluation, which measures predictions alone.
        """
        if self.info.get("kind") == "evaluation":
            return _empty_table()
        table = self._read("metrics")
        narrow = table.select_dtypes("float32").columns
        return table.astype(dict.fromkeys(narrow, "float64"))

    @cached_property
    def predictions(self) -> "pd.DataFrame":
        """One row per image × corruption × severity: predicted class, confidence, agreement with the clean image, …"""
        return self._read("predictions").astype({"predicted": "Int64"})

    def summary(self) -> "pd.DataFrame":
        """Mean over images of each metric, per corruption × severity × layer, with a 95 % interval and what was skipped.

        Columns: corruption, severity, layer, module, kind, metric, mean, low, high (Student's t over images; NaN for a single
        image), count (images with a value), skipped (images where the metric is undefined). Heads are averaged first.
        """
        from overfocus.statistics.layers import summarise_table

        return summarise_table(self.table)

    def _shown_runs(self) -> tuple[list["Run"], list[str]]:
        return [self], [str(self.info["checkpoint"]["name"])]

    def _repr_html_(self) -> str:
        from overfocus.figures.notebook import run_html

        return run_html(self)

    def received(
        self, image: int, corruption: str = "clean", severity: int = 0
    ) -> list[Float[np.ndarray, "rows columns"] | None]:
        """Received attention of one picture on the patch grid of the image, one array per layer of `layers`; each sums to 1.

        None for a layer whose patches have no known grid.

        Raises:
            RunError: the run does not hold this picture.
        """
        start = max((first for first in self._received_parts if first <= image), default=None)
        if start is not None:
            part = self._received_part(start)
            found = (part["image"] == image) & (part["corruption"] == corruption) & (part["severity"] == severity)
            if found.any():
                row = int(found.argmax())
                names = [f"layer_{layer['layer']:02d}" for layer in self.layers]
                return [part[name][row] if name in part else None for name in names]
        raise RunError(
            f"{self.path}: no received attention of image {image} with {corruption} {severity}; see run.table for what there is"
        )

    def maps(self, image: int, layers: "Collection[int] | None" = None) -> DisplayedImage:
        """Pictures and full attention maps of a displayed image; of these layers only, where they are given.

        Raises:
            RunError: `image` is not one of `displayed`.
        """
        if image not in self.displayed:
            raise RunError(f"{self.path}: full maps are kept of the displayed images only, {self.displayed}; got image {image}")
        with np.load(self._maps_path(image)) as kept:
            variants = [(str(name), int(severity)) for name, severity in zip(kept["corruption"], kept["severity"], strict=True)]
            wanted = [layer["layer"] for layer in self.layers if layers is None or layer["layer"] in layers]
            attention = {layer: kept[f"attention_{layer:02d}"] for layer in wanted if f"attention_{layer:02d}" in kept.files}
            return DisplayedImage(variants, kept["pictures"], attention)

    @cached_property
    def partitions(self) -> dict[int, Int[np.ndarray, "windows tokens"]]:
        """Place of each window's tokens in the row-major patch grid of the image, −1 for padding, by layer of windows."""
        path = self.path / "maps" / "windows.npz"
        if not path.is_file():
            return {}
        with np.load(path) as kept:
            return {int(name.removeprefix("layer_")): kept[name] for name in kept.files}

    def _maps_path(self, image: int) -> Path:
        return self.path / "maps" / f"image-{image}.npz"

    def _received_part(self, start: int) -> dict[str, np.ndarray]:
        """The part whose first image is `start`, unpacked once for all pictures that are asked for in a row."""
        if self._unpacked is None or self._unpacked[0] != start:
            with np.load(self._received_parts[start]) as part:
                self._unpacked = start, {name: part[name] for name in part.files}
        return self._unpacked[1]

    @cached_property
    def _received_parts(self) -> dict[int, Path]:
        return committed_parts(self.path / "maps", "received-", self.info)

    def _read(self, kind: str) -> "pd.DataFrame":
        import pyarrow
        import pyarrow.parquet

        parts = committed_parts(self.path / kind, "part-", self.info)
        if not parts:
            raise RunError(f"{self.path}: the run holds no results yet; start the same `overfocus analyze` again to continue it")
        try:
            tables = [pyarrow.parquet.read_table(path) for path in parts.values()]
            frame: pd.DataFrame = pyarrow.concat_tables(tables, promote_options="permissive").to_pandas()
        except (OSError, pyarrow.ArrowException) as error:
            raise RunError(
                f"{self.path}: a part of the {kind} table cannot be read ({error}); run again with overwrite=True"
            ) from error
        return frame


def _empty_table() -> "pd.DataFrame":
    """A metrics table without rows."""
    import pandas as pd

    from overfocus.metrics.catalogue import CATALOGUE

    kinds = {"image": "int64", "name": "object", "label": "object", "corruption": "object", "severity": "int32"}
    kinds |= {"layer": "int32", "module": "object", "kind": "object"}
    kinds |= {name: "float64" for name, metric in CATALOGUE.items() if metric.per_layer}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def read_info(folder: Path) -> dict[str, Any]:
    """The content of a run folder's run.json.

    Raises:
        RunError: it is missing, damaged, or of a newer format.
    """
    path = folder / "run.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{folder}: expected a run folder as `overfocus analyze` writes it, but it holds no run.json") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: expected the description of a run, but it cannot be read ({error})") from None
    _check_ours(path, info)
    if info["format"] != FORMAT:
        raise RunError(f"{path}: written in format {info['format']!r}, this version reads format {FORMAT}; upgrade overfocus")
    return dict(info)


def check_ours(folder: Path) -> None:
    """Raise `RunError` if a folder's run.json was written by another program; a damaged one may be ours."""
    path = folder / "run.json"
    with contextlib.suppress(OSError, ValueError):
        _check_ours(path, json.loads(path.read_text(encoding="utf-8")))


def _check_ours(path: Path, info: object) -> None:
    if not isinstance(info, dict) or "format" not in info:
        raise RunError(
            f"{path}: expected the description of an overfocus run, but this file is something else; choose another folder"
        )


def committed_parts(folder: Path, prefix: str, info: dict[str, Any]) -> dict[int, Path]:
    """Parts of a table by the number of their first image, in that order.

    A part counts only when run.json, which is written after it, says that its images are done.
    """
    parts = {}
    for path in folder.glob(f"{prefix}*"):
        first = path.stem.removeprefix(prefix)
        if path.suffix in (".parquet", ".npz") and first.isdecimal() and int(first) < info.get("done", len(info["images"])):
            parts[int(first)] = path
    return dict(sorted(parts.items()))
