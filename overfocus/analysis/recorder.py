"""Collects results and writes them in parts: often enough that little is lost, seldom enough that parts do not pile up."""

import time
from collections.abc import Sequence
from typing import Any

from overfocus.analysis.folder import RunFolder
from overfocus.analysis.parts import ImageResult, Tables
from overfocus.analysis.stopwatch import Stopwatch

SECONDS_PER_PART = 20.0
"""A part is written when this much time has passed since the last one: what a killed run loses at most, and the pack in work."""
BYTES_PER_PART = 256 * 2**20
"""A part is written earlier when the results that wait take this much memory."""


class PartRecorder:
    """Writes the results of a run, in the order of its images, and keeps run.json up to date."""

    def __init__(self, folder: RunFolder, info: dict[str, Any], tables: Tables, stopwatch: Stopwatch) -> None:
        self.info = info
        self._stopwatch = stopwatch
        self._folder = folder
        self._tables = tables
        self._waiting: list[ImageResult] = []
        self._skipped: list[dict[str, Any]] = []
        self._done: int = info["done"]
        self._written = time.monotonic()

    @property
    def done(self) -> int:
        """Images that are measured or skipped, written or waiting to be."""
        return self._done

    def add(self, results: Sequence[ImageResult], skipped: Sequence[dict[str, Any]]) -> None:
        """Take in the images of one pack; `skipped` are those that could not be read."""
        self._waiting.extend(results)
        self._skipped.extend(skipped)
        self._done += len(results) + len(skipped)
        waiting = sum(result.bytes for result in self._waiting)
        if time.monotonic() - self._written >= SECONDS_PER_PART or waiting >= BYTES_PER_PART:
            self.write()

    def write(self, **changes: Any) -> None:
        """Write what waits as one part, then run.json with `changes` in it.

        Raises:
            RunError: a file cannot be written; the run so far stays as it was.
        """
        with self._stopwatch.on("writing"):
            self._write_part(self._waiting, f"{self.info['done']:05d}")
        images = list(self.info["images"])
        for result in self._waiting:
            width, height = result.size
            images[result.image] = images[result.image] | {"width": width, "height": height}
        changes |= {
            "images": images,
            "skipped": self.info["skipped"] + self._skipped,
            "done": self._done,
            "timing": self._stopwatch.timing(self._done, self._done * len(self._tables.variants)),
        }
        self._folder.write_info(self.info | changes)
        self.info.update(changes)
        self._waiting, self._skipped = [], []
        self._written = time.monotonic()

    def _write_part(self, results: Sequence[ImageResult], number: str) -> None:
        """Maps and tables of the results; `number` is that of their first image."""
        if not results:
            return
        kept = [result for result in results if result.image < self.info["settings"]["maps_limit"]]
        if kept and kept[0].received:
            self._folder.write_arrays(f"maps/received-{number}.npz", self._tables.received(kept))
        for result in results:
            if result.pictures is not None:
                self._folder.write_arrays(f"maps/image-{result.image}.npz", self._tables.displayed(result))
            if result.class_maps is not None:
                self._folder.write_arrays(f"maps/classes-{result.image}.npz", self._tables.class_maps(result), compressed=True)
        if any(result.class_shares for result in results):
            self._folder.write_table(f"attention_by_class/part-{number}.parquet", self._tables.class_shares(results))
        self._folder.write_table(f"predictions/part-{number}.parquet", self._tables.predictions(results))
        self._folder.write_table(f"metrics/part-{number}.parquet", self._tables.metrics(results))
