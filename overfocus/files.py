"""Files: regular ones only are read, and what is written is written whole or not at all."""

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary

from overfocus.errors import OverfocusError, RunError
from overfocus.text import one_line, printable

MOST_BYTES = 2**30
"""A file of text larger than this is refused; the description of a run of a million images has some 200 MB."""
_PATIENCE = 10.0
"""Seconds that a folder may stay locked: the worker processes of a killed program take some to notice."""
_UNFINISHED = ".unfinished"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_regular_file(path: str | Path, expected: str, error: type[OverfocusError] = RunError) -> os.stat_result:
    """The status of a file that can be opened and read to an end; links are followed.

    To be called before every open: reading a named pipe waits for ever, and a device has no end.

    Args:
        path: of the file.
        expected: what it should be, such as "an image", for the error.
        error: class to raise.

    Raises:
        OverfocusError: of the class given: there is no file, it is a folder, a pipe, a socket or a device, or it may not be read.
    """
    name = printable(path)
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise error(f"{name}: no such file; expected {expected}") from None
    except (OSError, ValueError) as reason:  # ValueError: a zero byte in the name
        words = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        raise error(f"{name}: cannot be read ({words}); expected {expected}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = next((words for test, words in _KINDS if test(status.st_mode)), "no regular file")
        raise error(f"{name}: expected {expected}, but this is {kind}")
    return status


def read_bytes(path: Path, expected: str, error: type[OverfocusError] = RunError, *, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes; arguments as of `require_regular_file`.

    Raises:
        OverfocusError: of the class given: it is no regular file, is larger, or cannot be read.
    """
    size = require_regular_file(path, expected, error).st_size
    if size > most:
        raise error(f"{printable(path)}: expected {expected}, but the file has {size:,} bytes, more than {most:,}")
    try:
        with path.open("rb") as file:
            return file.read(most)  # it may grow meanwhile
    except OSError as problem:
        raise error(f"{printable(path)}: expected {expected}, but it cannot be read ({problem.strerror or problem})") from None


def read_text(path: Path, expected: str, error: type[OverfocusError] = RunError, *, most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file, as `read_bytes`; a byte order mark is left out."""
    try:
        return read_bytes(path, expected, error, most=most).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(
            f"{printable(path)}: expected {expected} in UTF-8, but byte {problem.start:,} is not; save it as UTF-8"
        ) from None


def read_json(path: Path, expected: str, error: type[OverfocusError] = RunError, *, most: int = MOST_BYTES) -> dict[str, Any]:
    """The object in a JSON file, as `read_text`."""
    text = read_text(path, expected, error, most=most)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as problem:
        reason = "nested too deeply" if isinstance(problem, RecursionError) else one_line(problem, 120)
        raise error(f"{printable(path)}: expected {expected}, but this is not JSON ({reason}); restore the file") from None
    if not isinstance(content, dict):
        raise error(f"{printable(path)}: expected {expected}, a JSON object, got {type(content).__name__}; restore the file")
    return content


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` when the block ends and all of it is on the disk.

    If the block raises, the disk is full, or the process is killed, `path` stays as it was. A kill leaves
    `.NAME.PROCESS.unfinished`, which `remove_unfinished` takes away.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        with suppress(OSError):  # the error that ended the block is the one to be seen
            unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes left in a folder and its direct sub-folders, but not what a living one is writing."""
    for leftover in (*folder.glob(f".*{_UNFINISHED}"), *folder.glob(f"*/.*{_UNFINISHED}")):
        process = leftover.name.removesuffix(_UNFINISHED).rpartition(".")[2]
        if not process.isdecimal() or int(process) == os.getpid() or not _is_alive(int(process)):
            with suppress(OSError):
                leftover.unlink()


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # signal 0 would be Ctrl-C there, and a file that is open cannot be deleted anyway
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


class FolderLock:
    """Keeps other processes from writing into a folder as long as it lives, at most as long as this process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)


_locks: "WeakValueDictionary[str, FolderLock]" = WeakValueDictionary()


def lock_folder(folder: Path, error: type[OverfocusError] = RunError) -> FolderLock | None:
    """Claim a folder for writing, so that two programs never mix their files in it.

    The system lets go of it when the process ends, however it ends; nothing is left in the folder. None where the system or the
    file system knows no locks.

    Raises:
        OverfocusError: of the class given: another process writes there.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    name = os.path.realpath(folder)
    if name in _locks:
        return _locks[name]
    try:
        lock = FolderLock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    except OSError:  # not a folder, or missing; whoever reads or writes it next says so
        return None
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(lock._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise error(
                    f"{printable(folder)}: another process is writing there; wait until it ends, or choose another output"
                ) from None
            time.sleep(0.2)
            continue
        except OSError:
            return None
        _locks[name] = lock
        return lock
