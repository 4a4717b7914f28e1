"""Results collected and written in parts, where the time of a run goes, and a progress bar."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from overfocus.errors import RunError
from overfocus.probes.probe import ItemResult, Probe, Table
from overfocus.runs.description import RunDescription, SkippedEntry
from overfocus.runs.folder import RunFolder

PARTS = ("forward", "capture", "waiting", "normalising", "writing")
"""The model; attention weights and metrics beside it; waiting for corrupted images; bringing them to the model; files."""


class Stopwatch:
    """Adds up the seconds that one model of a sweep is at work, in total and by part, on top of those of earlier sessions."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._total = 0.0
        self._since: float | None = None
        """When the block began whose time is counted now."""

    def resume(self, before: Mapping[str, float]) -> None:
        """Go on from the timing of the run so far."""
        self._seconds = {part: before.get(part, 0.0) for part in PARTS}
        self._total = before.get("seconds", 0.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block in the total."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._total += time.perf_counter() - self._since
            self._since = None

    @contextmanager
    def on(self, part: str, inside: str | None = None) -> Iterator[None]:
        """Count the time of the block as that of `part`; taken off that of the part `inside` which it interrupts."""
        began = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - began
            self._seconds[part] += elapsed
            if inside is not None:
                self._seconds[inside] -= elapsed

    def waited(self, seconds: float) -> None:
        """Count seconds in which it waited for images."""
        self._seconds["waiting"] += seconds
        self._total += seconds

    def timing(self, images: int, variants: int) -> dict[str, float]:
        """Seconds in total and by part, and the speed over `images` in so many variants."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        seconds = max(self._total + running, 1e-9)
        parts = {part: round(value, 3) for part, value in self._seconds.items()}
        speed = {
            "images_per_second": round(images / seconds, 3),
            "variants_per_second": round(images * variants / seconds, 3),
        }
        return {"seconds": round(seconds, 3)} | parts | speed


@contextmanager
def progress_bar(total: int, done: int, *, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Show the progress over `total` images, `done` of them before; yields what to call with the number done so far.

    `show` None shows it where standard error is a terminal.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f} images/s" if task.speed else "… images/s")

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("images"),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(""),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not (console.is_terminal if show is None else show)) as progress:
        task = progress.add_task("images", total=total, completed=done)
        yield lambda number: progress.update(task, completed=number)


SECONDS_PER_PART = 20.0
"""A part is written when this much time has passed since the last one: what a killed run loses at most, and the units in work."""
BYTES_PER_PART = 256 * 2**20
"""A part is written earlier when the results that wait take this much memory."""


class Recorder:
    """Writes the results of one model, in the order of the items, and keeps run.json up to date: the only writer of a run."""

    def __init__(
        self,
        folder: RunFolder,
        description: RunDescription,
        probes: Sequence[Probe],
        images: Sequence[int],
        rows: Mapping[str, int],
        stopwatch: Stopwatch,
        *,
        variants: int,
    ) -> None:
        """`images` are the number of the image of each item; `rows` and `variants` those of an item."""
        self.folder = folder
        self.description = description
        self.reached = description.done
        """Items that are measured or skipped, written or waiting to be."""
        self._probes = probes
        self._images = images
        self._rows = rows
        self._stopwatch = stopwatch
        self._variants = variants
        self._waiting: list[ItemResult] = []
        self._skipped: list[SkippedEntry] = []
        self._written = time.monotonic()

    def add(self, results: Sequence[ItemResult]) -> None:
        """Take in the results of consecutive items; those that were written before are left out."""
        for result in results:
            if result.item < self.reached:
                continue
            self.reached = result.item + 1
            if result.reason is None:
                self._waiting.append(result)
            else:
                image = self.description.images[self._images[result.item]]
                self._skipped.append(SkippedEntry(image=image.image, name=image.name, reason=result.reason, item=result.item))
        waiting = sum(result.bytes for result in self._waiting)
        if time.monotonic() - self._written >= SECONDS_PER_PART or waiting >= BYTES_PER_PART:
            self.write()

    def write(self) -> None:
        """Write what waits as one part, then run.json.

        Raises:
            RunError: a file cannot be written; the run so far stays as it was.
        """
        done = self.description.done  # what an interrupted write had committed already is not written again
        self._waiting = [result for result in self._waiting if result.item >= done]
        self._skipped = [entry for entry in self._skipped if entry.item is None or entry.item >= done]
        with self._stopwatch.on("writing"):
            parts = list(self.description.parts or [])
            if self._waiting:
                self._write_part(self._waiting, done)
                parts.append(done)
        images = list(self.description.images)
        for result in self._waiting:
            if result.size is not None:
                number = self._images[result.item]
                images[number] = replace(images[number], width=result.size[0], height=result.size[1])
        self._commit(
            images=images,
            parts=parts,
            skipped=[*self.description.skipped, *self._skipped],
            done=self.reached,
            timing=self._stopwatch.timing(self.reached, self._variants),
        )
        self._waiting, self._skipped = [], []
        self._written = time.monotonic()

    def complete(self) -> None:
        """Write what waits and call the run complete, once its tables hold everything.

        Raises:
            RunError: a file cannot be written, or was removed meanwhile.
        """
        self.write()
        verified = self.folder.verified(self.description, self._rows)
        if verified.done < len(self._images):
            raise RunError(
                f"{self.folder.path}: a part of the tables from image {verified.done} on is missing; start the same command "
                "again to measure it"
            )
        self._commit(status="complete")

    def _commit(self, **changes: Any) -> None:
        description = replace(self.description, **changes)
        self.folder.write(description)
        self.description = description

    def _write_part(self, results: Sequence[ItemResult], first: int) -> None:
        """Arrays and tables of the results; `first` is the number of their first item."""
        tables: dict[str, Table] = {}
        for probe in self._probes:
            for name, arrays, compressed in probe.arrays(results, first):
                self.folder.write_arrays(name, arrays, compressed=compressed)
            for name, table in probe.tables(results).items():
                before = tables.get(name)
                tables[name] = table if before is None else replace(before, columns={**before.columns, **table.columns})
        for name in sorted(tables, reverse=True):
            self.folder.write_table(f"{name}/part-{first:05d}.parquet", self._table(results, tables[name]))

    def _table(self, results: Sequence[ItemResult], table: Table) -> Any:
        """A table with image, name, label, corruption and severity in front, where its probe does not say them itself."""
        import pyarrow

        columns = dict(table.columns)
        if table.repeats:
            pairs = [
                (self._images[result.item], variant)
                for result in results
                for place, variant in enumerate(result.variants)
                if table.control or place in result.kept
            ]
            places = pyarrow.array(np.repeat(np.arange(len(pairs)), table.repeats))
            entries = [self.description.images[image] for image, _ in pairs]
            identity = {
                "image": pyarrow.array([image for image, _ in pairs], pyarrow.int64()),
                "name": pyarrow.array([entry.name for entry in entries], pyarrow.string()),
                "label": pyarrow.array([entry.label for entry in entries], pyarrow.string()),
                "corruption": pyarrow.array([variant.corruption for _, variant in pairs], pyarrow.string()),
                "severity": pyarrow.array([variant.severity for _, variant in pairs], pyarrow.int32()),
            }
            columns = {name: column.take(places) for name, column in identity.items()} | columns
        return pyarrow.table({name: _column(column) for name, column in columns.items()})


def _column(values: Any) -> Any:
    import pyarrow

    return pyarrow.array(values, from_pandas=True) if isinstance(values, np.ndarray) and values.dtype.kind != "f" else values
