"""Counting what a GPU would have to launch, and finding what would make the host wait for it, on any device."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "equal", "is_nonzero")
"""Operators whose result or size the host reads."""

FREE = (
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "slice", "select", "split",
    "split_with_sizes", "unbind", "detach", "alias", "as_strided", "empty", "empty_like", "empty_strided", "new_empty",
    "new_empty_strided", "unflatten", "diagonal", "chunk", "_reshape_alias", "lift_fresh", "sym_size", "is_same_size",
)  # fmt: skip
"""Operators that launch nothing: views, and memory that is not filled."""


class Launches(TorchDispatchMode):
    """Counts operators that launch work on a device; those that wait are listed in `waits`."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.waits: list[str] = []

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in FREE and not (name == "_to_copy" and _stays(args, kwargs)):
            self.counts[name] += 1
        if name in WAITING or (name == "index" and any(_mask(index) for index in args[1])):
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


def _mask(index):
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


def _stays(args, kwargs):
    """Whether a conversion changes nothing."""
    wanted = (kwargs or {}).get("dtype")
    return wanted in (None, args[0].dtype) and not (kwargs or {}).get("device")
