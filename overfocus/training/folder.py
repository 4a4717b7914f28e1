"""The folder of a training: what was asked for, the checkpoint, whether it is new, continued or replaced, its log and curves."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from overfocus.errors import TrainingError, explain, first_line
from overfocus.files import atomic_file, remove_unfinished, require_regular_file
from overfocus.monitoring import GROUPS, QUANTITIES
from overfocus.runs.description import TrainingDescription, read_description
from overfocus.settings import shown
from overfocus.training.architecture import Architecture
from overfocus.training.settings import Recipe

if TYPE_CHECKING:
    import pandas as pd


STATE_FORMAT = 1
"""Version of checkpoint.pt."""
STATE_KEYS = ("step", "state_dict", "state_dict_ema", "optimizer", "scaler", "adl_estimate", "sums")
_OURS = re.compile(r"training\.json|checkpoint\.pt|model\.safetensors|log\.csv|curves\.png|\..*\.unfinished")


def open_folder(folder: Path, *, overwrite: bool) -> TrainingDescription | None:
    """Make the folder ready; the description of the training that lies there, None for a new one.

    A training with neither checkpoint nor result has nothing to go on from, and so does not count: it may have been refused.

    Raises:
        TrainingError: it holds other files, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        info = None if overwrite else read_info(folder)
        remove_unfinished(folder)
        if info is not None and {"checkpoint.pt", "model.safetensors"} & {path.name for path in found}:
            return info
        if info is not None or overwrite:
            for path in folder.iterdir():
                if path.is_file() and _OURS.fullmatch(path.name):
                    path.unlink()
        elif found:
            names = ", ".join(path.name for path in found[:3])
            raise TrainingError(
                f"{folder}: holds other files ({names}); choose another output, or --overwrite to write beside them"
            )
    except OSError as error:
        raise TrainingError(f"the output folder cannot be used ({explain(error)}); choose another output") from None
    return None


def write_info(folder: Path, info: TrainingDescription) -> None:
    """Replace training.json.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        with atomic_file(folder / "training.json") as file:
            file.write(json.dumps(asdict(info), indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise TrainingError(f"the output folder cannot be written ({explain(error)}); choose another output") from None


def is_complete(folder: Path) -> bool:
    """Whether the training in a folder has come to its end, its result written."""
    info = read_info(folder)
    return info is not None and info.status == "complete"


def read_info(folder: Path) -> TrainingDescription | None:
    """The description of the training in a folder; None where there is none.

    Raises:
        TrainingError: training.json describes something else or is damaged.
    """
    path = folder / "training.json"
    return read_description(path, TrainingDescription) if path.exists() else None


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint; a kill at any moment leaves the one before.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        with atomic_file(path) as file:
            torch.save(state | {"format": STATE_FORMAT}, file)
    except (OSError, RuntimeError) as error:  # torch's writer raises a RuntimeError where the disk is full
        raise TrainingError(
            f"{path}: the checkpoint cannot be written ({explain(error) if isinstance(error, OSError) else first_line(error)}); "
            "the one before is kept, make room and start the same command again"
        ) from error


def read_state(path: Path) -> dict[str, Any] | None:
    """The state of an interrupted or finished training; None where there is none.

    Nothing in the file is executed.

    Raises:
        TrainingError: the file is empty, damaged, that of something else or of another version.
    """
    if not path.exists():
        return None
    remedy = "remove it to go on without, or start from the beginning with --overwrite"
    size = require_regular_file(path, "the checkpoint of a training", TrainingError).st_size
    if size == 0:
        raise TrainingError(f"{path}: the checkpoint is empty; {remedy}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch raise a dozen kinds for damaged files
        raise TrainingError(f"{path}: the checkpoint cannot be read ({first_line(error)}); {remedy}") from None
    if not isinstance(state, dict) or "format" not in state:
        raise TrainingError(f"{path}: expected the checkpoint of a training, this is something else; {remedy}")
    if state["format"] != STATE_FORMAT:
        raise TrainingError(
            f"{path}: the checkpoint has format {shown(state['format'])}, this version reads {STATE_FORMAT}; go on with the "
            f"version of overfocus that wrote it, or {remedy}"
        )
    if missing := [key for key in STATE_KEYS if key not in state]:
        raise TrainingError(f"{path}: the checkpoint lacks {', '.join(missing)}; {remedy}")
    return dict(state)


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that the result depends on."""

    recipe: Recipe
    architecture: Architecture
    task: str
    objective: str
    init: str | None
    seed: int
    images: int
    """Pictures of the data set that are used."""
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    processes: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content

    def require_same(self, there: dict[str, Any], folder: Path) -> None:
        """Raise a `TrainingError` that says what differs from the settings of the training that lies in the folder."""
        changed = []
        for name, value in self.as_dict().items():
            before = there.get(name)
            if before == value:
                continue
            if isinstance(value, dict) and isinstance(before, dict):
                changed += [
                    f"{key} {before.get(key)} there, {entry} asked for"
                    for key, entry in value.items()
                    if before.get(key) != entry
                ]
            else:
                changed.append(f"{name} {_short(before)} there, {_short(value)} asked for")
        if changed:
            raise TrainingError(
                f"{folder}: holds another training ({'; '.join(changed)}); choose another output or overwrite (--overwrite)"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}…"


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
            head, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
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
