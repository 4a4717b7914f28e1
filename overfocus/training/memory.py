"""Running out of memory, told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from overfocus.errors import OverfocusError, TrainingError


@contextmanager
def memory_told(remedy: str, kind: type[OverfocusError] = TrainingError) -> Iterator[None]:
    """Turn running out of memory inside the block, on a GPU or not, or in a worker, into a `kind` that ends with the remedy."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise kind(f"out of memory ({_first_line(error)}); {remedy}") from error
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker"):
            raise kind(f"a process that prepares images ended ({_first_line(error)}); try fewer workers, or {remedy}") from error
        # torch's allocator for the processor has no exception of its own
        if "can't allocate memory" not in str(error) and "DefaultCPUAllocator" not in str(error):
            raise
        raise kind(f"out of memory ({_first_line(error)}); {remedy}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
