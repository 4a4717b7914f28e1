"""The log of a training, DIR/log.csv, its curves, and how far the training is."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.errors import TrainingError
from overfocus.files import atomic_file, read_text
from overfocus.monitoring import GROUPS, QUANTITIES

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "step", "epoch", "loss", "adl", "adl_weight", "accuracy", "learning_rate", "images_per_second", "waiting",
    "validation_loss", "validation_accuracy", "validation_miou",
)  # fmt: skip
"""step and epoch count what is done; loss is the task's alone (with label smoothing), adl and accuracy those of the training
pictures (of 0 … 1; of pixels, where these have classes), all three means since the row before; validation_miou is the mean
IoU over the classes of the whole validation set; waiting is the share of time that was spent waiting for pictures."""


class Log:
    """Appends rows; those after step `start`, which a killed training left, are taken out first."""

    def __init__(self, path: Path, start: int, columns: Sequence[str] = COLUMNS) -> None:
        self.path = path
        self.columns = list(columns)
        if start == 0 or not path.is_file():
            self._rewrite(",".join(self.columns) + "\n")
        else:
            head, *rows = read_text(path, "the log of a training", TrainingError).splitlines(keepends=True)
            kept = [
                row
                for row in rows
                if row.endswith("\n") and row.partition(",")[0].isdecimal() and int(row.partition(",")[0]) <= start
            ]
            before = head.rstrip("\n").split(",")
            more = [column for column in self.columns if column not in before]  # asked for since
            self.columns = before + more
            head, *kept = (line.rstrip("\n") + "," * len(more) + "\n" for line in (head, *kept))
            head = ",".join(self.columns) + "\n"
            self._rewrite("".join([head, *kept]))

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; columns that it does not have stay empty."""
        cells = [row.get(column) for column in self.columns]
        line = ",".join("" if cell is None else f"{cell:.9g}" if isinstance(cell, float) else str(cell) for cell in cells)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _rewrite(self, text: str) -> None:
        with atomic_file(self.path) as file:
            file.write(text.encode())


def read_log(path: Path) -> "pd.DataFrame":
    """The log as a table; NaN where nothing was measured."""
    import pandas as pd

    return pd.read_csv(path)


def draw_curves(log: Path, picture: Path, unit: str) -> None:
    """Draw the log into a PNG; `unit` is that of the loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = read_log(log)
    panels = [
        ("loss", unit, {"loss": "training", "validation_loss": "validation"}),
        ("accuracy", "share of the answers", {"accuracy": "training", "validation_accuracy": "validation"}),
        ("mean IoU", "share of the pixels", {"validation_miou": "validation"}),
        ("attention diversification loss", "mean cosine", {"adl": "training"}),
        ("learning rate", "highest of the groups", {"learning_rate": "training"}),
    ]
    panels += [
        (quantity.replace("_", " "), "fixed images", {f"{quantity}_{group}": f"{group} layers" for group in GROUPS})
        for quantity in QUANTITIES
    ]
    shown = [panel for panel in panels if any(column in table and table[column].notna().any() for column in panel[2])]
    figure = Figure(figsize=(4 * len(shown), 3.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (title, label, columns) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for column, kind in columns.items():
            known = table[["epoch", column]].dropna()
            if len(known):
                few = "validation" in column or len(known) == 1
                axes.plot(known["epoch"], known[column], label=kind, marker="o" if few else None, markersize=3)
        axes.set(title=title, xlabel="epoch", ylabel=label, xlim=(0, None))
        if title in ("accuracy", "mean IoU"):
            axes.set_ylim(0, 1)
        if len(columns) > 1:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(picture) as file:
        canvas.print_png(file)  # type: ignore[no-untyped-call]


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
