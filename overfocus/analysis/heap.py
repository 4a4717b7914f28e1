"""Have the C library give freed memory back to the system."""

import ctypes
import platform
from functools import cache
from typing import Any


def give_back_freed_memory() -> None:
    """Return the free pages of glibc's heap, between what is kept too; elsewhere nothing is done.

    The blocks of a map of 4,096 tokens leave holes between the results that are kept of it, which glibc holds and later layers do
    not fit into: with four pictures of 1024×1024 pixels that was 2 GB. Calling this after each such layer costs milliseconds.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
