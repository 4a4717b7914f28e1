"""Which module of the model is running: a stack kept by forward hooks.

The hooks are torch's global ones, so that nothing hangs on the model itself; `nn.TransformerEncoderLayer` leaves its fast path as
soon as a module of its own has a hook. They look at one model and one thread only.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

Enter = Callable[[nn.Module, tuple[Any, ...]], None]
Leave = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


def in_backward() -> bool:
    """Whether autograd is running: an activation checkpoint then repeats a forward that has been seen."""
    return bool(torch._C._current_graph_task_id() != -1)


class ModuleStack:
    """The running modules of one model in one thread, innermost last."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {id(module): name for name, module in reversed(list(model.named_modules()))}
        self.names[id(model)] = ""
        self.running: list[nn.Module] = []
        self.called: set[str] = set()
        self._holders = {id(module) for module in model.modules() if next(module.parameters(), None) is not None}
        self._thread = threading.get_ident()
        self._handles: list[RemovableHandle] = []

    @property
    def site(self) -> str:
        """Name of the running module; of the one that holds it where it has no parameters of its own (a softmax, say)."""
        holder = next((module for module in reversed(self.running) if id(module) in self._holders), None)
        return self.names[id(holder if holder is not None else self.running[0])] if self.running else ""

    def watch(self, enter: Enter, leave: Leave) -> None:
        """Begin to follow the model; `enter` sees each module before it runs, `leave` after it ran without an error."""

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if self._ours(module):
                self.called.add(self.names[id(module)])
                enter(module, args)
                self.running.append(module)

        def after(module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
            if self._ours(module) and any(entry is module for entry in self.running):
                while self.running.pop() is not module:
                    pass  # modules inside that an error ended
                if len(rest) == 2:  # torch leaves the keyword arguments out where forward raised
                    leave(module, args, *rest)

        self._handles = [
            register_module_forward_pre_hook(before),
            register_module_forward_hook(after, with_kwargs=True, always_call=True),
        ]

    def unwatch(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
            _global_forward_hooks_with_kwargs.pop(handle.id, None)  # torch forgets this one
        self._handles.clear()
        self.running.clear()

    def _ours(self, module: nn.Module) -> bool:
        return id(module) in self.names and threading.get_ident() == self._thread and not in_backward()
