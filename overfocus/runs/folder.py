"""The folder of a run while it is written: opened, continued or replaced, and every file written whole or not at all.

One policy for all: the same settings continue, others are refused unless they may overwrite, and what is overwritten are the
files that a run wrote, none else. Parts of the tables are written first and run.json, which names them, after them: a run that
is killed at any moment can be read and continued.

Parquet tables and npz archives are written and read here alone. What is read comes from outside: only regular files, nothing
pickled, sizes before contents, checksums compared. Whatever is wrong with a file becomes one line that names it and says what to
do.
"""

import errno
import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from overfocus.errors import OverfocusError, RunError
from overfocus.files import FolderLock, atomic_file, lock_folder, remove_unfinished, require_regular_file
from overfocus.metrics.catalogue import BUILT_IN
from overfocus.runs.description import FORMAT, RunDescription, encode_description, read_description
from overfocus.text import csv_cell, one_line, printable

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow


MOST_CELLS = 2 * 10**9
"""Rows × columns of one Parquet file; more is refused before it is read."""
MOST_BYTES = 4 * 2**30
"""Of the arrays of one npz file, unpacked; more is refused before it is read."""
REMEDY = "measure again with --overwrite, or restore the file from a copy"


def write_table(path: Path, table: "pyarrow.Table") -> None:
    """Write a Parquet file whole or not at all, with a checksum for each page.

    Raises:
        OSError: it cannot be written.
    """
    import pyarrow.parquet

    repeated = [field.name for field in table.schema if not str(field.type).startswith(("float", "double"))]
    with atomic_file(path) as file:
        pyarrow.parquet.write_table(table, file, use_dictionary=repeated, write_page_checksum=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], *, compressed: bool = False) -> None:
    """Write an npz file whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(path) as file:
        named: dict[str, Any] = dict(arrays)
        (np.savez_compressed if compressed else np.savez)(file, **named)


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write a table for spreadsheets, whole or not at all: no name in it acts on a terminal or is run as a formula.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(path) as file:
        table.map(csv_cell).rename(columns=csv_cell).to_csv(file, index=False)


def read_table(
    paths: Path | Iterable[Path],
    columns: Collection[str] | None = None,
    *,
    categories: Collection[str] = (),
    remedy: str = REMEDY,
    error: type[OverfocusError] = RunError,
) -> "pyarrow.Table":
    """The rows of one Parquet file, or of several one after another; columns that one of them lacks are filled with nulls.

    With `columns`, those of them that there are; texts in the columns `categories` are read as numbers of categories.

    Raises:
        OverfocusError: of class `error`: a file is missing, truncated, damaged or something else; the line ends with `remedy`.
    """
    import pyarrow

    every = [paths] if isinstance(paths, Path) else paths
    tables = [_read_parquet(path, columns, categories, remedy, error) for path in every]
    try:
        return pyarrow.concat_tables(tables, promote_options="permissive").unify_dictionaries()
    except pyarrow.ArrowException as problem:
        raise error(f"the parts of a table do not fit each other ({one_line(problem, 200)}); {remedy}") from None


def table_size(path: Path) -> tuple[int, tuple[str, ...]]:
    """How many rows a Parquet file says that it holds, and the names of its columns.

    Raises:
        RunError: it is missing, truncated, damaged or something else.
    """
    import pyarrow
    import pyarrow.parquet

    require_regular_file(path, "a Parquet file", RunError)
    try:
        about = pyarrow.parquet.read_metadata(path)
        return about.num_rows, tuple(about.schema.to_arrow_schema().names)
    except (OSError, pyarrow.ArrowException, ValueError, MemoryError, OverflowError) as problem:
        raise _damaged(path, problem, REMEDY, RunError) from None


def _damaged(path: Path, problem: Exception, remedy: str, error: type[OverfocusError]) -> OverfocusError:
    reason = one_line(problem, 200) or type(problem).__name__
    return error(f"{printable(path)}: cannot be read as a Parquet file, it is damaged ({reason}); {remedy}")


def _read_parquet(
    path: Path, columns: Collection[str] | None, categories: Collection[str], remedy: str, error: type[OverfocusError]
) -> "pyarrow.Table":
    import pyarrow
    import pyarrow.parquet

    require_regular_file(path, "a Parquet file", error)
    try:
        as_numbers = list(categories) or None
        with pyarrow.parquet.ParquetFile(path, read_dictionary=as_numbers, page_checksum_verification=True) as file:
            about = file.metadata
            if about.num_rows < 0 or about.num_rows * max(about.num_columns, 1) > MOST_CELLS:
                raise error(
                    f"{printable(path)}: says that it holds {about.num_rows:,} rows of {about.num_columns:,} columns, more "
                    f"than a part of a table has; {remedy}"
                )
            there = file.schema_arrow.names
            table = file.read(None if columns is None else [name for name in columns if name in there])
    except (OSError, pyarrow.ArrowException, ValueError, KeyError, MemoryError, OverflowError) as problem:
        raise _damaged(path, problem, remedy, error) from None
    for field in table.schema:
        expected = _expected_values(field)
        if expected or (field.name in _KEYS and table[field.name].null_count):
            got = one_line(field.type, 100) if expected else "none in some"
            raise error(
                f"{printable(path)}: expected {expected or 'a value in each row'} in the column {field.name}, got {got}; {remedy}"
            )
    return table


_KEYS = ("image", "corruption", "severity", "layer", "head")
_WHOLE = {"image", "severity", "layer", "head", "predicted", "class", "k", "draw"}
_TEXTS = {"name", "label", "corruption", "module", "kind", "predicted_name", "class_name", "choice"}
_NUMBERS = {"confidence", "fraction", "received_share", "area_share", *(metric.name for metric in BUILT_IN)}


def _expected_values(field: "pyarrow.Field") -> str:
    """What a column of a run's tables has to hold, in words; empty where it does, or is none of ours."""
    from pyarrow import types

    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    for names, expected, fits in (
        (_TEXTS, "texts", types.is_string(kind) or types.is_large_string(kind)),
        (_WHOLE, "whole numbers", types.is_integer(kind)),
        (_NUMBERS, "numbers", number),
    ):
        if field.name in names and not fits and not types.is_null(kind):
            return expected
    return ""


def read_arrays(
    path: Path,
    expected: Mapping[str, tuple[str, int]],
    optional: Mapping[str, tuple[str, int]] | None = None,
    *,
    remedy: str = REMEDY,
    error: type[OverfocusError] = RunError,
) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an npz file by name.

    Args:
        path: of the file.
        expected: the letters that numpy has for the kinds of their values and the number of axes of the arrays that it has to
            hold; the first axes of all are equal.
        optional: the same of those that it may hold; of names that end in "_*" the first axis is that of the expected ones.
        remedy: how an error ends.
        error: class to raise.

    Raises:
        OverfocusError: of class `error`: the file is missing, truncated, damaged, has a wrong checksum, holds Python objects,
            other arrays or larger ones than it may, or is something else.
    """
    known = {**expected, **(optional or {})}
    require_regular_file(path, "an npz file", error)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            kinds = {name: re.sub(r"_\d+$", "_*", name) for name in members}
            chosen = [name for name in members if kinds[name] in known]
            total = sum(members[name].file_size for name in chosen)
            if total > MOST_BYTES:
                raise error(f"{printable(path)}: unpacks to {total:,} bytes, more than {MOST_BYTES:,}; {remedy}")
            arrays = {}
            for name in chosen:
                with archive.open(members[name]) as file:
                    arrays[name] = _read_array(file, members[name].file_size)
    except OverfocusError:
        raise
    except Exception as problem:  # zipfile, zlib, numpy and its tokenizer raise a dozen kinds for damaged files
        reason = one_line(problem, 200) or type(problem).__name__
        raise error(f"{printable(path)}: cannot be read as an npz file, it is damaged ({reason}); {remedy}") from None
    if missing := [name for name in expected if name not in arrays]:
        raise error(f"{printable(path)}: expected an array {missing[0]}, but there is none; {remedy}")
    first = next((arrays[name].shape[:1] for name in expected), None)
    for name, array in arrays.items():
        letters, axes = known[kinds[name]]
        together = first is not None and (name in expected or kinds[name].endswith("_*"))
        if array.dtype.kind not in letters or array.ndim != axes or (together and array.shape[:1] != first):
            raise error(
                f"{printable(path)}: expected another array {printable(name)}, got one of {array.dtype} and shape {array.shape}; "
                f"{remedy}"
            )
    return arrays


def _read_array(file: IO[bytes], size: int) -> np.ndarray[Any, Any]:
    """One array of `size` bytes with its header, read to the end so that its checksum is compared.

    Raises:
        ValueError: it holds Python objects, or another number of bytes than its header says.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format {version} of an array")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_major, kind = read_header(file)
    if kind.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    count = 1
    for length in shape:
        count *= int(length)
    if count < 0 or count * kind.itemsize != size - file.tell():
        raise ValueError(f"an array of shape {shape} in {size:,} bytes")
    data = file.read()
    array = np.frombuffer(bytearray(data), dtype=kind, count=count)
    return array.reshape(shape, order="F" if column_major else "C")


MAY_CHANGE = ("images", "workers", "strict", "max_pixels")
"""Settings that a continued run may change: what it measures does not depend on them. Images are compared one by one."""

_FIGURES = r"figures/(layers-\w+|\w+-by-(severity|layer)|image-\d+|ablation[\w-]*|reliability)\.(png|svg)"
OWN_FILES = re.compile(
    r"run\.json|report\.html|evaluation\.(json|csv)|(ablation|differences)\.(csv|parquet)"
    r"|(metrics|predictions|attention_by_class|ablation)/part-\d+\.parquet"
    r"|maps/(received|image|classes)-\d+\.npz|maps/windows\.npz"
    rf"|{_FIGURES}"
    r"|([^/]+/)?\.[^/]+\.unfinished"
)
"""Files that a run writes, and what an interrupted writing of one may leave; nothing else is ever deleted."""
COMPARISON_FILES = re.compile(
    rf"comparison\.json|(comparison|fragility)\.(csv|parquet)|report\.html|{_FIGURES}|([^/]+/)?\.[^/]+\.unfinished"
)
"""The same of a comparison, beside the runs in its folder `runs`."""

_PARTS = ("metrics/part", "predictions/part", "attention_by_class/part", "ablation/part", "maps/received")


def own_files(folder: Path, own: re.Pattern[str]) -> list[Path]:
    """Files in a folder, and in the folders in it, that have the names of those written there."""
    files = [path for path in [*folder.glob("*"), *folder.glob("*/*")] if path.is_file()]
    return [path for path in files if own.fullmatch(path.relative_to(folder).as_posix())]


def entry_names(folder: Path, what: str) -> list[str]:
    """Names of what an output folder holds, in order; none where it does not exist yet.

    Raises:
        RunError: it is a file, or cannot be read.
    """
    try:
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except NotADirectoryError:
        raise RunError(
            f"{folder}: expected a folder to write the {what} into, but this is a file; choose another output"
        ) from None
    except OSError as error:
        raise RunError(f"{folder}: the output folder cannot be read ({error.strerror}); choose another output") from None


def refuse_others(folder: Path, names: Iterable[str]) -> None:
    """Raise `RunError` where an output folder holds these names, which nothing writes there; hidden ones do not count."""
    if visible := [name for name in names if not name.startswith(".")]:
        raise RunError(
            f"{folder}: holds other files ({', '.join(visible[:3])}); choose another output, or --overwrite to write beside them"
        )


def remove_files(folder: Path, files: Iterable[Path], what: str) -> None:
    """Delete files of what is replaced.

    Raises:
        RunError: one cannot be deleted.
    """
    try:
        for path in files:
            path.unlink()
    except OSError as error:
        raise RunError(f"{folder}: the {what} there cannot be replaced ({error.strerror}); choose another output") from None


class RunFolder:
    """A folder that one run is written into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FolderLock | None = None

    def open(
        self, wanted: RunDescription, rows: Callable[[RunDescription], Mapping[str, int]], *, overwrite: bool
    ) -> RunDescription | None:
        """Make the folder ready; the description of the run in it where it can go on, None for a new one.

        `rows` says how many rows each table of a run has for an item. Where parts of the tables are missing or cut off, the
        run goes on from the first of them.

        Raises:
            RunError: the folder holds another run or other files, or cannot be written.
        """
        self._lock = lock_folder(self.path)
        found = entry_names(self.path, "run")
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
        else:
            if not overwrite:
                refuse_others(self.path, found)
            mistakable = [path for path in self._own() if path.suffix != ".unfinished"]
            if mistakable:
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
        return own_files(self.path, OWN_FILES)

    def _clear(self, after: RunDescription | None = None) -> None:
        """Delete the files of the run in this folder; or only what an interruption left behind `after` run.json was written.

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
        remove_files(self.path, [path for path in self._own() if path not in kept], "run")

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
    """In words, how the run in a folder and the one asked for differ."""
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
    for name in ("name", "weights_entry", "weights_sha256", "input_size", "mean", "std"):
        old, new = getattr(there.checkpoint, name), getattr(wanted.checkpoint, name)
        if old != new:
            other = f"other weights, {there.checkpoint.source}" if "sha" in name else f"checkpoint {name} {old} there, {new} now"
            changed.append(other)
    same_weights = there.checkpoint.weights_sha256 == wanted.checkpoint.weights_sha256
    tolerance = 2e-4 if there.settings.device == wanted.settings.device == "cpu" else 0.02  # TF32 and half precision round more
    if same_weights and _compute_otherwise(there.checkpoint.outputs, wanted.checkpoint.outputs, tolerance):
        changed.append("another network with the same weights, which gives other outputs")
    if there.pixels != wanted.pixels:
        changed.append("images prepared for another input")
    if there.measures != wanted.measures:
        changed.append("other metrics or probes")
    changed += [
        f"another function as {name}"
        for name in sorted({*there.functions, *wanted.functions})
        if there.functions.get(name) != wanted.functions.get(name)
    ]
    if there.label_classes != wanted.label_classes:
        changed.append("other classes of the labels")
    old_images, new_images = ([(image.name, image.label, image.sha256) for image in run.images] for run in (there, wanted))
    if old_images != new_images:
        changed.append(f"other images, {len(old_images)} there, {len(new_images)} asked for")
    return changed


def _compute_otherwise(there: list[float], now: list[float], tolerance: float) -> bool:
    """Whether outputs for the same image differ by more than a share of the largest, as rounding on other hardware does."""
    if not there or not now:
        return False
    most = max(map(abs, there))
    return len(there) != len(now) or any(abs(old - new) > tolerance * most for old, new in zip(there, now, strict=True))


def _reason(path: Path, error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    problem, remedy = ("the disk is full", "make room and ") if full else ("cannot be written", "")
    how = f"what is finished can be read; {remedy}start the same command again to go on"
    return f"{path}: {problem} ({error.strerror or error}); {how}"
