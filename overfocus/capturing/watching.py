"""Watching a model run: a stack of its modules kept by hooks, and a mode that sees the torch functions they call.

The hooks are torch's global ones, so that nothing hangs on the model itself; `nn.TransformerEncoderLayer` leaves its fast path as
soon as a module of its own has a hook. They look at one model and one thread only.

Functions are caught as Python functions and operators (`TorchFunctionMode`), not at the dispatcher. Below autograd the outputs
of views come back as other tensors, so that nothing could be known of them by identity; weights have no gradients there; and a
dispatch mode sees several times as many calls. What the dispatcher alone sees is the inside of TorchScript, which is named.
"""

import threading
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils.hooks import RemovableHandle

Enter = Callable[[nn.Module, tuple[Any, ...]], None]
Leave = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
Observe = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], None]
Attend = Callable[[tuple[Any, ...], dict[str, Any]], torch.Tensor | None]


def in_backward() -> bool:
    """Whether autograd is running: an activation checkpoint then repeats a forward that has been seen."""
    return bool(torch._C._current_graph_task_id() != -1)


class ModuleStack:
    """The running modules of one model in one thread, innermost last."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        modules = list(model.named_modules())
        self.names = {id(module): name for name, module in reversed(modules)}
        self.names[id(model)] = ""
        self.running: list[nn.Module] = []
        self.called: set[str] = set()
        self.elsewhere: set[str] = set()
        """Modules that ran in another thread."""
        self._holders: dict[int, bool] = {}
        """Whether a module has parameters, its own or those of a module inside."""
        self._holds(model)
        self._site: str | None = None
        self._thread = threading.get_ident()
        self._handles: list[RemovableHandle] = []

    @property
    def site(self) -> str:
        """Name of the running module; of the one that holds it where it has no parameters of its own (a softmax, say)."""
        if self._site is None:
            holder = next((module for module in reversed(self.running) if self._holders.get(id(module))), None)
            self._site = self.names[id(holder if holder is not None else self.running[0])] if self.running else ""
        return self._site

    def watch(self, enter: Enter, leave: Leave) -> None:
        """Begin to follow the model; `enter` sees each module before it runs, `leave` after it ran without an error."""

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if self._ours(module):
                self.called.add(self.names[id(module)])
                enter(module, args)
                self.running.append(module)
                self._site = None

        def after(module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
            running = self.running and (self.running[-1] is module or any(entry is module for entry in self.running))
            if running and self._ours(module):
                while self.running.pop() is not module:
                    pass  # modules inside that an error ended
                self._site = None
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
        self._site = None

    def _holds(self, module: nn.Module) -> bool:
        if id(module) not in self._holders:
            inside = [self._holds(child) for child in module.children()]
            self._holders[id(module)] = any(inside) or any(own is not None for own in module._parameters.values())
        return self._holders[id(module)]

    def _ours(self, module: nn.Module) -> bool:
        if id(module) not in self.names or in_backward():
            return False
        if threading.get_ident() == self._thread:
            return True
        self.elsewhere.add(self.names[id(module)])
        return False


class CaptureMode(TorchFunctionMode):
    """Hands every torch function's arguments and result to an observer; the result is returned as it is.

    `attend` takes the place of fused attention, whose arguments it is given, wherever it returns a tensor.
    """

    def __init__(self, observe: Observe, attend: Attend | None = None) -> None:
        super().__init__()
        self._observe = observe
        self._attend = attend
        self._below: list[TorchFunctionMode] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._attend is not None and func is torch.nn.functional.scaled_dot_product_attention:
            attended = self._attend(args, kwargs)
            if attended is not None:
                return attended
        result = func(*args, **kwargs)
        self._observe(func, args, kwargs, result)
        return result

    def __enter__(self) -> Self:
        self._below = list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def active(self, wanted: bool) -> None:
        """Step aside, or come back, wherever in the stack of modes this one stands."""
        stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        others = [mode for mode in stack if mode is not self]
        if wanted == (len(others) < len(stack)):
            return
        if wanted:  # above the modes that were there first, below those that came later
            below = [place for place, mode in enumerate(others) if any(mode is earlier for earlier in self._below)]
            others.insert(max(below, default=-1) + 1, self)
        for _ in stack:
            _pop_mode()  # type: ignore[no-untyped-call]
        for mode in others:
            _push_mode(mode)  # type: ignore[no-untyped-call]
