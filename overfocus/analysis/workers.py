"""Processes that prepare pictures beside the model."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Have OpenCV end its threads in this process while it is forked: a copy would wait forever for threads that it has not."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def unchanged(prepared: Any) -> Any:
    """Leave arrays as they are: as tensors they would need shared memory, of which containers have little."""
    return prepared


def start_worker(_number: int) -> None:
    """Leave Ctrl-C to the main process and, as far as the system has priorities, the cores to the model.

    The workers take what the model leaves idle, and all when it waits for them. Pictures are small: threads would cost more
    than they give.
    """
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(10)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
