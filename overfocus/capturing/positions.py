"""Which place of the image each entry of an intermediate tensor comes from.

A tensor of token positions travels beside every activation of one forward: reshapes, rolls, paddings and slices are
repeated on it, whatever computes along channels leaves it alone, and a convolution that changes the size starts a new
grid. At an attention site the positions of queries and values then say, without any knowledge of the architecture,
which axes are images, windows, heads, tokens and channels, and where on the image each window lies.

A position is `image · 2³² + index + 1`, with `index` in the row-major grid; 0 is padding and a negative number a token that
belongs to no place (class, distillation, register and pooling tokens).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overfocus.capturing.functions import Operands, function_name, product_operands, tensors_in
from overfocus.capturing.notes import TensorNotes

IMAGE = 1 << 32
NOWHERE = -1
_FAR = torch.iinfo(torch.int64).max

# Functions that move entries and compute nothing: they are repeated on the positions as they are.
_MOVES = frozenset(
    "view reshape permute transpose swapaxes swapdims movedim moveaxis flatten unflatten squeeze unsqueeze expand expand_as "
    "roll flip unbind chunk split tensor_split __getitem__ narrow select index_select gather take_along_dim t repeat tile "
    "repeat_interleave stack cat concat concatenate pad pixel_shuffle pixel_unshuffle contiguous clone unfold im2col "
    "view_as reshape_as T.__get__ mT.__get__ channel_shuffle rot90".split()
)
_REDUCTIONS = frozenset("mean sum amax amin max min".split())
_POOLS = frozenset("avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d".split())
_CHANNEL_MIXING = frozenset("linear conv1d conv2d conv3d".split())


@dataclass(eq=False, slots=True)
class Positions:
    """Positions of a tensor's entries, of the tensor's own shape (axes of one value are expanded, not stored)."""

    ids: Tensor
    grid: tuple[int, int] | None
    """(rows, columns) of the grid that the indices point into; None for sequences that are no image."""


def representative(ids: Tensor, axis: int) -> Tensor:
    """One position per entry along an axis that mixes them: the smallest place, else padding, else no place. Keeps the axis."""
    if ids.shape[axis] == 1:
        return ids
    if ids.stride(axis) == 0:
        return ids.narrow(axis, 0, 1)
    nearest = ids.masked_fill(ids <= 0, _FAR).amin(axis, keepdim=True)
    return torch.where(nearest == _FAR, ids.amin(axis, keepdim=True), nearest)


class PositionTracker:
    """Follows token positions through the functions of one forward."""

    def __init__(self) -> None:
        self.notes: TensorNotes[Positions] = TensorNotes()

    def start(self, tensor: Tensor) -> None:
        """Number the places of a network's input: pixels of images (b, c, h, w), or items of sequences (b, n[, c])."""
        if tensor.ndim == 4:
            images, _, rows, columns = tensor.shape
            self.notes[tensor] = Positions(_fresh(images, rows, columns, tensor).expand(tensor.shape), (rows, columns))
        elif tensor.ndim in (2, 3):
            ids = _fresh(tensor.shape[0], 1, tensor.shape[1], tensor).reshape(tensor.shape[:2])
            self.notes[tensor] = Positions(ids.reshape(ids.shape + (1,) * (tensor.ndim - 2)).expand(tensor.shape), None)

    def start_patches(self, patches: Tensor, coordinates: Tensor, valid: Tensor | None) -> None:
        """Number patches (b, n, …) that come with their (row, column), (b, n, 2), some of them padding (NaFlexViT)."""
        columns = int(coordinates[..., 1].max()) + 1
        index = coordinates[..., 0] * columns + coordinates[..., 1] + 1
        ids = index + torch.arange(len(index), device=index.device)[:, None] * IMAGE
        if valid is not None:
            ids = ids.masked_fill(~valid, 0)
        ids = ids.reshape(ids.shape + (1,) * (patches.ndim - 2)).expand(patches.shape)
        self.notes[patches] = Positions(ids, (int(coordinates[..., 0].max()) + 1, columns))

    def get(self, tensor: Any) -> Positions | None:
        """Positions of this tensor, if they are known."""
        return self.notes.get(tensor)

    def operand(self, operands: Operands, side: int) -> Positions | None:
        """Positions of an operand with its summed axis last, so that the axis before it holds tokens."""
        known = self.get(operands.tensors[side])
        letters = operands.letters[side]
        summed = [axis for axis, letter in enumerate(letters) if letter not in operands.output]
        if known is None or len(summed) != 1 or known.ids.ndim != len(letters):
            return None
        return Positions(known.ids.movedim(summed[0], -1), known.grid)

    def copy(self, source: Any, target: Any) -> None:
        """Give a tensor of the same shape the positions of another (for calls that cannot be looked into)."""
        known = self.get(source)
        if known is not None and isinstance(target, Tensor) and target.shape == known.ids.shape:
            self.notes[target] = known

    def follow(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note the positions of what `func` returned for these arguments."""
        tracked = [(tensor, known) for tensor in tensors_in((args, kwargs)) if (known := self.get(tensor)) is not None]
        if not tracked:
            return
        name = function_name(func)
        outputs = list(tensors_in(result))
        if name in _MOVES:
            moved = self._move(func, args, kwargs)
            if moved is not None and [ids.shape for ids in moved] == [output.shape for output in outputs]:
                grid = next((known.grid for _, known in tracked if len(tracked) == 1 or bool((known.ids > 0).any())), None)
                for output, ids in zip(outputs, moved, strict=True):
                    self.notes[output] = Positions(ids, grid)
                return
        for output in outputs:
            found = self._reduced(args, kwargs, output) if name in _REDUCTIONS else None
            found = found or self._product(name, args, output) or _computed(name, [known for _, known in tracked], output)
            if found is not None and self.get(output) is not found:
                self.notes[output] = found

    def _move(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | None:
        def swap(value: Any) -> Any:
            if isinstance(value, Tensor):
                known = self.get(value)
                if known is not None:
                    return known.ids
                return torch.full_like(value, NOWHERE, dtype=torch.int64) if value.is_floating_point() else value
            if isinstance(value, (tuple, list)):
                return type(value)(swap(item) for item in value)
            return value

        try:
            swapped = swap(args)
            if function_name(func) in ("im2col", "unfold") and swapped[0].ndim == 4:
                return [func(swapped[0].double(), *swapped[1:], **kwargs).long()]
            return list(tensors_in(func(*swapped, **{name: swap(value) for name, value in kwargs.items()})))
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return None

    def _reduced(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Positions | None:
        known = self.get(args[0])
        axes = args[1] if len(args) > 1 else kwargs.get("dim")
        if known is None or axes is None or isinstance(axes, Tensor):
            return None
        axes = sorted(axis % known.ids.ndim for axis in ([axes] if isinstance(axes, int) else axes))
        ids = known.ids
        for axis in axes:
            ids = representative(ids, axis)
        if all(_places(image) <= 1 for image in ids[: min(2, len(ids))]) and _places(known.ids[0]) > 1:
            ids = torch.full_like(ids, NOWHERE)  # the whole image in one token: a pooled query, no place
        for axis in reversed(axes):
            ids = ids.squeeze(axis) if ids.squeeze(axis).shape == output.shape or ids.ndim > output.ndim else ids
        return Positions(ids, known.grid) if ids.shape == output.shape else None

    def _product(self, name: str, args: tuple[Any, ...], output: Tensor) -> Positions | None:
        """Rows of a product a @ b keep the places of a's rows where a's row is one place, else columns those of b's."""
        operands = product_operands(name, args)
        if operands is None:
            return None
        for operand, letters in zip(operands.tensors, operands.letters, strict=True):
            known = self.get(operand)
            if known is None or known.ids.ndim != len(letters):
                continue
            ids, kept = known.ids, list(letters)
            summed = [axis for axis, letter in enumerate(letters) if letter not in operands.output]
            if not all(constant(ids, axis) for axis in summed):
                continue
            for axis in reversed(summed):
                ids = ids.select(axis, 0)
                kept.pop(axis)
            order = [letter for letter in operands.output if letter in kept]
            ids = ids.permute([kept.index(letter) for letter in order])
            for axis, letter in enumerate(operands.output):
                if letter not in kept:
                    ids = ids.unsqueeze(axis)
            return _expanded(ids, known.grid, output)
        return None

    def clear(self) -> None:
        """Forget the forward that was followed."""
        self.notes.clear()


def constant(ids: Tensor, axis: int) -> bool:
    """Whether every entry along an axis is the same place."""
    return ids.shape[axis] == 1 or ids.stride(axis) == 0 or bool((ids == ids.narrow(axis, 0, 1)).all())


def _places(ids: Tensor) -> int:
    return int(torch.unique(ids[ids > 0]).numel())


def _fresh(images: int, rows: int, columns: int, like: Tensor) -> Tensor:
    index = torch.arange(1, rows * columns + 1, device=like.device).reshape(1, 1, rows, columns)
    return index + torch.arange(images, device=like.device).reshape(-1, 1, 1, 1) * IMAGE


def _expanded(ids: Tensor, grid: tuple[int, int] | None, output: Tensor) -> Positions | None:
    try:
        return Positions(ids.expand(output.shape), grid)
    except RuntimeError:
        return None


def _computed(name: str, tracked: list[Positions], output: Tensor) -> Positions | None:
    """Positions after a function that computes: elementwise, along channels, or over a neighbourhood."""
    known = next((item for item in tracked if item.ids.shape == output.shape), tracked[0])
    ids, grid = known.ids, known.grid
    if name in _CHANNEL_MIXING:
        channel = ids.ndim - 1 if name == "linear" else 1
        ids = representative(ids, channel)
        if output.ndim == ids.ndim and all(output.shape[a] == ids.shape[a] for a in range(ids.ndim) if a != channel):
            return Positions(ids.expand(output.shape), grid)
    elif ids.shape == output.shape:
        return known
    elif name in _POOLS:
        return _pooled(ids, grid, output)
    elif output.ndim == ids.ndim:
        differing = [axis for axis in range(ids.ndim) if ids.shape[axis] != output.shape[axis]]
        if len(differing) == 1 and not (
            output.ndim == 4 and differing[0] >= 2 and name in ("interpolate", "max_pool2d", "avg_pool2d")
        ):
            return _expanded(representative(ids, differing[0]), grid, output)
        if all(ids.shape[axis] == 1 for axis in differing):
            return _expanded(ids, grid, output)
    if output.ndim == 4 and ids.ndim == 4 and output.shape[0] == ids.shape[0]:
        images = representative(ids.reshape(ids.shape[0], -1), 1).clamp(min=0) // IMAGE * IMAGE
        rows, columns = output.shape[2:]
        if len(torch.unique(images)) < len(images):  # an entry is a part of an image (TNT): its places stay those of that part
            return _expanded(_thinned(_thinned(representative(ids, 1), 2, rows), 3, columns), grid, output)
        fresh = _fresh(1, rows, columns, output) + images.reshape(-1, 1, 1, 1)
        return Positions(fresh.expand(output.shape), (rows, columns))
    if name == "fold" and ids.ndim == 3 and ids.shape[-1] == output.shape[-2:].numel():
        return _expanded(torch.unflatten(representative(ids, 1), -1, output.shape[-2:]), grid, output)
    if name == "embedding" and output.ndim == ids.ndim + 1:
        return _expanded(ids.unsqueeze(-1), grid, output)
    return None


def _pooled(ids: Tensor, grid: tuple[int, int] | None, output: Tensor) -> Positions | None:
    """Runs of tokens pooled along a sequence (b, channels, tokens): each stands where its first token stood."""
    return _expanded(_thinned(ids, -1, output.shape[-1]), grid, output)


def _thinned(ids: Tensor, axis: int, size: int) -> Tensor:
    """The first entry of each of `size` runs along an axis."""
    run = max(ids.shape[axis] // size, 1)
    starts = (torch.arange(size, device=ids.device) * run).clamp(max=ids.shape[axis] - 1)
    return ids.index_select(axis, starts)
