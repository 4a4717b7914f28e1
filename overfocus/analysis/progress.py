"""A progress bar with images per second and the time left, on a terminal only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
