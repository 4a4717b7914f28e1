"""The folder of a training: what was asked for, the checkpoint, whether it is new, continued or replaced, and its progress."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from overfocus.checkpoints.read import check_archive
from overfocus.errors import TrainingError, explain, first_line
from overfocus.files import atomic_file, remove_unfinished, require_regular_file
from overfocus.runs.description import TrainingDescription, TrainingEntry, encode_description, read_description
from overfocus.settings import shown

if TYPE_CHECKING:
    pass


STATE_FORMAT = 1
"""Version of checkpoint.pt."""
STATE_KEYS = ("step", "state_dict", "state_dict_ema", "optimizer", "scaler", "adl_estimate", "sums")
_OURS = re.compile(r"training\.json|checkpoint\.pt|model\.safetensors|log\.csv|curves\.(?:png|html)|\..*\.unfinished")


def open_folder(folder: Path, *, overwrite: bool) -> TrainingDescription | None:
    """Make the folder, which the caller has locked, ready; the description of the training there, None for a new one.

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
            file.write(encode_description(info))
    except OSError as error:
        raise TrainingError(f"the output folder cannot be written ({explain(error)}); choose another output") from None


def is_complete(folder: Path) -> bool:
    """Whether the training in a folder has come to its end, its result written."""
    info = read_info(folder)
    return info is not None and info.status == "complete"


def read_info(folder: Path) -> TrainingDescription | None:
    """The description of the training in a folder; None if there is none.

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
    """The state of an interrupted or finished training; None if there is none.

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
        check_archive(path)
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


def require_same(there: TrainingEntry, asked: TrainingEntry, folder: Path) -> None:
    """Raise a `TrainingError` that says what differs from the settings of the training that the folder holds."""
    changed = []
    before = asdict(there)
    for name, value in asdict(asked).items():
        if before[name] == value:
            continue
        if isinstance(value, dict):
            changed += [
                f"{key} {before[name].get(key)} there, {entry} asked for"
                for key, entry in value.items()
                if before[name].get(key) != entry
            ]
        else:
            changed.append(f"{name} {_short(before[name])} there, {_short(value)} asked for")
    if changed:
        raise TrainingError(
            f"{folder}: holds another training ({'; '.join(changed)}); choose another output or overwrite (--overwrite)"
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}…"


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
