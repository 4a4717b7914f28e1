"""Parquet and npz files as they should be, and everything that can be wrong with them."""

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overfocus.errors import OverfocusError, RunError
from overfocus.runs.folder import read_arrays, read_table, write_arrays, write_table

ARRAYS = {
    "weights": np.arange(60, dtype=np.float32).reshape(3, 4, 5),
    "column_major": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "names": np.array(["fog", "clean"]),
    "scalar": np.array(3.5),
    "none": np.zeros((0, 4), np.float16),
}
KINDS = {name: (array.dtype.kind, array.ndim) for name, array in ARRAYS.items()} | {"a": ("biufcSU", 1)}
TABLE = pyarrow.table({"image": list(range(1000)), "gini": np.linspace(0, 1, 1000), "label": ["a", None] * 500})


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_come_back_as_numpy_reads_them(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "maps.npz"
    write_arrays(path, ARRAYS, compressed=compressed)
    read = read_arrays(path, {}, KINDS)
    with np.load(path) as expected:
        assert list(read) == expected.files
        for name, array in read.items():
            assert array.dtype == expected[name].dtype
            np.testing.assert_array_equal(array, expected[name])
            assert array.flags.writeable
    assert list(read_arrays(path, {"names": KINDS["names"]}, {"absent": ("f", 1)})) == ["names"]


def test_tables_come_back_one_after_another(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", TABLE)
    write_table(tmp_path / "b.parquet", TABLE.append_column("more", pyarrow.array([1.0] * 1000)))
    both = read_table([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert both.num_rows == 2000
    assert both["more"].null_count == 1000
    assert read_table(tmp_path / "a.parquet").equals(TABLE)


def npz_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy_of(array: Any, **header: Any) -> bytes:
    file = io.BytesIO()
    if header:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(array)
    else:
        np.save(file, array, allow_pickle=True)
    return file.getvalue()


def sound_npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, **ARRAYS)
    return file.getvalue()


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


class RunsCode:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("executed",)


BAD_NPZ = {
    "empty": b"",
    "text": b"hello\n",
    "truncated": sound_npz()[:-40],
    "half": sound_npz()[:300],
    "npy": npy_of(np.ones(3)),
    "pickle": pickle.dumps({"a": 1}),
    "wrong checksum": flipped(sound_npz(), 200),
    "objects": npz_of(a=npy_of(np.array([{}, 1], dtype=object))),
    "objects that run code": npz_of(a=npy_of(np.array([RunsCode()], dtype=object))),
    "header that is larger than the data": npz_of(a=npy_of(b"1234", descr="<f4", fortran_order=False, shape=(10**12,))),
    "negative shape": npz_of(a=npy_of(b"1234", descr="<f4", fortran_order=False, shape=(-1, -1))),
    "header of nonsense": npz_of(a=b"\x93NUMPY\x01\x00\x10\x00{[[[[[[[[[[[[[[["),
    "future version": npz_of(a=b"\x93NUMPY\x09\x00\x10\x00{}              "),
    "bomb": npz_of(a=npy_of(b"\0" * 2**22, descr="|u1", fortran_order=False, shape=(2**22,))),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_NPZ)
def test_npz_files_that_are_damaged_are_named_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("overfocus.runs.folder.MOST_BYTES", 2**20)
    path = tmp_path / "maps.npz"
    path.write_bytes(BAD_NPZ[name])
    with pytest.raises(RunError, match=r"maps\.npz: .*--overwrite") as caught:
        read_arrays(path, {}, KINDS)
    assert str(caught.value).isprintable()
    assert not Path("executed").exists()


@pytest.mark.parametrize("place", [0, 200, 3000, -200, -4])
def test_a_flipped_byte_of_a_table_never_gives_other_numbers(place: int, tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    write_table(path, TABLE)
    content = path.read_bytes()
    path.write_bytes(flipped(content, place % len(content)))
    try:
        assert read_table(path).equals(TABLE)
    except RunError as error:
        assert "part.parquet" in str(error)  # noqa: PT017


@pytest.mark.parametrize("content", [b"", b"PAR1", b"hello", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_tables_that_are_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"part\.parquet: cannot be read as a Parquet file.*--overwrite"):
        read_table(path)


def test_a_table_of_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path / "part.parquet", TABLE)
    monkeypatch.setattr("overfocus.runs.folder.MOST_CELLS", 100)
    with pytest.raises(RunError, match=r"1,000 rows of 3 columns"):
        read_table(tmp_path / "part.parquet")


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_missing_file_and_a_pipe(kind: str, tmp_path: Path) -> None:
    read: Callable[[Path], object] = partial(read_arrays, expected={}) if kind == "npz" else read_table
    with pytest.raises(RunError, match="no such file"):
        read(tmp_path / f"a.{kind}")
    os.mkfifo(tmp_path / f"b.{kind}")
    with pytest.raises(RunError, match="named pipe"):
        read(tmp_path / f"b.{kind}")


@given(data=st.data())
def test_any_damage_is_our_error(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damage") / "maps.npz"
    content = bytearray(sound_npz())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read_arrays(path, {}, KINDS)
    except OverfocusError as error:
        assert "maps.npz" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("expected", "optional", "words"),
    [
        ({"absent": ("f", 1)}, {}, "expected an array absent, but there is none"),
        ({"names": ("i", 1)}, {}, "another array names, got one of <U"),
        ({"layer": ("f", 3)}, {}, "another array layer, got one of float32 and shape (4, 2)"),
        ({"names": ("U", 1), "layer": ("f", 2)}, {}, "another array layer"),
        ({"names": ("U", 1)}, {"part_*": ("f", 1)}, "another array part_07"),
    ],
)
def test_other_arrays_than_expected(expected: Any, optional: Any, words: str, tmp_path: Path) -> None:
    arrays = {"names": np.array(["a", "b"]), "layer": np.zeros((4, 2), np.float32), "part_07": np.zeros(3)}
    write_arrays(tmp_path / "maps.npz", arrays)
    with pytest.raises(RunError, match=re.escape(words)):
        read_arrays(tmp_path / "maps.npz", expected, optional)
    assert list(read_arrays(tmp_path / "maps.npz", {"names": ("U", 1)}, {"layer": ("f", 2)})) == ["names", "layer"]


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("image", [1.5], "expected whole numbers in the column image, got double"),
        ("image", [1, None], "expected a value in each row in the column image, got none in some"),
        ("gini", ["0.5"], "expected numbers in the column gini, got string"),
        ("gini", [[0.5]], "expected numbers in the column gini, got list"),
        ("label", [3], "expected texts in the column label, got int64"),
        ("predicted", [float("inf")], "expected whole numbers in the column predicted"),
    ],
)
def test_columns_of_other_values_than_expected(column: str, values: list[Any], words: str, tmp_path: Path) -> None:
    write_table(tmp_path / "part.parquet", pyarrow.table({column: values}))
    with pytest.raises(RunError, match=re.escape(words)):
        read_table(tmp_path / "part.parquet")
    nulls = pyarrow.table({"predicted": [None, 3], "gini": [None, None], "label": [None, "a"], "of a user": ["x", "y"]})
    write_table(tmp_path / "part.parquet", nulls)
    assert read_table(tmp_path / "part.parquet").equals(nulls)


def test_a_category_of_lists(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": [0], "corruption": [[1]]}), path)
    with pytest.raises(RunError, match=r"part\.parquet"):
        read_table(path, categories=["corruption"])
