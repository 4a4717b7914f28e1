"""How far a training is: a bar on a terminal, else a line for each epoch."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_display(steps: int, done: int, *, show: bool | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields what to call with each new row of the log.

    `show` None shows a bar where standard error is a terminal; True shows it there and lines elsewhere; False nothing.
    """
    began = time.monotonic()

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = console.is_terminal and show is not False
    columns = (
        SpinnerColumn(),
        TextColumn("steps"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[state]}"),
    )
    with Progress(*columns, console=console, disable=not bar) as progress:
        task = progress.add_task("steps", total=steps, completed=done, state="")

        def update(row: dict[str, Any]) -> None:
            progress.update(task, completed=row["step"], state=describe_row(row))
            if show and not bar and (row["step"] == steps or float(row["epoch"]).is_integer()):
                left = (time.monotonic() - began) / (row["step"] - done) * (steps - row["step"])
                told = f"  {left / 60:.1f} min left" if left else ""
                print(f"epoch {row['epoch']:g}  {describe_row(row)}{told}", file=sys.stderr, flush=True)

        yield update


def describe_row(row: dict[str, Any]) -> str:
    """Loss, ADL, accuracy, learning rate and speed in words."""
    parts = [f"loss {row['loss']:.3f}"]
    if row.get("adl") is not None:
        parts.append(f"ADL {row['adl']:.3f} × {row['adl_weight']:.3g}")
    if row.get("accuracy") is not None:
        parts.append(f"accuracy {row['accuracy']:.1%}")
    parts += [
        f"rate {row['learning_rate']:.2e}",
        f"{row['images_per_second']:.0f} images/s",
    ]
    if "validation_accuracy" in row:
        parts.append(f"validation {row['validation_accuracy']:.2%}")
        if "validation_miou" in row:
            parts.append(f"mIoU {row['validation_miou']:.2%}")
    elif "validation_loss" in row:
        parts.append(f"validation loss {row['validation_loss']:.3f}")
    return "  ".join(parts)
