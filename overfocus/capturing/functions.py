"""What a torch function is called, which tensors it takes, and which axes a product sums."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor


def function_name(func: Callable[..., Any]) -> str:
    """The bare name of a torch function or property getter, e.g. "permute" or "mT.__get__"."""
    name: str = getattr(func, "__name__", "")
    return f"{getattr(func.__self__, '__name__', '')}.__get__" if name == "__get__" and hasattr(func, "__self__") else name


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a function's arguments or result, nested lists included, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


@dataclass(frozen=True, slots=True)
class Operands:
    """The two tensors of a product with a letter per axis, as in `torch.einsum`."""

    tensors: tuple[Tensor, Tensor]
    letters: tuple[str, str]
    output: str


PRODUCTS = frozenset({"matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "einsum"})


def product_operands(name: str, args: tuple[Any, ...]) -> Operands | None:
    """The operands of a matrix product in any of its spellings; None for everything else."""
    if name == "einsum" and isinstance(args[0], str):
        tensors = tuple(tensors_in(args[1:]))
        inputs, _, output = args[0].replace(" ", "").partition("->")
        letters = tuple(inputs.split(","))
        if len(tensors) != 2 or not output or "." in args[0]:
            return None
        return Operands((tensors[0], tensors[1]), (letters[0], letters[1]), output)
    if name not in PRODUCTS or name == "einsum":
        return None
    left, right = args[1:3] if name == "baddbmm" else args[:2]
    if name == "__rmatmul__":
        left, right = right, left
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)) or left.ndim < 2 or right.ndim < 2:
        return None
    axes = max(left.ndim, right.ndim) - 2
    batch = "ABCDEFGH"[:axes]
    return Operands((left, right), (batch[axes - left.ndim + 2 :] + "ik", batch[axes - right.ndim + 2 :] + "kj"), batch + "ij")


@dataclass(frozen=True, eq=False)
class Permuted:
    """A tensor as the model has it, and the order that puts its axes where they are wanted."""

    original: Tensor
    axes: tuple[int, ...]

    @property
    def tensor(self) -> Tensor:
        """The tensor with its axes in the wanted order."""
        return self.original if self.axes == tuple(range(len(self.axes))) else self.original.permute(self.axes)


def ordered(tensor: Tensor, letters: str, order: list[str]) -> Permuted:
    return Permuted(tensor, tuple(letters.index(letter) for letter in order))
