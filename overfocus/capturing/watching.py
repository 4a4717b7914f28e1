"""Watching a model run: a stack of its modules kept by hooks, and a mode that sees the torch functions they call.

The hooks are torch's global ones, so that the model itself carries none; `nn.TransformerEncoderLayer` leaves its fast path as
soon as a module of its own has a hook. They look at one model and one thread only.

Functions are caught as Python functions and operators (`TorchFunctionMode`), not at the dispatcher. Below autograd the outputs
of views come back as other tensors, so that nothing could be known of them by identity; weights have no gradients there; and a
dispatch mode sees several times as many calls. What the dispatcher alone sees is the inside of TorchScript, which is named.

Here too: what a function is called, which tensors it takes, which axes a product sums, and notes on tensors. Functions, methods
and operators (`torch.ops.aten`, as exported programs call them) of one meaning get one name.
"""

import string
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils.hooks import RemovableHandle

Enter = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
Leave = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
Observe = Callable[[Callable[..., Any], str, tuple[Any, ...], dict[str, Any], Any], None]
"""(function, its name, arguments, keyword arguments, result)"""
Attend = Callable[[tuple[Any, ...], dict[str, Any]], torch.Tensor | None]


def in_backward() -> bool:
    """Whether autograd is running: an activation checkpoint then repeats a forward that has been seen."""
    return bool(torch._C._current_graph_task_id() != -1)


class ModuleStack:
    """The running modules of one model in one thread, innermost last."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = list(model.named_modules())
        self.names = {id(module): name for name, module in reversed(self.modules)}
        self.names[id(model)] = ""
        self.running: list[nn.Module] = []
        self.enters = True
        """Whether modules inside the outermost are reported before they run."""
        self.leaves = True
        """Whether modules inside the outermost are reported after they ran, if nothing awaits them."""
        self.awaited: set[str] = set()
        """Modules that are reported after they ran in any case."""
        self.called: set[str] = set()
        self.elsewhere: set[str] = set()
        """Modules that ran in another thread."""
        self._holders = _holders(model)
        self._site: str | None = None
        self._thread = threading.get_ident()
        self._handles: list[RemovableHandle] = []

    @property
    def site(self) -> str:
        """Name of the running module; of the one that holds it where it has no parameters of its own (a softmax, say)."""
        if self._site is None:
            holder = next((module for module in reversed(self.running) if id(module) in self._holders), None)
            self._site = self.names[id(holder if holder is not None else self.running[0])] if self.running else ""
        return self._site

    def watch(self, enter: Enter, leave: Leave) -> None:
        """Begin to follow the model; `enter` sees each module before it runs, `leave` after it ran without an error."""
        running, names, awaited = self.running, self.names, self.awaited

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if self._ours(module):
                self.called.add(names[id(module)])
                if self.enters or not running:
                    enter(module, args, {} if running else _keyword_arguments(module))
                running.append(module)
                self._site = None

        def after(module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
            if self._ours(module) and any(entry is module for entry in running):
                while running.pop() is not module:
                    pass  # modules inside that an error ended
                self._site = None
                # torch leaves the keyword arguments out where forward raised
                if len(rest) == 2 and (self.leaves or not running or names[id(module)] in awaited):
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

    def _ours(self, module: nn.Module) -> bool:
        if id(module) not in self.names or torch._C._current_graph_task_id() != -1:  # as in_backward
            return False
        if threading.get_ident() == self._thread:
            return True
        self.elsewhere.add(self.names[id(module)])
        return False


def _keyword_arguments(module: nn.Module) -> dict[str, Any]:
    """The keyword arguments of the call in which a hook runs: torch gives global hooks before a forward none of them."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code is not nn.Module._call_impl.__code__:
        frame = frame.f_back
    found = frame.f_locals
    named = found.get("kwargs") if found.get("self") is module else None
    return named if isinstance(named, dict) else {}


def _holders(model: nn.Module) -> set[int]:
    """The modules (by identity) that have parameters, in themselves or in modules inside."""
    known: dict[int, bool] = {}

    def holds(module: nn.Module) -> bool:
        if id(module) not in known:
            known[id(module)] = any(parameter is not None for parameter in module._parameters.values())
            inside = [holds(child) for child in module._modules.values() if child is not None]
            known[id(module)] |= any(inside)
        return known[id(module)]

    holds(model)
    return {module for module, found in known.items() if found}


class CaptureMode(TorchFunctionMode):
    """Hands the arguments and results of torch functions to an observer; the results are returned as they are.

    These are the functions of certain names; all of them while there are `notes`, or `everything` is asked for. `attend` takes
    the place of fused attention, whose arguments it is given, wherever it returns a tensor.
    """

    def __init__(
        self,
        observe: Observe,
        attend: Attend | None,
        names: frozenset[str],
        notes: "TensorNotes[Any]",
        constants: frozenset[int],
    ) -> None:
        super().__init__()
        self.everything = False
        self._observe = observe
        self._attend = attend
        self._names = names
        self._notes = notes.entries
        self._constants = constants
        self._below: list[TorchFunctionMode] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._attend is not None and func is torch.nn.functional.scaled_dot_product_attention:
            attended = self._attend(args, kwargs or {})
            if attended is not None:
                return attended
        result = func(*args, **kwargs) if kwargs else func(*args)
        try:
            name = function_name(func)
        except TypeError:  # an object that cannot be hashed, of some other library
            name = ""
        wanted = self.everything or bool(self._notes)
        if not wanted and name in self._names:  # a layer is no product of two activations
            wanted = name != "linear" or len(args) < 2 or id(args[1]) not in self._constants
        if wanted:
            self._observe(func, name, args, kwargs or {}, result)
        return result

    def __enter__(self) -> Self:
        self._below = list(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def active(self, wanted: bool) -> None:
        """Step aside, or come back, wherever in the stack of modes this one is."""
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


SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
KERNEL_ARGUMENTS = {
    "_scaled_dot_product_attention_math": "query key value attn_mask dropout_p is_causal",
    "_scaled_dot_product_flash_attention": "query key value dropout_p is_causal",
    "_scaled_dot_product_flash_attention_for_cpu": "query key value dropout_p is_causal",
    "_scaled_dot_product_efficient_attention": "query key value attn_mask compute_log_sumexp dropout_p is_causal",
    "_scaled_dot_product_cudnn_attention": "query key value attn_mask compute_log_sumexp dropout_p is_causal",
}
"""Arguments of the operators behind fused attention, as programs that were exported and decomposed call them."""

_SAME = {
    "special_softmax": "softmax",
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "linalg_matmul": "matmul",
    "linalg_vecdot": "vecdot",
    "linalg_multi_dot": "chain_matmul",
    "mm": "matmul",
    "__matmul__": "matmul",
    "__mul__": "mul",
    "__rmul__": "mul",
    "multiply": "mul",
    "__imul__": "mul_",
    "_unsafe_view": "view",
    "constant_pad_nd": "pad",
    "concatenate": "cat",
    "concat": "cat",
}
_COPYING_VIEWS = "alias as_strided diagonal expand narrow permute select slice split squeeze t transpose unbind unsqueeze view"
_SAME |= {f"{name}_copy": name for name in _COPYING_VIEWS.split()}
_INPUTS = ("input", "self", "tensors", "mat1", "batch1")


@lru_cache(maxsize=4096)
def function_name(func: Callable[..., Any]) -> str:
    """The bare name of a torch function, operator or property getter, e.g. "permute" or "mT.__get__"."""
    if isinstance(func, OpOverload):
        name: str = func._opname
    else:
        name = getattr(func, "__name__", "")
        if name == "__get__" and hasattr(func, "__self__"):
            return f"{getattr(func.__self__, '__name__', '')}.__get__"
    return _SAME.get(name, name)


def argument(args: Sequence[Any], kwargs: dict[str, Any], place: int, *names: str) -> Any:
    """An argument by place or by one of its names; None where it was not given."""
    if len(args) > place:
        return args[place]
    return next((kwargs[name] for name in names if name in kwargs), None)


def first_argument(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What a function works on, given by place or by name."""
    return argument(args, kwargs, 0, *_INPUTS)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a function's arguments or result, nested lists included, in order."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            if isinstance(item, Tensor):
                found.append(item)
            elif isinstance(item, (tuple, list, dict)):
                found += tensors_in(item)
    return found


Note = TypeVar("Note")


class TensorNotes(Generic[Note]):
    """Notes on tensors by identity; a note goes when its tensor does."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[weakref.ref[Tensor], Note]] = {}
        """By the tensor's identity."""

    def __setitem__(self, tensor: Tensor, note: Note) -> None:
        entries, key = self.entries, id(tensor)
        entries[key] = (weakref.ref(tensor, lambda _: entries.pop(key, None)), note)

    def get(self, tensor: Any) -> Note | None:
        """The note on this very tensor, or None."""
        entry = self.entries.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def change(self, wanted: Callable[[Tensor, Note], Note | None]) -> None:
        """Replace every note by what `wanted` makes of it; None forgets it."""
        for key, (reference, note) in list(self.entries.items()):
            tensor = reference()
            changed = None if tensor is None else wanted(tensor, note)
            if changed is None:
                del self.entries[key]
            elif changed is not note:
                self.entries[key] = (reference, changed)

    def forget(self, tensor: Any) -> None:
        """Forget the note on a tensor, if there is one."""
        if self.get(tensor) is not None:
            del self.entries[id(tensor)]

    def __len__(self) -> int:
        return len(self.entries)

    def clear(self) -> None:
        """Forget every note."""
        self.entries.clear()


@dataclass(frozen=True, slots=True)
class Operands:
    """The two tensors of a product with a letter per axis, as in `torch.einsum`."""

    tensors: tuple[Tensor, Tensor]
    letters: tuple[str, str]
    output: str
    scaled: bool = False
    """Whether more tensors than these two are multiplied."""

    def summed(self, side: int) -> list[str]:
        """Letters of the axes of one tensor that the product sums."""
        return [letter for letter in self.letters[side] if letter not in self.output]


PRODUCTS = frozenset("matmul __rmatmul__ bmm baddbmm addmm inner einsum linear tensordot chain_matmul cdist".split())


def product_operands(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operands | None:
    """The operands of a matrix product in any of its spellings; None for everything else."""
    if name not in PRODUCTS:
        return None
    if name == "einsum":
        return _einsum_operands(args, kwargs)
    if name == "chain_matmul":
        args, kwargs = tuple(tensors_in((args, kwargs))), {}
        if len(args) != 2:
            return None
    first = 1 if name in ("baddbmm", "addmm") else 0  # behind what they add
    left = argument(args, kwargs, first, *(("batch1", "mat1") if first else ("input", "self", "a", "mat1", "x1")))
    right = argument(args, kwargs, first + 1, "other", "mat2", "batch2", "weight", "b", "tensor2", "x2")
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left.ndim < 2 or right.ndim < 2:
        return None
    if name == "tensordot":
        return _tensordot_operands(left, right, argument(args, kwargs, 2, "dims"))
    if name in ("linear", "inner"):  # of two matrices; with more axes the second one is a layer's weight, maybe a computed one
        return Operands((left, right), ("ik", "jk"), "ij") if left.ndim == right.ndim == 2 else None
    if name == "__rmatmul__":
        left, right = right, left
    axes = max(left.ndim, right.ndim) - 2
    batch = string.ascii_uppercase[:axes]
    last = "jk" if name == "cdist" else "kj"
    return Operands((left, right), (batch[axes - left.ndim + 2 :] + "ik", batch[axes - right.ndim + 2 :] + last), batch + "ij")


def einsum_letters(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Tensor, ...], list[str], str] | None:
    """The tensors of a call of `einsum`, a letter for each of their axes, and the letters of the result; None if unclear."""
    equation = argument(args, kwargs, 0, "equation")
    if isinstance(equation, Tensor):  # torch.einsum(a, [0, 1], b, [1, 2], [0, 2])
        parts = [*args[1::2], args[-1]] if len(args) % 2 else []
        if not parts or not all(isinstance(part, (list, tuple)) and all(map(_is_number, part)) for part in parts):
            return None
        names = ["".join(string.ascii_letters[number] for number in part) for part in parts]
        return tuple(args[:-1:2]), names[:-1], names[-1]
    if not isinstance(equation, str):
        return None
    tensors = tuple(tensors_in((args[1:], kwargs.get("operands", ()))))
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    if len(letters) != len(tensors):
        return None
    if not arrow:  # torch's implicit output: every letter that stands once, in order
        found = inputs.replace(",", "").replace("...", "")
        output = ("..." if "..." in inputs else "") + "".join(sorted(letter for letter in set(found) if found.count(letter) == 1))
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    longest = 0
    for place, tensor in enumerate(tensors):
        if "..." in letters[place]:
            longest = max(longest, tensor.ndim - len(letters[place]) + 3)
    rest = "".join(spare[:longest])
    for place, tensor in enumerate(tensors):
        if "..." in letters[place]:
            count = tensor.ndim - len(letters[place]) + 3
            letters[place] = letters[place].replace("...", rest[longest - count :])
    if any(len(set(part)) != len(part) for part in letters):  # a diagonal
        return None
    return tensors, letters, output.replace("...", rest)


def _einsum_operands(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Operands | None:
    found = einsum_letters(args, kwargs)
    if found is None or len(found[0]) < 2:
        return None
    tensors, letters, output = found
    pair = [place for place in range(len(tensors)) if not set(letters[place]) <= set(output)] if len(tensors) > 2 else [0, 1]
    pair = sorted(sorted(pair, key=lambda place: -len(letters[place]))[:2])  # the others scale or turn these two
    if not output or len(pair) < 2:
        return None
    left, right = pair
    return Operands((tensors[left], tensors[right]), (letters[left], letters[right]), output, len(tensors) > 2)


def _is_number(value: Any) -> bool:
    return isinstance(value, int)


def _tensordot_operands(left: Tensor, right: Tensor, dims: Any) -> Operands | None:
    if isinstance(dims, int):
        pairs = (list(range(left.ndim - dims, left.ndim)), list(range(dims)))
    elif isinstance(dims, (list, tuple)) and len(dims) == 2:
        pairs = tuple([side] if isinstance(side, int) else list(side) for side in dims)  # type: ignore[assignment]
    else:
        return None
    of_left = list(string.ascii_lowercase[: left.ndim])
    of_right = list(string.ascii_uppercase[: right.ndim])
    for one, other in zip(*pairs, strict=True):
        of_right[other % right.ndim] = of_left[one % left.ndim]
    shared = {of_left[one % left.ndim] for one in pairs[0]}
    output = "".join(letter for letter in (*of_left, *of_right) if letter not in shared)
    return Operands((left, right), ("".join(of_left), "".join(of_right)), output)


@dataclass(frozen=True, eq=False)
class Permuted:
    """A tensor as the model has it, and the order that puts its axes where they are wanted; an axis may be several in one."""

    original: Tensor
    axes: tuple[tuple[int, ...], ...]

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of the original in their new order."""
        return tuple(axis for group in self.axes for axis in group)

    @property
    def simple(self) -> bool:
        """Whether each axis is one of the original's."""
        return all(len(group) == 1 for group in self.axes)

    @property
    def tensor(self) -> Tensor:
        """The tensor with its axes in the wanted order."""
        return self.like(self.original)

    def like(self, other: Tensor) -> Tensor:
        """Another tensor with as many axes, put into the same order."""
        order = self.order
        moved = other if order == tuple(range(len(order))) else other.permute(order)
        if self.simple:
            return moved
        return moved.reshape([_product(other.shape[axis] for axis in group) for group in self.axes])


def _product(sizes: Iterator[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


def ordered(tensor: Tensor, letters: str, order: Sequence[str]) -> Permuted:
    """A tensor with its axes in this order; an item of several letters is several axes in one."""
    return Permuted(tensor, tuple(tuple(letters.index(letter) for letter in group) for group in order))
