"""The run folder while it is written: opened, continued or replaced, and every file written whole or not at all."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from overfocus.analysis.settings import MAY_CHANGE
from overfocus.errors import RunError
from overfocus.files import atomic_file
from overfocus.run import check_ours, committed_parts, read_info

if TYPE_CHECKING:
    import pyarrow

_OURS = re.compile(
    r"run\.json|report\.html|(metrics|predictions|attention_by_class)/part-\d+\.parquet|maps/(received|image|classes)-\d+\.npz|maps/windows\.npz|figures/[^/]+\.png|(.*/)?\.[^/]+\.unfinished"
)
"""Files of a run, and what an interrupted writing of one may leave; nothing else is ever deleted."""


class RunFolder:
    """A folder that one run is written into.

    Parts of the tables are written first and run.json, which says how many images are done, after them: a run that is
    killed at any moment can be read and continued.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, wanted: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
        """Make the folder ready; the content of run.json where images of the run that lies there are done, None for a new one.

        Raises:
            RunError: the folder holds another run or other files, or cannot be written.
        """
        try:
            found = sorted(path.name for path in self.path.iterdir()) if self.path.exists() else []
        except NotADirectoryError:
            raise RunError(
                f"{self.path}: expected a folder to write the run into, but this is a file; choose another output"
            ) from None
        except OSError as error:
            raise RunError(f"{self.path}: the output folder cannot be read ({error.strerror}); choose another output") from None
        lies_here = "run.json" in found
        if lies_here and not overwrite:
            info = read_info(self.path)
            if changed := _differences(info, wanted):
                raise RunError(
                    f"{self.path}: holds another run ({'; '.join(changed)}); choose another output or overwrite (--overwrite)"
                )
            if info["done"]:
                self._clear(after=info)
                return info
        if lies_here:
            self._clear()
        elif not overwrite and (visible := [name for name in found if not name.startswith(".")]):
            names = ", ".join(visible[:3])
            raise RunError(
                f"{self.path}: holds other files ({names}); choose another output, or --overwrite to write beside them"
            )
        elif mistakable := [path for path in self._ours() if path.suffix != ".unfinished"]:
            raise RunError(f"{mistakable[0]}: would be mistaken for a part of the run; remove it or choose another output")
        self._probe()
        return None

    def write_info(self, info: dict[str, Any]) -> None:
        """Replace run.json."""
        text = json.dumps(info, indent=1, ensure_ascii=False)
        self._write("run.json", lambda file: file.write(text.encode()))

    def write_table(self, name: str, table: "pyarrow.Table") -> None:
        """Write a Parquet file."""
        import pyarrow.parquet

        self._write(name, lambda file: pyarrow.parquet.write_table(table, file))

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray[Any, Any]], *, compressed: bool = False) -> None:
        """Write an NPZ file."""
        save = np.savez_compressed if compressed else np.savez
        self._write(name, lambda file: save(file, allow_pickle=False, **arrays))

    def _write(self, name: str, content: Callable[[IO[bytes]], object]) -> None:
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                content(file)
        except OSError as error:
            raise RunError(_reason(path, error)) from error

    def _probe(self) -> None:
        """Find out now, not after the first part was measured, whether the folder can be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe.{os.getpid()}.unfinished"
            probe.touch()
            for unfinished in (path for path in self._ours() if path.suffix == ".unfinished"):  # the probe, and what a kill left
                unfinished.unlink()
        except OSError as error:
            raise RunError(
                f"{self.path}: the output folder cannot be written ({error.strerror}); choose another output"
            ) from None

    def _ours(self) -> list[Path]:
        """Files in the folder that have the names of a run's files."""
        files = [path for path in [*self.path.glob("*"), *self.path.glob("*/*")] if path.is_file()]
        return [path for path in files if _OURS.fullmatch(path.relative_to(self.path).as_posix())]

    def _clear(self, after: dict[str, Any] | None = None) -> None:
        """Delete the files of the run that lies here; or only what an interruption left behind `after` run.json was written.

        Raises:
            RunError: run.json is that of another program, or a file cannot be deleted.
        """
        kept: set[Path] = set()
        if after is None:
            check_ours(self.path)
        else:
            parts = ("metrics", "part-"), ("predictions", "part-"), ("attention_by_class", "part-"), ("maps", "received-")
            for kind, prefix in parts:
                kept.update(committed_parts(self.path / kind, prefix, after).values())
            for kind in ("image", "classes"):
                kept.update(self.path / "maps" / f"{kind}-{number}.npz" for number in after["displayed"])
            kept.update(self.path / name for name in ("run.json", "report.html", "maps/windows.npz"))
            kept.update(self.path.glob("figures/*.png"))
        try:
            for path in self._ours():
                if path not in kept:
                    path.unlink()
        except OSError as error:
            raise RunError(
                f"{self.path}: the run that lies there cannot be replaced ({error.strerror}); choose another output"
            ) from None


def _differences(info: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """In words, what the run that lies in a folder and the one asked for do not have in common."""
    changed = []
    if info["overfocus"] != wanted["overfocus"]:
        changed.append(f"overfocus {info['overfocus']} there, {wanted['overfocus']} now")
    for name, value in wanted["settings"].items():
        if name not in MAY_CHANGE and info["settings"].get(name) != value:
            changed.append(f"{name} {info['settings'].get(name)} there, {value} asked for")
    for name in ("name", "weights_entry", "weights_sha256", "input_size"):
        there, now = info["checkpoint"].get(name), wanted["checkpoint"][name]
        if there != now:
            changed.append(
                f"other weights, {info['checkpoint']['source']}"
                if "sha" in name
                else f"checkpoint {name} {there} there, {now} now"
            )
    if info.get("pixels") != wanted.get("pixels"):
        changed.append("pictures prepared for another input")
    there, now = ([(image["name"], image["label"]) for image in run["images"]] for run in (info, wanted))
    if there != now:
        changed.append(f"other images, {len(there)} there, {len(now)} asked for")
    return changed


def _reason(path: Path, error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    problem, remedy = ("the disk is full", "make room and ") if full else ("cannot be written", "")
    how = f"what is finished can be read; {remedy}start the same command again to go on"
    return f"{path}: {problem} ({error.strerror or error}); {how}"
