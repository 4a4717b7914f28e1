"""Parquet tables and npz archives: the one place where they are written and read.

What is read comes from outside: only regular files, nothing pickled, sizes before contents, checksums compared. Whatever is wrong
with a file becomes one line that names it and says what to do.
"""

import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from overfocus.errors import OverfocusError, RunError
from overfocus.files import atomic_file, require_regular_file
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

    with atomic_file(path) as file:
        pyarrow.parquet.write_table(table, file, write_page_checksum=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], *, compressed: bool = False) -> None:
    """Write an npz file whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(path) as file:
        (np.savez_compressed if compressed else np.savez)(file, allow_pickle=False, **dict(arrays))


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write a table for spreadsheets, whole or not at all: no name in it acts on a terminal or is run as a formula.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(path) as file:
        table.map(csv_cell).rename(columns=csv_cell).to_csv(file, index=False)


def read_table(paths: Path | Iterable[Path], *, remedy: str = REMEDY, error: type[OverfocusError] = RunError) -> "pyarrow.Table":
    """The rows of one Parquet file, or of several one after another; columns that one of them lacks are filled with nulls.

    Raises:
        OverfocusError: of class `error`: a file is missing, truncated, damaged or something else; the line ends with `remedy`.
    """
    import pyarrow

    tables = [_read_parquet(path, remedy, error) for path in ([paths] if isinstance(paths, Path) else paths)]
    try:
        return pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException as problem:
        raise error(f"the parts of a table do not fit each other ({one_line(problem, 200)}); {remedy}") from None


def _read_parquet(path: Path, remedy: str, error: type[OverfocusError]) -> "pyarrow.Table":
    import pyarrow
    import pyarrow.parquet

    require_regular_file(path, "a Parquet file", error)
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            about = file.metadata
            if about.num_rows < 0 or about.num_rows * max(about.num_columns, 1) > MOST_CELLS:
                raise error(
                    f"{printable(path)}: says that it holds {about.num_rows:,} rows of {about.num_columns:,} columns, more "
                    f"than a part of a table has; {remedy}"
                )
            table = file.read()
    except (OSError, pyarrow.ArrowException, ValueError, MemoryError, OverflowError) as problem:
        reason = one_line(problem, 200) or type(problem).__name__
        raise error(f"{printable(path)}: cannot be read as a Parquet file, it is damaged ({reason}); {remedy}") from None
    return table


def read_arrays(
    path: Path, names: Collection[str] | None = None, *, remedy: str = REMEDY, error: type[OverfocusError] = RunError
) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an npz file by name; with `names`, those of them that it holds.

    Raises:
        OverfocusError: of class `error`: the file is missing, truncated, damaged, has a wrong checksum, holds Python objects or
            arrays larger than it may, or is something else; the line ends with `remedy`.
    """
    require_regular_file(path, "an npz file", error)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            chosen = [name for name in members if names is None or name in names]
            total = sum(members[name].file_size for name in chosen)
            if total > MOST_BYTES:
                raise error(f"{printable(path)}: unpacks to {total:,} bytes, more than {MOST_BYTES:,}; {remedy}")
            arrays = {}
            for name in chosen:
                with archive.open(members[name]) as file:
                    arrays[name] = _read_array(file, members[name].file_size)
            return arrays
    except OverfocusError:
        raise
    except Exception as problem:  # zipfile, zlib, numpy and its tokenizer raise a dozen kinds for damaged files
        reason = one_line(problem, 200) or type(problem).__name__
        raise error(f"{printable(path)}: cannot be read as an npz file, it is damaged ({reason}); {remedy}") from None


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
