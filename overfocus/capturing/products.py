"""From scores to weights to values: recognises attention that a model spells out itself.

Three steps make softmax attention, whatever a model does between them: a product of two activations gives scores, a softmax
turns them into weights, and a product of weights and values uses them. The tracker follows scores and weights through every
function in between, so what it reports is the map as it was used: with heads mixed (CaiT), gated (ConViT) or subtracted.
A softmax of anything else (branch weights, selective kernels, context scores) is noted as gating.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from overfocus.capturing.sources import HIDDEN
from overfocus.capturing.watching import (
    PRODUCTS,
    Operands,
    Permuted,
    TensorNotes,
    argument,
    first_argument,
    ordered,
    product_operands,
    tensors_in,
)

# What leaves every weight as it was, only elsewhere or in another type.
_KEEPING = frozenset(
    "view reshape permute transpose swapaxes movedim flatten unflatten squeeze unsqueeze expand contiguous clone to type type_as "
    "float half bfloat16 double detach dropout T.__get__ mT.__get__ T mT t alias cpu cuda _to_copy".split()
)
# What cuts scores, puts them together or puts them elsewhere.
_REARRANGING = frozenset(
    "__getitem__ index slice narrow select index_select gather take_along_dim chunk split split_with_sizes tensor_split unbind "
    "cat stack hstack vstack pad roll flip repeat repeat_interleave tile expand_as view_as reshape_as swapdims moveaxis unfold "
    "diagonal scatter scatter_ index_put index_put_ as_strided topk".split()
)
_JOINING = frozenset("cat stack hstack vstack".split())
# What puts queries or keys elsewhere and keeps their number, so that the product no longer says where they are.
_TURNING = frozenset("roll flip fliplr flipud rot90".split())
_CHOOSING = frozenset("__getitem__ index index_select gather take_along_dim".split())
_LAYERS = frozenset("linear conv1d conv2d conv3d layer_norm batch_norm group_norm instance_norm rms_norm".split())
_SHRINKING = frozenset("mean sum amax amin max min argmax argmin size dim norm std var all any isnan".split())
_HIDING = frozenset(
    "masked_fill masked_fill_ where add add_ __add__ __iadd__ __radd__ sub sub_ __sub__ __isub__ mul mul_ masked_scatter "
    "masked_scatter_ index_fill index_fill_ index_put index_put_ minimum fmin".split()
)
STRETCHED = frozenset({"mul", "mul_", "sum", "mean", "vecdot", "cosine_similarity"})
"""Functions that spell products elementwise."""
NEIGHBOURHOOD = "queries come one by one, or each has keys of its own (its neighbourhood, say): there is no map of queries × keys"
_EXPONENTIALS = frozenset("exp exp_ exp2 exp2_ special_exp2 __rpow__".split())
_SQUASHING = {
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "relu": "ReLU",
    "relu_": "ReLU",
    "clamp": "ReLU",
    "square": "squared",
    "pow": "power",
    "softplus": "softplus",
    "tanh": "tanh",
    "gelu": "GELU",
    "silu": "SiLU",
    "normalize": "length",
}


@dataclass(frozen=True, eq=False)
class Weighting:
    """A tensor on its way from scores to weights."""

    stage: Literal["scores", "exponentials", "weights"]
    from_product: bool
    """Whether the scores are a product of two activations."""
    module: str
    """The module that began with it; what leaves that module is neither scores nor weights any more, unless it hands them on."""
    changed: bool = False
    """Whether anything but a softmax has changed the weights, so that rows need not sum to 1."""
    product: Operands | None = None
    """The product that gave the scores; None where several did, for parts of them."""
    undropped: Tensor | None = None
    """The weights before attention dropout, which scales in training."""
    softmaxes: frozenset[int] = frozenset()
    """Numbers of the softmaxes behind the weights, no gating once these turn out to be attention."""
    masked: bool = False
    """Whether scores were hidden before the softmax."""
    handed_on: bool = False
    """Whether a module has returned it to the one around it."""
    squashed: str | None = None
    """What scores went through instead of a softmax."""
    keys_moved: bool = False
    """Whether the last axis was rolled or turned since, so that values need not be where their keys are."""


@dataclass(frozen=True, eq=False)
class Use:
    """A product of weights and values, its tensors with the axes (…, queries, keys), (…, keys, width) and (…, queries, width)."""

    weights: Permuted
    values: Permuted
    output: Permuted
    weighting: Weighting


class ProductTracker:
    """Follows scores and weights through the functions of one forward.

    `squeezed` gives a view of a tensor without some axes along which it is the same, with everything that is known of it;
    `constants` are the parameters and buffers, whose products with activations are layers; modules in which something began are
    put into `awaited`: `left` has to hear of them.
    """

    def __init__(self, constants: frozenset[int], squeezed: Callable[[Tensor, Sequence[int]], Tensor], awaited: set[str]) -> None:
        self.notes: TensorNotes[Weighting] = TensorNotes()
        self.outer: TensorNotes[tuple[Tensor, Tensor]] = TensorNotes()
        """Elementwise products of two tensors that are stretched to each other's size."""
        self._chosen: TensorNotes[bool] = TensorNotes()
        """Masks and indices that scores themselves gave (the largest ones of each query, say): no padding."""
        self.other: dict[str, str] = {}
        """Modules in which scores met values without a softmax, and what they went through."""
        self._constants = constants
        self._squeezed = squeezed
        self.neighbourhoods: set[int] = set()
        """Softmaxes of queries that have keys of their own each."""
        self.of_products: set[int] = set()
        """Softmaxes over query-key products."""
        self._softmaxes = 0
        self._modules = awaited

    def clear(self) -> None:
        """Forget the forward that was followed."""
        self.notes.clear()
        self.outer.clear()
        self._chosen.clear()

    def left(self, module: str, parent: str, output: Any) -> None:
        """A module has run: what it leaves behind is no longer on its way from scores to weights, except what it returns."""
        if module in self._modules:
            self._modules.discard(module)
            returned = {id(tensor) for tensor in tensors_in(output)}

            def kept(tensor: Tensor, note: Weighting) -> Weighting | None:
                if note.module != module:
                    return note
                if id(tensor) not in returned or not note.from_product or tensor.ndim < 3 or module == parent:
                    return None
                self._modules.add(parent)
                return replace(note, module=parent, handed_on=True)

            self.notes.change(kept)

    def softmax(self, scores: Tensor, weights: Tensor, module: str, *, whole: bool = True) -> int:
        """Note a softmax (`whole`), or the exponentials of one, that ran in a module; returns its number."""
        before = self.notes.get(scores)
        from_product = before is not None and before.from_product
        self._softmaxes += 1
        self._modules.add(module)
        note = Weighting("weights" if whole else "exponentials", from_product, module, softmaxes=frozenset({self._softmaxes}))
        if before is not None:
            note = replace(note, product=before.product, masked=before.masked, changed=not whole)
        if from_product:
            self.of_products.add(self._softmaxes)
        self.notes[weights] = note
        return self._softmaxes

    def follow(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, module: str) -> Use | None:
        """Note what a function returned in a module; a `Use` where it multiplied weights with values."""
        operands = product_operands(name, args, kwargs) if name in PRODUCTS else None
        if operands is None and name in STRETCHED:
            operands = self._stretched(name, args, kwargs, result)
        if operands is not None and isinstance(result, Tensor) and (operands.summed(0) or operands.summed(1)):
            return self._multiplied(operands, result, module)
        if name in ("conv1d", "conv2d") and self._convolved(args, kwargs, result, module):
            return None
        if not self.notes.entries or (name in _SHRINKING and not _over_heads(args, kwargs, result)):
            return None
        if name == "__setitem__":
            self._written(args[0], args[2])
            return None
        tracked = [(tensor, note) for tensor in tensors_in((args, kwargs)) if (note := self.notes.get(tensor)) is not None]
        if not tracked:
            if self._chosen.entries and any(self._chosen.get(tensor) for tensor in tensors_in((args, kwargs))):
                for output in tensors_in(result):
                    self._chosen[output] = True
            return None
        for output in tensors_in(result):
            if not output.is_floating_point():
                self._chosen[output] = True
        tensor, note = next((item for item in tracked if item[1].stage != "scores"), tracked[0])
        exponent = name in _EXPONENTIALS or (name == "pow" and argument(args, kwargs, 1, "exponent") is tensor)
        if exponent and note.stage == "scores" and note.from_product:
            if isinstance(result, Tensor):
                self.softmax(tensor, result, module, whole=False)
            return None
        if note.stage == "scores" and not _stays_scores(name, tensor, result, handed_on=note.handed_on):
            return None
        if len(tracked) > 1:
            notes = [other for _, other in tracked if (other.stage == "scores") == (note.stage == "scores")]
            note = replace(
                note,
                from_product=any(other.from_product for other in notes),
                softmaxes=frozenset().union(*(other.softmaxes for other in notes)),
                masked=any(other.masked for other in notes),
            )
            if name in _JOINING:
                note = replace(note, product=None)
        if name in _TURNING or (name in _CHOOSING and any(map(_is_order, (*args[1:], *kwargs.values())))):
            keys = name in _TURNING and any(axis % tensor.ndim == tensor.ndim - 1 for axis in _turned_axes(name, args, kwargs))
            note = replace(note, product=None, keys_moved=note.keys_moved or keys)
        if note.stage == "scores" and name in _SQUASHING:
            note = replace(note, squashed=_SQUASHING[name])
        if name in _HIDING and not note.masked:
            note = replace(note, masked=self._hides(name, args, kwargs, tensor))
        if name == "dropout" and not _drops(args, kwargs):
            pass
        elif name == "dropout" and not any(
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

    def _written(self, target: Any, value: Any) -> None:
        """`target[…] = value`: scores or weights are put together, or some of them are hidden."""
        written, given = self.notes.get(target), self.notes.get(value)
        if given is None:
            if written is not None:
                self.notes[target] = replace(written, masked=True)
            return
        if written is not None:
            given = replace(
                given,
                softmaxes=given.softmaxes | written.softmaxes,
                masked=given.masked or written.masked,
                from_product=given.from_product or written.from_product,
            )
        whole = value.shape == target.shape
        self.notes[target] = given if whole else replace(given, product=None, undropped=None, changed=given.stage != "scores")

    def _convolved(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, module: str) -> bool:
        """Note scores that a convolution gave whose weights, one group for each image and head, are activations."""
        kernel = argument(args, kwargs, 1, "weight")
        groups = argument(args, kwargs, 6, "groups")
        if not groups or groups < 2 or id(kernel) in self._constants or isinstance(kernel, torch.nn.Parameter):
            return False
        self._modules.add(module)
        self.notes[result] = Weighting("scores", True, module)
        return True

    def _hides(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], scores: Tensor) -> bool:
        """Whether a function may hide a key from every query: it masks, adds a large negative number, or multiplies by zeros."""
        others = [item for item in tensors_in((args, kwargs)) if item is not scores]
        if any(self._chosen.get(item) or self.notes.get(item) is not None for item in others):
            return False  # the scores themselves say what is hidden
        if not any(word in name for word in ("add", "sub", "mul")):
            masks = [item for item in others if item.dtype == torch.bool and item.ndim >= 2 and item.device.type == "cpu"]
            return not masks or any(_whole_lines(mask) or ("where" in name and _whole_lines(~mask)) for mask in masks)
        other = next((item for item in (*args, *kwargs.values()) if item is not scores), None)
        if not isinstance(other, Tensor) or isinstance(other, torch.nn.Parameter) or other.requires_grad or other.numel() < 2:
            return False
        if "mul" in name and not other.is_floating_point():
            return True
        # on an accelerator the number would have to be waited for
        if other.device.type != "cpu":
            return "mul" not in name
        values = other.detach()
        if "mul" in name:
            return bool((values == 0).any())
        return bool((values.amin() if "add" in name else -values.amax()) <= HIDDEN)

    def _stretched(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Operands | None:
        """A product spelled (a[…, None, :] * b[…, None, :, :]).sum(axis)."""
        if not isinstance(result, Tensor):
            return None
        if name not in ("sum", "mean"):
            left, right = argument(args, kwargs, 0, "input", "self", "x"), argument(args, kwargs, 1, "other", "y")
            if not (
                isinstance(left, Tensor)
                and isinstance(right, Tensor)
                and left.ndim == right.ndim >= 3
                and (left.shape != right.shape or (0 in left.stride() and 0 in right.stride()))
                and left.is_floating_point()
                and right.is_floating_point()
            ):
                return None
            if name in ("mul", "mul_"):
                self.outer[result] = left, right
                return None
            pair = left, right
            shape = torch.Size(map(max, zip(left.shape, right.shape, strict=True)))
            axes = kwargs.get("dim", -1) if name == "vecdot" else argument(args, kwargs, 2, "dim")
            axes = 1 if axes is None else axes
        else:
            source, axes = first_argument(args, kwargs), argument(args, kwargs, 1, "dim", "axis")
            known = self.outer.get(source)
            if known is None:
                return None
            pair, shape = known, source.shape
            if argument(args, kwargs, 2, "keepdim") and any(self.notes.get(tensor) is not None for tensor in pair):
                return None
        axes = [axes] if isinstance(axes, int) else list(axes) if isinstance(axes, (tuple, list)) else []
        if len(axes) != 1:
            return None
        summed = axes[0] % len(shape)
        if any(tensor.shape[summed] != shape[summed] for tensor in pair):
            return None
        letters = "abcdefghijklmnopqrstuvwxyz"[: len(shape)]
        tensors, names = [], []
        for tensor in pair:
            stretched = [size == 1 or not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
            single = [axis for axis, size in enumerate(shape) if axis != summed and size > 1 and stretched[axis]]
            tensors.append(self._squeezed(tensor, single))
            names.append("".join(letter for axis, letter in enumerate(letters) if axis not in single))
        output = letters.replace(letters[summed], "")
        return Operands((tensors[0], tensors[1]), (names[0], names[1]), output)

    def _multiplied(self, operands: Operands, result: Tensor, module: str) -> Use | None:
        notes = [self.notes.get(tensor) for tensor in operands.tensors]
        if _maps(notes[0]) and _maps(notes[1]):  # attention followed through attention is the map that is used
            softmaxes = frozenset().union(*(note.softmaxes for note in notes if note is not None))
            masked = any(note is not None and note.masked for note in notes)
            assert notes[0] is not None
            self.notes[result] = replace(notes[0], changed=True, undropped=None, softmaxes=softmaxes, masked=masked)
            return None
        use, weighted = None, False
        for side, note in enumerate(notes):
            if note is None:
                continue
            if note.stage != "scores":
                use = self._use(operands, side, note, result)
                if use is not None and note.from_product:
                    return use
                weighted |= use is not None and not note.changed
            elif note.squashed is not None and self._use(operands, side, note, result) is not None:
                self.other[module] = f"no softmax: weights are scores after {note.squashed}"
            elif self._use(operands, side, note, result) is not None:
                self.other.setdefault(module, "no softmax: products of queries and keys, as in linear attention")
            if use is None and _mixes_heads(operands, side):
                if note.stage != "scores" or operands.output[-2:] == operands.letters[side][-2:] or result.ndim > 3:
                    self.notes[result] = replace(note, changed=True, undropped=None)
                return None
        if weighted:  # what a softmax has weighted is no score, whatever the softmax was over
            return use
        left, right = operands.tensors
        if id(left) in self._constants or id(right) in self._constants:
            return use
        if isinstance(left, torch.nn.Parameter) or isinstance(right, torch.nn.Parameter):
            return use
        if min(left.ndim, right.ndim) <= 2 < max(left.ndim, right.ndim):  # a matrix for all images: a layer, or random features
            return use
        if result.ndim >= 2 and all(len(operands.summed(side)) == 1 for side in (0, 1)):
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
        if not free and widths and note.from_product:
            self.neighbourhoods |= note.softmaxes
        if not free or (len(free) > 1 and len(value_letters) == 2):  # a matrix mixes heads
            return None
        if operands.scaled or not set(free) <= set(operands.output):  # summed over the queries
            return None
        if note.undropped is not None and note.undropped.shape == weights.shape:
            weights = note.undropped
        shared = [letter for letter in weight_letters if letter not in (*keys, *free)]
        last = ["".join(widths)] if widths else []
        return Use(
            ordered(weights, weight_letters, [*shared, "".join(free), *keys]),
            ordered(values, value_letters, [*(letter for letter in shared if letter in value_letters), *keys, *last]),
            ordered(result, operands.output, [*shared, "".join(free), *last]),
            note,
        )


def _is_order(value: Any) -> bool:
    """Whether an argument chooses entries one by one."""
    if isinstance(value, (tuple, list)):
        return any(isinstance(item, (Tensor, list)) for item in value)
    return isinstance(value, Tensor) and value.ndim > 0


def _turned_axes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[int]:
    """The axes along which a function of `_TURNING` moves entries."""
    if name in ("fliplr", "flipud"):
        return (int(name == "fliplr"),)
    if name == "flip" and len(args) > 2:  # x.flip(0, 1)
        return args[1:]
    axes = argument(args, kwargs, 1 if name == "flip" else 2, "dims")
    return (-1,) if axes is None else (axes,) if isinstance(axes, int) else axes


def _maps(note: Weighting | None) -> bool:
    """Whether a tensor is attention weights."""
    return note is not None and note.stage == "weights" and note.from_product


def _over_heads(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> bool:
    """Whether a reduction leaves the last two axes, queries and keys, as they are."""
    source, axes = first_argument(args, kwargs), argument(args, kwargs, 1, "dim", "axis")
    axes = [axes] if isinstance(axes, int) else axes
    if not isinstance(source, Tensor) or not isinstance(result, Tensor) or not isinstance(axes, (tuple, list)) or not axes:
        return False
    return all(isinstance(axis, int) and axis % source.ndim < source.ndim - 2 for axis in axes)


def _stays_scores(name: str, scores: Tensor, result: Any, *, handed_on: bool) -> bool:
    """Whether what a function returned for scores (…, queries, keys) still is scores.

    A layer on the last axis of three mixes channels, and so does one behind the module that made the product: what that gave
    were no scores but tokens, on their way to whatever follows. Functions that compute keep queries and keys where they are;
    heads may be mixed.
    """
    if name in _KEEPING or name in _REARRANGING or not isinstance(result, Tensor):
        return True
    if name in _LAYERS and (handed_on or scores.ndim < 4):
        return False
    return name == "linear" or result.shape[-2:] == scores.shape[-2:]


def _drops(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of dropout changes anything, in either spelling: (input, p, training, inplace) or (input, p, train)."""
    training = argument(args, kwargs, 2, "training", "train")
    return argument(args, kwargs, 1, "p") != 0 and training is not False


def _whole_lines(mask: Tensor) -> bool:
    """Whether a mask (…, queries, keys) holds all of some query or key."""
    return bool(mask.all(-1).any()) or bool(mask.all(-2).any())


def _mixes_heads(operands: Operands, side: int) -> bool:
    """Whether a product with a matrix gives every query and key new heads, or a tensor's channels new channels."""
    return len(operands.letters[1 - side]) == 2 < len(operands.letters[side]) == len(operands.output)
