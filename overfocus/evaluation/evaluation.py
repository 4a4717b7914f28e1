"""A finished evaluation, read back from its run folder."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.errors import RunError
from overfocus.files import read_json
from overfocus.run import Run

if TYPE_CHECKING:
    import pandas as pd


class Evaluation:
    """Accuracy, calibration and corruption errors of one checkpoint; IoU where it is a segmentation model.

    Raises:
        RunError: the folder holds no finished evaluation.
    """

    def __init__(self, path: str | Path) -> None:
        self.run = Run(path)
        if self.run.description.kind != "evaluation":
            raise RunError(f"{path}: expected an evaluation as `overfocus evaluate` writes it, but this is another run")

    @property
    def path(self) -> Path:
        """Its run folder."""
        return self.run.path

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row per corruption × severity; ("clean", 0) without corruption.

        Columns: images, top1, top5, ece, nll; of segmentation images, miou, pixel_accuracy, image_iou, agreement, and "iou …" for
        each class.
        """
        if self.run.segmented:
            from overfocus.evaluation.results import measure_segmentation

            return measure_segmentation(self.run.predictions, self.run.class_names or [])
        from overfocus.evaluation.results import measure_predictions

        return measure_predictions(self.run.predictions)

    @property
    def summary(self) -> dict[str, Any]:
        """The content of evaluation.json: data and how they were corrupted, clean figures, means and what each is over."""
        return read_json(self.path / "evaluation.json", "the summary of a finished evaluation")
