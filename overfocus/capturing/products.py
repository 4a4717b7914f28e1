"""From scores to weights to values: recognises attention that a model spells out itself.

Three steps make softmax attention, whatever a model does between them: a product of two activations gives scores, a softmax
turns them into weights, and a product of weights and values uses them. The tracker follows scores and weights through every
function in between, so what it reports is the map as it was used: with heads mixed (CaiT), gated (ConViT) or subtracted.
A softmax of anything else (branch weights, selective kernels, context scores) is noted as gating.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from overfocus.capturing.functions import Operands, Permuted, function_name, ordered, product_operands, tensors_in
from overfocus.capturing.notes import TensorNotes

# What leaves every weight as it was, only elsewhere or in another type.
_KEEPING = frozenset(
    "view reshape permute transpose swapaxes movedim flatten unflatten squeeze unsqueeze expand contiguous clone to type type_as "
    "float half bfloat16 detach dropout T.__get__ mT.__get__ __getitem__ unbind chunk split cpu cuda".split()
)
_SHRINKING = frozenset("mean sum amax amin max min argmax argmin topk size dim norm std var all any isnan".split())


@dataclass(frozen=True, eq=False)
class Weighting:
    """A tensor on its way from scores to weights."""

    stage: Literal["scores", "weights"]
    from_product: bool
    """Whether the scores are a product of two activations."""
    module: str
    """The module that began with it; what leaves that module is neither scores nor weights any more."""
    changed: bool = False
    """Whether anything but a softmax has changed the weights, so that rows need not sum to 1."""
    product: Operands | None = None
    """The product that gave the scores."""
    undropped: Tensor | None = None
    """The weights before attention dropout, which scales in training."""
    softmaxes: frozenset[int] = frozenset()
    """Numbers of the softmaxes behind the weights, no gating once these turn out to be attention."""


@dataclass(frozen=True, eq=False)
class Use:
    """A product of weights and values, its tensors with the axes (…, queries, keys), (…, keys, width) and (…, queries, width)."""

    weights: Permuted
    values: Permuted
    output: Permuted
    weighting: Weighting


class ProductTracker:
    """Follows scores and weights through the functions of one forward."""

    def __init__(self) -> None:
        self.notes: TensorNotes[Weighting] = TensorNotes()
        self._softmaxes = 0
        self._modules: set[str] = set()

    def clear(self) -> None:
        """Forget the forward that was followed."""
        self.notes.clear()

    def left(self, module: str) -> None:
        """A module has run: what it leaves behind is no longer on its way from scores to weights."""
        if module in self._modules:
            self._modules.discard(module)
            self.notes.keep(lambda note: note.module != module)

    def softmax(self, scores: Tensor, weights: Tensor, module: str) -> int:
        """Note a softmax that ran in a module; returns its number."""
        before = self.notes.get(scores)
        from_product = before is not None and before.from_product
        self._softmaxes += 1
        self._modules.add(module)
        note = Weighting("weights", from_product, module, softmaxes=frozenset({self._softmaxes}))
        if before is not None:
            note = replace(note, product=before.product)
        self.notes[weights] = note
        return self._softmaxes

    def follow(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, module: str
    ) -> Use | None:
        """Note what `func` returned in a module; a `Use` where it multiplied weights with values."""
        name = function_name(func)
        operands = product_operands(name, args)
        if operands is not None and isinstance(result, Tensor):
            return self._multiplied(operands, result, module)
        if not len(self.notes) or name in _SHRINKING:
            return None
        tracked = [(tensor, note) for tensor in tensors_in((args, kwargs)) if (note := self.notes.get(tensor)) is not None]
        if not tracked:
            return None
        tensor, note = next((item for item in tracked if item[1].stage == "weights"), tracked[0])
        if len(tracked) > 1:
            notes = [other for _, other in tracked]
            note = replace(
                note,
                from_product=any(other.from_product for other in notes),
                softmaxes=frozenset().union(*(other.softmaxes for other in notes)),
            )
        if name == "dropout" and not any(
            output is tensor for output in tensors_in(result)
        ):  # in place it leaves nothing undropped
            note = replace(note, undropped=note.undropped if note.undropped is not None else tensor)
        elif name not in _KEEPING or name == "dropout":
            note = replace(note, changed=True, undropped=None)
        elif note.undropped is not None:
            note = replace(note, undropped=None, changed=True)
        for output in tensors_in(result):
            if output.is_floating_point() and output.ndim >= 2:
                self.notes[output] = note
        return None

    def _multiplied(self, operands: Operands, result: Tensor, module: str) -> Use | None:
        notes = [self.notes.get(tensor) for tensor in operands.tensors]
        use = None
        for side, note in enumerate(notes):
            if note is None:
                continue
            if note.stage == "weights":
                use = self._use(operands, side, note, result)
                if use is not None and note.from_product:
                    return use
            if use is None and _mixes_heads(operands, side):
                self.notes[result] = replace(note, changed=True, undropped=None)
                return None
        left, right = operands.tensors
        if not isinstance(left, torch.nn.Parameter) and not isinstance(right, torch.nn.Parameter) and result.ndim >= 3:
            self._modules.add(module)
            self.notes[result] = Weighting("scores", True, module, product=operands)
        return use

    def _use(self, operands: Operands, side: int, note: Weighting, result: Tensor) -> Use | None:
        weights, values = operands.tensors[side], operands.tensors[1 - side]
        weight_letters, value_letters = operands.letters[side], operands.letters[1 - side]
        keys = [letter for letter in weight_letters if letter in value_letters and letter not in operands.output]
        if len(keys) != 1:
            return None
        free = [letter for letter in weight_letters if letter not in value_letters]
        widths = [letter for letter in value_letters if letter not in weight_letters]
        if len(free) != 1 or len(widths) > 1:
            return None
        if note.undropped is not None and note.undropped.shape == weights.shape:
            weights = note.undropped
        shared = [letter for letter in weight_letters if letter not in (*keys, *free)]
        return Use(
            ordered(weights, weight_letters, [*shared, *free, *keys]),
            ordered(values, value_letters, [*(letter for letter in shared if letter in value_letters), *keys, *widths]),
            ordered(result, operands.output, [*shared, *free, *widths]),
            note,
        )


def _mixes_heads(operands: Operands, side: int) -> bool:
    """Whether a product with a matrix gives every query and key new heads, or a tensor's channels new channels."""
    return len(operands.letters[1 - side]) == 2 < len(operands.letters[side]) == len(operands.output)
