"""What a run of a segmentation model holds beside that of a classifier: class maps, and attention by class of the masks."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from overfocus.errors import RunError

if TYPE_CHECKING:
    import pandas as pd

CLASS_SHARE_COLUMNS = {
    "image": "int64", "name": "string", "corruption": "string", "severity": "int32", "layer": "int32", "module": "string",
    "class": "int32", "class_name": "string", "received_share": "float64", "area_share": "float64",
}  # fmt: skip
"""Columns of `attention_by_class` and their types."""


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """The classes of the pixels of one displayed image, at the model's input size."""

    variants: list[tuple[str, int]]
    """(corruption, severity) of each variant; the first is ("clean", 0)."""
    predicted: UInt8[np.ndarray, "variants height width"]
    truth: UInt8[np.ndarray, "height width"] | None
    """255 where no class counts; None where the classes are not known."""


class SegmentedRun:
    """The part of `Run` that speaks of pixels."""

    path: Path
    info: dict[str, Any]

    @property
    def segmented(self) -> bool:
        """Whether the model predicts a class for every pixel."""
        return self.info.get("task") == "segmentation"

    @property
    def class_colours(self) -> list[list[int]] | None:
        """Red, green and blue (0 … 255) of each class in pictures; None for other models."""
        colours: list[list[int]] | None = self.info.get("class_colours")
        return colours

    @cached_property
    def attention_by_class(self) -> "pd.DataFrame":
        """One row per image × corruption × severity × layer × class in the image's mask.

        Columns: image, name, corruption, severity, layer, module, class, class_name; received_share, the share of the layer's
        received attention (mean over heads) that lands on the class, a token's spread evenly over its area; area_share, the
        share of the picture that the class covers, which attention without regard to the content would give. What is missing
        from 1 lies on ignored pixels. Empty for images without masks.
        """
        import pandas as pd

        kinds = {name: "object" if kind == "string" else kind for name, kind in CLASS_SHARE_COLUMNS.items()}
        if not any((self.path / "attention_by_class").glob("part-*.parquet")):
            return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})
        return self._read("attention_by_class")

    def class_maps(self, image: int) -> ClassMaps:
        """Predicted and right classes of a displayed image.

        Raises:
            RunError: they were not kept.
        """
        path = self.path / "maps" / f"classes-{image}.npz"
        if not path.is_file():
            raise RunError(
                f"{self.path}: no class maps of image {image}; they are kept of displayed images of segmentation models"
            )
        with np.load(path) as kept:
            variants = [(str(name), int(severity)) for name, severity in zip(kept["corruption"], kept["severity"], strict=True)]
            return ClassMaps(variants, kept["predicted"], kept["truth"] if "truth" in kept.files else None)

    def _read(self, kind: str) -> "pd.DataFrame":
        raise NotImplementedError
