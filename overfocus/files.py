"""Files: regular ones only are read, and what is written is written whole or not at all."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from overfocus.errors import OverfocusError, RunError
from overfocus.text import printable

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
