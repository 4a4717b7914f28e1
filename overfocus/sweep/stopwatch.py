"""Where the time of a run goes, and a progress bar that shows it on a terminal."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

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
            "pictures_per_second": round(images * variants / seconds, 3),
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
