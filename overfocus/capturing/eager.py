"""Running compiled models eagerly while a capture is open."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_lock = threading.Lock()
_open = 0
_settings = ExitStack()


@contextmanager
def eager() -> Iterator[None]:
    """Have what `torch.compile` made run its original code inside the block.

    torch's stance and the filters of warnings belong to the whole process. Captures in several threads may overlap, so the
    first to begin changes them and the last to end puts them back.
    """
    global _open
    with _lock:
        _open += 1
        if _open == 1:
            _settings.enter_context(warnings.catch_warnings())
            # torch warns that global hooks fire for compiled wrappers too; ours look at the modules inside only
            warnings.filterwarnings("ignore", message="Using `torch.compile")
            _settings.enter_context(torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if not _open:
                _settings.close()
