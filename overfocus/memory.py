"""Memory: running out of it told in one line, and what was freed given back to the system."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from overfocus.errors import OverfocusError

_NO_MEMORY = (
    "can't allocate memory",
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "backend out of memory",
)
"""Words of errors for which torch has no class of their own: its allocator for the processor, and libraries on a GPU."""


@contextmanager
def out_of_memory_as(kind: type[OverfocusError], remedy: str) -> Iterator[None]:
    """Turn running out of memory inside the block, on any device or in a worker, into a `kind` that ends with the remedy."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise kind(f"out of memory ({_first_line(error)}); {remedy}") from error
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker"):
            raise kind(f"a process that prepares images ended ({_first_line(error)}); try fewer workers, or {remedy}") from error
        if not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise kind(f"out of memory ({_first_line(error)}); {remedy}") from error


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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
