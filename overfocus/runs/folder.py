"""The folder of a run while it is written: opened, continued or replaced, and every file written whole or not at all.

One policy for all: the same settings continue, others are refused unless they may overwrite, and what is overwritten are the
files that a run wrote, none else. Parts of the tables are written first and run.json, which names them, after them: a run that
is killed at any moment can be read and continued.
"""

import errno
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overfocus.errors import RunError
from overfocus.files import FolderLock, atomic_file, lock_folder, remove_unfinished
from overfocus.runs.description import FORMAT, RunDescription, encode_description, read_description
from overfocus.runs.tables import write_arrays, write_table

if TYPE_CHECKING:
    import pyarrow

MAY_CHANGE = ("images", "workers", "strict", "max_pixels")
"""Settings that a continued run may change: what it measures does not depend on them. Images are compared one by one."""

OWN_FILES = re.compile(
    r"run\.json|report\.html|evaluation\.(json|csv)|(ablation|differences)\.(csv|parquet)"
    r"|(metrics|predictions|attention_by_class|ablation)/part-\d+\.parquet"
    r"|maps/(received|image|classes)-\d+\.npz|maps/windows\.npz"
    r"|figures/(layers-\w+|\w+-by-(severity|layer)|image-\d+|ablation[\w-]*)\.png"
    r"|([^/]+/)?\.[^/]+\.unfinished"
)
"""Files that a run writes, and what an interrupted writing of one may leave; nothing else is ever deleted."""

_PARTS = ("metrics/part", "predictions/part", "attention_by_class/part", "ablation/part", "maps/received")


class RunFolder:
    """A folder that one run is written into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None

    def open(
        self, wanted: RunDescription, rows: Callable[[RunDescription], Mapping[str, int]], *, overwrite: bool
    ) -> RunDescription | None:
        """Make the folder ready; the description of the run that lies there where it can go on, None for a new one.

        `rows` says how many rows each table of a run has for an item. Where parts of the tables are missing or cut off, the
        run goes on from the first of them.

        Raises:
            RunError: the folder holds another run or other files, or cannot be written.
        """
        self._lock = lock_folder(self.path)
        found = self._names()
        lies_here = "run.json" in found
        if lies_here and not overwrite:
            there = read_description(self.path / "run.json", RunDescription)
            if changed := _differences(there, wanted):
                raise RunError(
                    f"{self.path}: holds another run ({'; '.join(changed)}); choose another output or overwrite (--overwrite)"
                )
            there = self.verified(there, rows(there))
            if there.done:
                self._clear(after=there)
                self._probe()
                return there
        if lies_here:
            self._clear()
        elif not overwrite and (visible := [name for name in found if not name.startswith(".")]):
            names = ", ".join(visible[:3])
            raise RunError(
                f"{self.path}: holds other files ({names}); choose another output, or --overwrite to write beside them"
            )
        elif mistakable := [path for path in self._own() if path.suffix != ".unfinished"]:
            raise RunError(f"{mistakable[0]}: would be mistaken for a part of the run; remove it or choose another output")
        self._probe()
        return None

    def verified(self, description: RunDescription, rows: Mapping[str, int]) -> RunDescription:
        """The description as far as the tables bear it out: up to the first part that is missing, cut off or short of rows."""
        import pyarrow
        import pyarrow.parquet

        skipped = {entry.item if entry.item is not None else entry.image for entry in description.skipped}
        parts = description.parts or []
        done = description.done
        bounds = zip(parts, [*parts[1:], done], strict=False)
        first_done = next((item for item in range(min(parts[0] if parts else done, done)) if item not in skipped), None)
        if first_done is not None or parts != sorted(set(parts)):
            return _shortened(description, 0)
        for first, stop in bounds:
            items = sum(item not in skipped for item in range(first, stop))
            for table, per_item in rows.items():
                path = self.path / table / f"part-{first:05d}.parquet"
                try:
                    there = pyarrow.parquet.read_metadata(path).num_rows if path.is_file() else -1
                except (OSError, pyarrow.ArrowException):
                    there = -1
                if there != items * per_item:
                    return _shortened(description, first)
        return description

    def write(self, description: RunDescription) -> None:
        """Replace run.json."""
        text = encode_description(description)
        self._write("run.json", lambda path: _write_text(path, text))

    def write_table(self, name: str, table: "pyarrow.Table") -> None:
        """Write a Parquet file."""
        self._write(name, lambda path: write_table(path, table))

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray[Any, Any]], *, compressed: bool = False) -> None:
        """Write an NPZ file."""
        self._write(name, lambda path: write_arrays(path, arrays, compressed=compressed))

    def _names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.path.iterdir()) if self.path.exists() else []
        except NotADirectoryError:
            raise RunError(
                f"{self.path}: expected a folder to write the run into, but this is a file; choose another output"
            ) from None
        except OSError as error:
            raise RunError(f"{self.path}: the output folder cannot be read ({error.strerror}); choose another output") from None

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except OSError as error:
            raise RunError(_reason(path, error)) from error

    def _probe(self) -> None:
        """Find out now, not after the first part was measured, whether the folder can be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock or lock_folder(self.path)
            (self.path / f".probe.{os.getpid()}.unfinished").touch()
            remove_unfinished(self.path)  # the probe, and what a kill left
        except OSError as error:
            raise RunError(
                f"{self.path}: the output folder cannot be written ({error.strerror}); choose another output"
            ) from None

    def _own(self) -> list[Path]:
        """Files in the folder that have the names of a run's files."""
        files = [path for path in [*self.path.glob("*"), *self.path.glob("*/*")] if path.is_file()]
        return [path for path in files if OWN_FILES.fullmatch(path.relative_to(self.path).as_posix())]

    def _clear(self, after: RunDescription | None = None) -> None:
        """Delete the files of the run that lies here; or only what an interruption left behind `after` run.json was written.

        Raises:
            RunError: run.json is that of another program, or a file cannot be deleted.
        """
        kept: set[Path] = set()
        if after is None:
            self._require_own()
        else:
            uncommitted = re.compile(rf"({'|'.join(_PARTS)})-(\d+)\.(parquet|npz)")
            kept = {path for path in self._own() if path.suffix != ".unfinished"}
            for path in list(kept):
                part = uncommitted.fullmatch(path.relative_to(self.path).as_posix())
                shown = re.fullmatch(r"(image|classes)-(\d+)", path.stem) if path.parent.name == "maps" else None
                if (part and int(part[2]) not in (after.parts or [])) or (shown and int(shown[2]) not in after.displayed):
                    kept.remove(path)
        try:
            for path in self._own():
                if path not in kept:
                    path.unlink()
        except OSError as error:
            raise RunError(
                f"{self.path}: the run that lies there cannot be replaced ({error.strerror}); choose another output"
            ) from None

    def _require_own(self) -> None:
        """Raise `RunError` if run.json was written by another program; a damaged one may be ours."""
        path = self.path / "run.json"
        try:
            read_description(path, RunDescription)
        except RunError as error:
            if "something else" in str(error):
                raise


def _write_text(path: Path, text: bytes) -> None:
    with atomic_file(path) as file:
        file.write(text)


def _shortened(description: RunDescription, done: int) -> RunDescription:
    """The description of the same run when only `done` items were."""
    kept = [entry for entry in description.skipped if (entry.item if entry.item is not None else entry.image or 0) < done]
    parts = [first for first in description.parts or [] if first < done]
    return replace(description, done=done, parts=parts, skipped=kept, status="running")


def _differences(there: RunDescription, wanted: RunDescription) -> list[str]:
    """In words, what the run that lies in a folder and the one asked for do not have in common."""
    if there.kind != wanted.kind:
        return [f"an {there.kind} there, an {wanted.kind} asked for"]
    if there.format != FORMAT:
        return [f"of overfocus {there.overfocus} in format {there.format}, which can be read but not continued"]
    changed = []
    if there.overfocus != wanted.overfocus:
        changed.append(f"overfocus {there.overfocus} there, {wanted.overfocus} now")
    before, now = asdict(there.settings), asdict(wanted.settings)
    changed += [
        f"{name} {before[name]} there, {value} asked for"
        for name, value in now.items()
        if name not in MAY_CHANGE and before[name] != value
    ]
    for name in ("name", "weights_entry", "weights_sha256", "input_size"):
        old, new = getattr(there.checkpoint, name), getattr(wanted.checkpoint, name)
        if old != new:
            other = f"other weights, {there.checkpoint.source}" if "sha" in name else f"checkpoint {name} {old} there, {new} now"
            changed.append(other)
    if there.pixels != wanted.pixels:
        changed.append("images prepared for another input")
    if there.measures != wanted.measures:
        changed.append("other metrics or probes")
    old_images, new_images = ([(image.name, image.label) for image in run.images] for run in (there, wanted))
    if old_images != new_images:
        changed.append(f"other images, {len(old_images)} there, {len(new_images)} asked for")
    return changed


def _reason(path: Path, error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    problem, remedy = ("the disk is full", "make room and ") if full else ("cannot be written", "")
    how = f"what is finished can be read; {remedy}start the same command again to go on"
    return f"{path}: {problem} ({error.strerror or error}); {how}"
