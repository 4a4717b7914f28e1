"""Predictions of an evaluation on their way into its run folder."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from overfocus.analysis.recorder import SECONDS_PER_PART
from overfocus.analysis.variants import CLEAN, Variant
from overfocus.evaluation.pictures import Item
from overfocus.evaluation.plan import ModelUnderTest
from overfocus.evaluation.task import Array, Row, Task


class PredictionRecorder:
    """Collects the rows of one model in the order of the items and writes them in parts; run.json follows each part."""

    def __init__(self, model: ModelUnderTest, task: Task, items: Sequence[Item]) -> None:
        self._model = model
        self._data = task.data
        self._items = items
        self._variants = task.variants
        self._waiting: list[tuple[int, dict[str, Array]]] = []
        self._skipped: list[dict[str, Any]] = []
        self.reached = model.done
        """Items that are evaluated or skipped, written or waiting to be."""
        self._before = float(model.info["timing"].get("seconds", 0.0))
        self._written = time.monotonic()

    def add(self, rows: Sequence[Row], seconds: float) -> None:
        """Take in consecutive items; those that were done before are left out."""
        for number, columns, reason in rows:
            if number < self.reached:
                continue
            self.reached = number + 1
            if columns is None:
                image = self._model.info["images"][self._items[number].image]
                self._skipped.append({"image": image["image"], "name": image["name"], "reason": reason})
            else:
                self._waiting.append((number, columns))
        if time.monotonic() - self._written >= SECONDS_PER_PART:
            self.write(seconds)

    def write(self, seconds: float, **changes: Any) -> None:
        """Write what waits as one part, then run.json with `changes` in it.

        Raises:
            RunError: a file cannot be written; the run so far stays as it was.
        """
        info = self._model.info
        if self._waiting:
            self._model.folder.write_table(f"predictions/part-{info['done']:05d}.parquet", self._table())
        total = self._before + seconds
        pictures = self.reached * len(self._variants)
        changes |= {
            "skipped": info["skipped"] + self._skipped,
            "done": self.reached,
            "timing": {"seconds": round(total, 3), "pictures_per_second": round(pictures / total, 3)},
        }
        self._model.folder.write_info(info | changes)
        info.update(changes)
        self._waiting, self._skipped = [], []
        self._written = time.monotonic()

    def _table(self) -> Any:
        import pyarrow

        info, names = self._model.info, self._model.info["class_names"]
        rows = [(self._items[number], place) for number, _ in self._waiting for place in range(len(self._variants))]
        images = [info["images"][item.image] for item, _ in rows]
        marks = [self._variant(item, place) for item, place in rows]
        values = {name: np.concatenate([columns[name] for _, columns in self._waiting]) for name in self._waiting[0][1]}
        predicted = values.pop("predicted").astype(np.int64)
        table = {
            "image": pyarrow.array([image["image"] for image in images], pyarrow.int64()),
            "name": pyarrow.array([image["name"] for image in images], pyarrow.string()),
            "label": pyarrow.array([image["label"] for image in images], pyarrow.string()),
            "corruption": pyarrow.array([corruption for corruption, _ in marks], pyarrow.string()),
            "severity": pyarrow.array([severity for _, severity in marks], pyarrow.int32()),
            "predicted": pyarrow.array(predicted),
            "predicted_name": pyarrow.array([names[number] if names else None for number in predicted], pyarrow.string()),
        }
        # counts by class are lists: an array of rows
        cells = {name: column if column.ndim == 1 else list(column) for name, column in values.items()}
        return pyarrow.table(table | {name: pyarrow.array(column, from_pandas=True) for name, column in cells.items()})

    def _variant(self, item: Item, place: int) -> Variant:
        portion = self._data.portions[item.portion]
        own = portion.corruption, portion.severity
        return self._variants[place] if own == CLEAN else own
