"""What overfocus raises: one root, one class per part of the route from checkpoint to run; and any exception in one line."""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from overfocus.text import one_line, printable


class OverfocusError(Exception):
    """Root of every error that overfocus raises about what it was given; its text is one line that a user can act on."""

    setting: str | None = None
    """Name of the argument that it is about, where it is about one."""

    def __str__(self) -> str:
        """One line in which nothing acts on a terminal, whatever names of files and tensors it quotes."""
        return one_line(super().__str__())


class CheckpointError(OverfocusError):
    """A checkpoint cannot be read, trusted, recognised or loaded."""


class CaptureError(OverfocusError):
    """Attention cannot be captured, or what was captured is no attention (NaN, rows that do not sum to 1)."""


class ImageError(OverfocusError):
    """An image or a set of images cannot be read."""


class ChangedImageError(ImageError):
    """An image in memory is another one than when it was read first."""


class CorruptionError(OverfocusError, ValueError):
    """A corruption or severity does not exist."""


class RunError(OverfocusError):
    """A run folder cannot be written, read, continued or compared."""


class TrainingError(OverfocusError):
    """A model cannot be trained as asked, or its training went wrong."""


_NO_MEMORY = (
    "can't allocate memory",
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "backend out of memory",
    "bad_alloc",
    "could not create a primitive",
    "could not create a memory",
)
"""Words of errors for which torch has no class of their own: its allocator for the processor, oneDNN, and libraries on a GPU."""


def explain(error: BaseException) -> str:
    """An exception of any kind in one line: what went wrong and what to try.

    Errors of overfocus say it themselves; those of the system, of memory and of torch's allocators get words of their own.
    """
    if isinstance(error, OverfocusError):
        return str(error)
    first = first_line(error)
    if is_out_of_memory(error):
        remedy = "try a smaller batch size, fewer workers, fewer or smaller images, or another device"
        return f"out of memory{_quoted(error)}; {remedy}"
    if is_lost_worker(error):
        return (
            f"a process that prepares images ended ({first}), as happens when memory runs out; "
            "try fewer workers (0 reads in the main process) or a smaller batch size"
        )
    if isinstance(error, RecursionError):
        return "a file is nested too deeply or refers to itself; it is damaged or malicious"
    if isinstance(error, UnicodeError):
        return f"text that is not UTF-8 was found ({first}); save the file as UTF-8, or give it another name"
    if isinstance(error, EOFError):
        return f"a file ended too early ({first}); copy or download it again"
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] in sys.stdlib_module_names:
        return f"this Python lacks {error.name}, part of its standard library; check the installation of Python"
    if isinstance(error, ModuleNotFoundError):
        return f'the package {error.name} is not installed; pip install {error.name}, or "overfocus[train]" for training'
    if isinstance(error, OSError):
        return _explain_system(error)
    if isinstance(error, Warning):
        return f"a warning counts as an error here, by -W or PYTHONWARNINGS ({first}); leave it out to go on"
    return f"{type(error).__name__}: {first}; this is a bug in overfocus: please report it with what --debug prints"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or not; torch's allocator for processors has no exception of its own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def is_shortage(error: BaseException) -> bool:
    """Whether memory or open files ran out: nothing that the file that is read is to blame for.

    Readers raise a MemoryError also where a damaged file asks for more than they would ever give it.
    """
    if isinstance(error, OSError):
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return is_out_of_memory(error) and not _memory_left()


def _memory_left() -> bool:
    """Whether there is room for what an image of usual size takes."""
    try:
        return bool(bytearray(2**26))
    except MemoryError:
        return False


def is_lost_worker(error: BaseException) -> bool:
    """Whether a process that prepares images was killed or ended by itself."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def _explain_system(error: OSError) -> str:
    name = "" if error.filename is None else f"{printable(error.filename)}: "
    reason = error.strerror or first_line(error)
    remedies = {
        errno.ENOSPC: "the disk is full; make room and start the same command again",
        errno.EDQUOT: "your quota of disk space is used up; make room and start the same command again",
        errno.EMFILE: "too many files are open; raise the limit (ulimit -n) or use fewer workers",
        errno.ENFILE: "too many files are open on this machine; use fewer workers",
        errno.EACCES: "permission denied; check who owns it, or choose another place",
        errno.EPERM: "not permitted; check who owns it, or choose another place",
        errno.EROFS: "the file system is read-only; choose another output",
        errno.ENOENT: "no such file or folder; check the path",
        errno.ENOTDIR: "a part of the path is a file, not a folder; check the path",
        errno.EISDIR: "this is a folder where a file was expected; check the path",
        errno.EEXIST: "a file of this name already exists; choose another output",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
        errno.ELOOP: "symbolic links form a loop; check the path",
        errno.EIO: "the device cannot be read or written; check the disk",
    }
    passed_on = re.search(r"\[Errno (\d+)\]", reason)  # of a worker process: its text is all that comes through
    number = error.errno or (int(passed_on[1]) if passed_on else 0)
    return name + remedies.get(number, f"{reason}; check the path and the disk")


def _quoted(error: BaseException) -> str:
    """What an exception says, in parentheses; nothing where it says nothing."""
    return f" ({first_line(error)})" if str(error).strip() else ""


def first_line(error: BaseException) -> str:
    """The first line of a message; of an exception in a worker process, which carries its traceback, the last.

    Where torch refuses a pickle, it advises to load it with weights_only=False, which runs code: this is left out.
    """
    if "weights_only" in str(error):
        return "it holds more than tensors in plain dictionaries"
    text = f"no entry {error}" if isinstance(error, KeyError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    said = 1 + (lines[0].endswith(":") and len(lines) > 1)  # what comes behind the colon belongs to it
    return one_line(lines[-1] if lines[0].startswith("Caught ") else " ".join(lines[:said]), 300)


@contextmanager
def out_of_memory_as(kind: type[OverfocusError], remedy: str) -> Iterator[None]:
    """Turn running out of memory inside the block, on any device or in a worker, into a `kind` that ends with the remedy."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if is_lost_worker(error):
            raise kind(f"a process that prepares images ended ({first_line(error)}); try fewer workers, or {remedy}") from error
        if not is_out_of_memory(error):
            raise
        raise kind(f"out of memory{_quoted(error)}; {remedy}") from error
