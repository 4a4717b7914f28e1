"""The layouts of a model's maps: worked out in the first forward with inputs of a size, looked up in every later one.

A later forward is checked cheaply: the model's own settings, and the buffers that may hold an order, must be those of the forward
that was traced, and the functions that move tokens (rolls, flips, permutations, slices) the same with the same arguments. Where
they are not, a map stays unlabelled and the next forward is traced anew; where the order of tokens follows the input's values,
every forward is traced. Where the first forward moved tensors that do not come from the input, the second is traced as well:
models fill caches then (masks, embeddings of positions).
"""

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from overfocus.capturing.layout import (
    Layout,
    UnclearAxesError,
    UnplacedTokensError,
    channel_layout,
    infer_layout,
    is_channel_map,
    unlabelled,
    unplaced,
)
from overfocus.capturing.positions import PositionTracker
from overfocus.capturing.sources import MaterialisedWeights, WeightSource, tensor_version
from overfocus.capturing.watching import argument, tensors_in

TokenPositions = tuple[Tensor | None, Tensor | None]
"""Positions of queries and of keys or values, (…, tokens, width)."""

_PACKED = ("packed",)
_ORDERING = frozenset(
    "roll flip fliplr flipud rot90 permute transpose swapaxes swapdims movedim moveaxis select unbind channel_shuffle adjoint "
    "transpose_ swapaxes_ swapdims_ t t_ T.__get__ mT.__get__ H.__get__ mH.__get__ pad fft_fftshift fft_ifftshift unfold "
    "im2col".split()
)
_SLICES = frozenset("__getitem__ index slice narrow __setitem__ slice_scatter select_scatter diagonal_scatter".split())
_JOINING = frozenset("cat stack hstack column_stack".split())
_SHAPING = frozenset("view reshape unflatten".split())
COUNTED_MOVES = _ORDERING | _SLICES | _JOINING | _SHAPING | {"einsum"}
"""Functions that move tokens, whose arguments must be those of the forward that was traced."""
_PLAIN = (int, float, str, bool, type(None))
_HEADS = ("num_heads", "num_attention_heads", "heads", "n_heads", "n_head", "nhead")


@dataclass
class _Page:
    """The layouts of one forward with inputs of a size."""

    configuration: int
    """The model's settings in that forward."""
    layouts: dict[tuple[str, int], tuple[Layout, int]] = field(default_factory=dict)
    """By module and how often it had run: the layout, and the moves up to there."""
    judged: dict[tuple[str, int], tuple[bool, bool]] = field(default_factory=dict)
    """By the same, what was said of the rows of its weights."""
    traced: int = 0
    """Forwards that have been traced one after the other."""
    follows_data: bool = False
    strangers: bool = False
    mismatches: int = 0


@dataclass
class _Book:
    """What is remembered of a model."""

    pages: dict[tuple[Any, ...], _Page] = field(default_factory=dict)
    """By the shapes of the inputs."""
    changing: set[tuple[int, str]] = field(default_factory=set)
    """Settings (number of the module, name) that a forward itself changes: they say nothing."""


_BOOKS: weakref.WeakKeyDictionary[nn.Module, _Book] = weakref.WeakKeyDictionary()


_TRACED = 2


class LayoutMemory:
    """Layouts of one model, by the shapes of its inputs, the module and how often it has run in this forward."""

    def __init__(self, model: nn.Module, modules: Sequence[nn.Module], constants: frozenset[int]) -> None:
        self.positions = PositionTracker(constants)
        self.tracing = False
        """Whether positions are followed in this forward, because its layouts are not known yet."""
        self.started = False
        """Whether an input has been seen in this forward."""
        self.images = 1
        self._model = model
        self._book = _BOOKS.setdefault(model, _Book())
        self._page = _Page(0)
        self._signature: tuple[Any, ...] = ()
        self._calls: Counter[str] = Counter()
        self._found: dict[tuple[Any, ...], Layout] = {}
        """Layouts of this forward by the positions that gave them: most layers have the same."""
        self._same: dict[tuple[Any, ...], tuple[Layout, Tensor | None, Tensor]] = {}
        """The same by the identity of these positions, which are held."""
        self._moves = 0
        self._cached = False
        """Whether tensors were moved that do not come from the input: a cache, maybe, that later forwards find filled."""
        self._whole = False
        """Whether the last module that was called from outside has come back."""
        self._structure = hash(tuple(type(module).__qualname__ for module in modules))
        changing = self._book.changing
        self._settings = [
            (number, vars(module), [name for name in _plain_settings(module) if (number, name) not in changing])
            for number, module in enumerate(modules)
        ] + [(number, module._buffers, names) for number, module in enumerate(modules) if (names := _orders(module._buffers))]
        self._before: list[Any] = []
        # torch's own sequence modules take (tokens, batch, channels) unless set otherwise
        self._sequences = not any(isinstance(module, nn.MultiheadAttention) and not module.batch_first for module in modules)

    def judge(
        self,
        name: str,
        weights: MaterialisedWeights,
        judgement: Callable[[MaterialisedWeights], tuple[bool, bool]],
        *,
        changed: bool,
    ) -> tuple[bool, bool]:
        """What a judgement says of the weights that module `name` has just made, `changed` or not since their softmax.

        Weights as a softmax left them are judged in the forward that is traced only: it may have run along another axis. On an
        accelerator the answer would have to be waited for: there, what was said in that forward stays for changed ones too.
        """
        key = name, self._calls[name]
        again = changed and weights.weights.device.type == "cpu"
        if self.tracing or again or key not in self._page.judged:
            self._page.judged[key] = judgement(weights)
        return self._page.judged[key]

    def begin(self) -> None:
        """A new forward begins."""
        self.finish()
        self.positions.clear()
        self._calls.clear()
        self._found.clear()
        self._same.clear()
        self._moves = 0
        self._cached = False
        self.started = False

    def enter(self) -> None:
        """A module is called from outside: what is traced is whole once it has come back."""
        self._whole = False

    @property
    def strangers(self) -> bool:
        """Whether forwards like this one use tensors that are made where capture does not see it."""
        return self._page.strangers

    def leave(self, output: Any) -> None:
        """That module has come back with this."""
        self._whole = True
        if not self.tracing:
            return
        self._page.strangers |= self.positions.met_strangers(output)
        self._page.follows_data |= self.positions.follows_data
        changed = [place for place, (now, before) in enumerate(zip(self._values(), self._before, strict=True)) if now != before]
        if changed:
            names = [(number, name) for number, _, names in self._settings for name in names]
            # a forward that sets an order of tokens has another one next time
            self._page.follows_data |= any(isinstance(self._before[place], _Contents) for place in changed)
            self._book.changing |= {names[place] for place in changed if not isinstance(self._before[place], _Contents)}
            self._settings = [
                (number, values, [name for name in names if (number, name) not in self._book.changing])
                for number, values, names in self._settings
            ]
            self._before = self._values()
            self._page.configuration = self._hashed(self._before)

    def finish(self) -> None:
        """No more of the forward comes."""
        if self.tracing and self._whole:
            self._page.traced += 1 if self._cached else _TRACED
        self.tracing = False

    def start(self, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """See the first inputs of a forward, given to module `name`: images, videos, sequences, or packed patches.

        Of those given by name, images and videos are; tokens and masks begin where a module inside takes them.
        """
        args = (*args, *(value for key, value in named.items() if "mask" not in key and _holds_images(value)))
        packed = next((item for item in args if isinstance(item, dict) and "patch_coord" in item), None)
        listed = next((images for item in args if (images := _listed_images(item))), None)
        tensors = [tensor for tensor in tensors_in(args) if tensor.ndim >= 2 and not tensor.is_nested]
        if not tensors:
            return
        self.started = True
        self.images = len(listed) if listed else int(tensors[0].shape[0])
        if packed is not None or listed:  # every batch has sizes and padding of its own, so its layouts are not kept
            self._signature, self.tracing = _PACKED, True
        else:
            self._signature = (name, self.images == 1, *(tuple(tensor.shape[1:]) for tensor in tensors))
        self._before = self._values()
        configuration = self._hashed(self._before)
        page = self._book.pages.get(self._signature)
        if page is None or page.configuration != configuration or listed or packed:
            page = self._book.pages[self._signature] = _Page(configuration)
        self._page = page
        self.tracing = page.traced < _TRACED or page.follows_data
        if self.tracing:
            if packed is not None:
                self.positions.start_patches(packed["patches"], packed["patch_coord"], packed.get("patch_valid"))
            elif listed:
                self.positions.start_list(listed)
            else:
                whole = name == ""
                for tensor in tensors:
                    if whole or tensor.ndim != 4 or tensor.shape[1] in (1, 3, 4):
                        self.positions.start(tensor, sequences=self._sequences)

    def start_later(self, args: tuple[Any, ...]) -> None:
        """See the inputs of a module inside: token numbers that were given by name begin here."""
        for tensor in args:
            if (
                isinstance(tensor, Tensor)
                and tensor.ndim == 2
                and tensor.dtype in (torch.int64, torch.int32)
                and (tensor.shape[0] > 1 or self.images == 1)
                and self.positions.get(tensor) is None
            ):
                self.positions.start(tensor)

    def moved(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """One of the `COUNTED_MOVES` has run. What is counted must not follow the number of images."""
        if self.tracing and not self._cached:
            self._cached = all(self.positions.get(tensor) is None for tensor in tensors_in(args or tuple(kwargs.values())))
        if name in _JOINING:  # which goes first, by its shape and its place in memory that they share
            if name in ("cat", "stack") and not argument(args, kwargs, 1, "dim", "axis"):
                return  # images, which may be one by one
            joined = [tensor for tensor in tensors_in(args[:1] or tuple(kwargs.values())) if tensor.is_floating_point()]
            first = sorted(range(len(joined)), key=lambda place: joined[place].storage_offset())
            if joined:
                self._moves = hash((self._moves, name, *first, *(tensor.shape[1:] for tensor in joined)))
        elif name in _SHAPING:
            if args and args[0].is_floating_point() and args[0].shape[:1] == result.shape[:1] == (self.images,):
                self._moves = hash((self._moves, result.shape[1:]))
        elif name == "einsum":
            self._moves = hash((self._moves, _fixed(args)))
        elif name in _ORDERING:
            self._moves = hash((self._moves, name, _fixed(args[1:]), _fixed(tuple(kwargs.values()))))
        else:
            self._moves = hash((self._moves, _slices(args[1:])))

    def find(
        self,
        name: str,
        weights: WeightSource,
        positions: TokenPositions | None,
        *,
        running: list[nn.Module],
        images: int | None = None,
        crossed: bool = False,
    ) -> Layout:
        """Layout of the weights (…, queries, keys) that module `name` has just made.

        `positions` are those of its queries and of its keys or values, in a forward that is traced; `images` how many it has and
        `crossed` whether its keys are other tokens than its queries, where the call itself says so.
        """
        shape = weights.shape
        key = name, self._calls[name]
        self._calls[name] += 1
        if not self.tracing and self.started:
            layout, moves = self._page.layouts.get(key, (None, 0))
            if layout is None or layout.tokens != shape[-2:] or moves != self._moves:
                self._page.mismatches += self._page.traced > 0
                self._page.traced = 0
                self._page.follows_data |= self._page.mismatches > 1
                return unlabelled(shape, "the model ran differently from the forward that was traced")
            return layout
        heads = next((number for label in _HEADS if (number := _number(running, self._model, label)) is not None), None)
        prefix = _number(running, self._model, "num_prefix_tokens")
        try:
            layout = self._inferred(weights, positions, prefix)
        except UnplacedTokensError:
            places = [ids is not None and bool((ids > 0).any()) for ids in positions or ()]
            layout = unplaced(shape, images or self.images, heads, prefix, crossed=crossed or len(set(places)) == 2)
        except UnclearAxesError as error:
            layout = unlabelled(shape, str(error))
        self._page.layouts[key] = layout, self._moves
        return layout

    def _inferred(self, weights: WeightSource, positions: TokenPositions | None, prefix: int | None) -> Layout:
        queries, keys = positions or (None, None)
        shape = weights.shape
        if keys is None:
            raise UnplacedTokensError
        same = self._same.get((shape, prefix, id(queries), id(keys)))
        if same is not None:
            return same[0]
        if is_channel_map(keys):
            return channel_layout(shape)
        key_ids = self._of_tokens(keys)
        if len(shape) > 2 and key_ids.ndim == len(shape) - 1 and key_ids.shape[-2] not in (1, shape[-3]):
            key_ids = key_ids.repeat_interleave(shape[-3] // key_ids.shape[-2], dim=-2)  # grouped queries share keys
        query_ids = None if queries is None else self._of_tokens(queries)
        places = [None if ids is None else (ids.shape, ids.cpu().numpy().tobytes()) for ids in (query_ids, key_ids)]
        key = (shape, prefix, *places)
        if key in self._found:
            self._same[shape, prefix, id(queries), id(keys)] = self._found[key], queries, keys
            return self._found[key]
        try:
            key_ids = key_ids.expand(*shape[:-2], shape[-1])
            query_ids = None if query_ids is None else query_ids.expand(*shape[:-2], shape[-2])
        except RuntimeError:
            raise UnclearAxesError("the places of its tokens do not fit its axes") from None
        padding = key_ids == 0
        attended = bool(padding.any()) and bool((weights.rows(0, 1).squeeze(-2)[padding] > 0).any())
        tracker = self.positions
        layout = infer_layout(
            shape,
            query_ids,
            key_ids,
            tracker.grids,
            tracker.origins,
            padding_attended=attended,
            prefix=prefix,
            images=self.images,
            apart=tracker.apart,
        )
        if not bool(padding.any()):  # whether padding is attended is each map's own
            self._found[key] = layout
            self._same[shape, prefix, id(queries), id(keys)] = layout, queries, keys
        return layout

    def _of_tokens(self, ids: Tensor) -> Tensor:
        """Positions (…, tokens) of (…, tokens, width); tokens of several places each have a grid of their own."""
        return self.positions.of_images(self.positions.merged(ids, (-1,)).squeeze(-1))

    def _values(self) -> list[Any]:
        """The settings of the model's modules as they are now."""
        return [
            value if _is_plain(value := values.get(name)) else _Contents.of(value) or type(value)
            for _, values, names in self._settings
            for name in names
        ]

    def _hashed(self, values: list[Any]) -> int:
        return hash((self._structure, *values))


def _plain_settings(module: nn.Module) -> list[str]:
    """Names of settings of a module that may decide how its tokens are moved."""
    return [name for name, value in vars(module).items() if name[0] != "_" and _is_plain(value)]


class _Contents(NamedTuple):
    """What a buffer holds, as far as its memory and the number of times that it was written to tell."""

    memory: int
    version: int

    @classmethod
    def of(cls, value: Any) -> "_Contents | None":
        return cls(value.data_ptr(), tensor_version(value)) if _is_order(value) else None


def _orders(buffers: dict[str, Tensor | None]) -> list[str]:
    """Names of buffers of whole numbers, which may be an order of tokens."""
    return [name for name, value in buffers.items() if _is_order(value)]


def _is_order(value: Any) -> bool:
    return type(value) is Tensor and value.numel() > 1 and not value.is_floating_point() and value.layout == torch.strided


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _fixed(value: Any) -> Any:
    """An argument without its tensors, to be hashed."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_fixed, value))
    if isinstance(value, _PLAIN):
        return value
    return "Tensor" if isinstance(value, Tensor) else type(value).__name__


def _slices(value: Any) -> Any:
    """Where slices begin and which steps they take; their ends may follow the size of the batch."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_slices, value))
    if isinstance(value, slice):
        return _fixed((value.start, value.step))
    return _fixed(value)


def _listed_images(value: Any) -> list[Tensor]:
    """Images (c, h, w) of a list, which may each have a size of their own."""
    if not isinstance(value, (list, tuple)):
        return []
    items = tensors_in(value)
    return items if items and all(item.ndim == 3 and item.shape[0] in (1, 3, 4) for item in items) else []


def _holds_images(value: Any) -> bool:
    """Whether an argument is images or videos with colours, a list of images, or packed patches."""
    if isinstance(value, Tensor):
        channels = {4: (1, 3), 5: (1, 2)}.get(value.ndim, ())
        return value.is_floating_point() and any(value.shape[axis] in (1, 3, 4) for axis in channels)
    return bool(_listed_images(value)) or (isinstance(value, dict) and "patch_coord" in value)


def _number(running: list[nn.Module], model: nn.Module, attribute: str) -> int | None:
    for module in (*reversed(running), model):
        value: Tensor | nn.Module | int | None = getattr(module, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
