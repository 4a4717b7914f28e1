"""Memory: running out of it told in one line, and what was freed given back to the system."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from overfocus.errors import OverfocusError, first_line, is_lost_worker, is_out_of_memory


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
        raise kind(f"out of memory ({first_line(error)}); {remedy}") from error


def malloc_trim() -> None:
    """Return the free pages of glibc's heap, between what is kept too; elsewhere nothing is done.

    The blocks of a map of 4,096 tokens leave holes between the results that are kept of it, which glibc holds and later layers do
    not fit into: with four images of 1024×1024 pixels that was 2 GB. Calling this after each such layer costs milliseconds.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
