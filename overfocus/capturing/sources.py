"""Where the attention weights of a site come from, and how their axes are arranged.

The weights of `torch.nn.MultiheadAttention` are computed beside it from its arguments: in evaluation torch takes fused kernels
that no function mode sees, and leaves them as soon as one is active; so the mode steps aside while these modules run. Shapes
follow `torch.nn.functional.multi_head_attention_forward`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfocus.errors import CaptureError


class SameTensor:
    """A tensor as a key: equal to itself only. It is held, so that no other one takes its place in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameTensor) and other.tensor is self.tensor

    def __hash__(self) -> int:
        return id(self.tensor)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """An index of a layout on a device; sent there once, since layouts last and each transfer would be waited for."""
    return tensor if tensor.device == device else _sent(SameTensor(tensor), device)


@lru_cache(maxsize=256)
def _sent(tensor: SameTensor, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used outside of it
        return tensor.tensor.to(device)


class WeightSource(Protocol):
    """Attention weights with the model's own axes: (…, queries, keys)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole map."""
        ...

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the weights are computed from."""
        ...

    def rows(self, start: int, stop: int, images: slice | None = None) -> Tensor:
        """Weights of some queries, and of some entries of the first axis, in float32."""
        ...

    def detached(self) -> "WeightSource":
        """The same weights without gradients."""
        ...


@dataclass(eq=False)
class QueryKeyWeights:
    """softmax(query · keyᵀ · scale + mask), as `torch.nn.functional.scaled_dot_product_attention` uses it."""

    query: Tensor
    """(…, heads, queries, width)"""
    key: Tensor
    """(…, heads or a divisor of heads, keys, width)"""
    mask: Tensor | None = None
    """Broadcastable to (…, queries, keys): added where it is float, −∞ where it is False."""
    scale: float | None = None
    """Factor of the product; 1/√width where None."""
    is_causal: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(…, heads, queries, keys)."""
        return (*self.query.shape[:-1], self.key.shape[-2])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Queries, keys and the mask."""
        return (self.query, self.key) if self.mask is None else (self.query, self.key, self.mask)

    def detached(self) -> "QueryKeyWeights":
        """The same weights without gradients."""
        mask = None if self.mask is None else self.mask.detach()
        return replace(self, query=self.query.detach(), key=self.key.detach(), mask=mask)

    def rows(self, start: int, stop: int, images: slice | None = None) -> Tensor:
        """Weights of those queries, (…, heads, stop − start, keys); a row that the mask hides entirely is zero."""
        query, key, mask = self.query[..., start:stop, :], self.key, self.mask
        if mask is not None and mask.ndim >= 2 and mask.shape[-2] > 1:
            mask = mask[..., start:stop, :]
        if images is not None:
            query, key = query[images], key[images]
            if mask is not None and mask.ndim == query.ndim and mask.shape[0] > 1:
                mask = mask[images]
        autocast = torch.is_autocast_enabled(query.device.type)
        with torch.autocast(query.device.type, enabled=False) if autocast else nullcontext():
            # one copy of a half: to float32 and to the layout that the product takes
            query, key = (tensor.to(torch.float32, memory_format=torch.contiguous_format) for tensor in (query, key))
            key = for_heads(key, query)
            scale = 1 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale
            scores = scaled_products(query, key, scale)
            if self.is_causal:
                future = torch.ones(stop - start, key.shape[-2], dtype=torch.bool, device=key.device).triu(1 + start)
                scores = scores.masked_fill(future, -torch.inf)
            if mask is None:
                return _softmax(scores)
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
            hidden = scores.detach().amax(-1, keepdim=True) == -torch.inf
            weights = scores.softmax(-1)
            if hidden.device.type == "cpu" and not bool(hidden.any()):  # elsewhere the answer would have to be waited for
                return weights
            return weights.masked_fill(hidden, 0.0)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over keys; on a processor, where memory is what costs, in the place of the scores."""
    if scores.device.type != "cpu" or scores.requires_grad:
        return scores.softmax(-1)
    return torch.softmax(scores, -1, out=scores)


@dataclass(eq=False)
class AttendingWeights(QueryKeyWeights):
    """Weights that are multiplied with the values as they are read, so that attention is computed once.

    Blocks of weights are read while they are in the processor's cache; the output takes what they give. `finish` fills in the
    rest, by the model's own function where nothing was read.
    """

    value: Tensor | None = None
    """(…, heads or a divisor of heads, keys, width); dropped with the output when all is done."""
    output: Tensor | None = field(init=False)
    """(…, heads, queries, width), its axes in memory in the order of the query's, as the fused kernel has it."""

    def __post_init__(self) -> None:
        assert self.value is not None
        self.value = for_heads(self.value, self.query)
        query, width = self.query, self.value.shape[-1]
        order = sorted(range(query.ndim - 1), key=query.stride, reverse=True)
        sizes = [*(query.shape[axis] for axis in order), width]
        self.output = query.new_empty(sizes).permute(*(order.index(axis) for axis in range(query.ndim - 1)), -1)
        self._read = np.zeros((query.shape[0], query.shape[-2]), bool)

    def detached(self) -> "AttendingWeights":
        """Itself: it is not part of a graph."""
        return self

    def rows(self, start: int, stop: int, images: slice | None = None) -> Tensor:
        """Weights of those queries; their output is noted."""
        weights = super().rows(start, stop, images)
        if self.output is not None and self.value is not None:
            chosen = slice(None) if images is None else images
            self.output[chosen, ..., start:stop, :] = weights @ self.value[chosen]
            self._read[chosen, start:stop] = True
        return weights

    def finish(self, whole: Callable[[], Tensor]) -> Tensor:
        """The output; `whole` computes all of it, and is asked where no row was read."""
        output, queries = self.output, self.query.shape[-2]
        assert output is not None
        if not self._read.any():
            output = whole()
        for place in np.flatnonzero(~self._read.all(1)) if output is self.output else ():
            step = max(1, _UNREAD_BLOCK // math.prod(self.shape[1:-2] + self.shape[-1:]))
            for start in range(0, queries, step):
                self.rows(start, min(start + step, queries), slice(int(place), int(place) + 1))
        self.value = self.output = None
        return output


_UNREAD_BLOCK = 2**21
"""Weights that are computed together where nobody has read them."""


def for_heads(key: Tensor, query: Tensor) -> Tensor:
    """Keys (…, heads or a divisor of heads, keys, width), one for each head of the queries."""
    if key.ndim < 3 or key.shape[-3] == query.shape[-3] or query.shape[-3] % key.shape[-3]:
        return key
    return key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)


def scaled_products(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Scaled products of queries and keys, (…, queries, keys), without a pass over the queries for the factor."""
    if query.shape[:-2] != key.shape[:-2] or query.ndim < 3:
        return (query * scale) @ key.transpose(-2, -1)
    leading = query.shape[:-2]
    none = query.new_empty(1, 1, 1)  # baddbmm adds 0 times this
    products = torch.baddbmm(none, query.flatten(0, -3), key.flatten(0, -3).transpose(1, 2), beta=0, alpha=scale)
    return products.view(*leading, *products.shape[-2:])


@dataclass(eq=False)
class MaterialisedWeights:
    """A map that the model made itself."""

    weights: Tensor
    """(…, queries, keys)"""

    @property
    def shape(self) -> tuple[int, ...]:
        """(…, queries, keys)."""
        return tuple(self.weights.shape)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The map."""
        return (self.weights,)

    def detached(self) -> "MaterialisedWeights":
        """The same weights without gradients."""
        return MaterialisedWeights(self.weights.detach())

    def rows(self, start: int, stop: int, images: slice | None = None) -> Tensor:
        """Weights of those queries, (…, stop − start, keys)."""
        weights = self.weights if images is None else self.weights[images]
        return weights[..., start:stop, :].float()


def attending(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    gradients: bool = False,
) -> tuple[AttendingWeights | MaterialisedWeights, Tensor] | None:
    """Weights of a call of `scaled_dot_product_attention` and the output that comes from them; None where it is to run itself.

    With `gradients`, whole weights, which are part of the output's graph. Otherwise weights that make the output as they are
    read; not on an accelerator, whose fused kernel costs next to nothing beside more launches, nor in half precision, in which
    the fused kernel rounds otherwise.
    """
    if dropout_p or any(tensor.is_nested for tensor in (query, key, value)):
        return None
    if gradients:
        weights = QueryKeyWeights(query, key, attn_mask, scale, is_causal).rows(0, query.shape[-2])
        return MaterialisedWeights(weights), (weights @ for_heads(value, query).to(weights.dtype)).to(value.dtype)
    if any(
        type(tensor) is not Tensor or tensor.dtype != torch.float32 or tensor.device.type != "cpu"
        for tensor in (query, key, value)
    ):
        return None
    followed = any(tensor is not None and tensor.requires_grad for tensor in (query, key, value, attn_mask))
    heads = query.shape[:-2] == key.shape[:-2] or (enable_gqa and query.shape[0] == key.shape[0])
    if torch.is_autocast_enabled("cpu") or (followed and torch.is_grad_enabled()):
        return None
    if query.ndim < 3 or not heads or key.shape[:-2] != value.shape[:-2] or not all(query.shape):
        return None
    made = AttendingWeights(query, key, attn_mask, scale, is_causal, value)
    assert made.output is not None
    return made, made.output


HIDDEN = -500.0
"""A mask that adds this or less hides a key."""


def hidden_keys(weights: WeightSource, *, masked: bool) -> Tensor | None:
    """Which keys a mask hides from every query, (…, keys); None if there are none. `masked`: scores were masked before."""
    if isinstance(weights, QueryKeyWeights):
        mask = weights.mask
        if mask is None or mask.ndim < 2 or mask.shape[-1] == 1:
            return None
        mask = mask.reshape((1,) * (len(weights.shape) - mask.ndim) + tuple(mask.shape))
        rows = mask if mask.shape[-2] == 1 or mask.stride(-2) else mask[..., :1, :]
        first = _hides(rows[..., 0, :])
        if not bool(first.any()):
            return None
        return (
            _hides(rows).all(-2).expand(*weights.shape[:-2], -1) if rows.shape[-2] > 1 else first.expand(*weights.shape[:-2], -1)
        )
    if isinstance(weights, FlexWeights):
        return weights.hidden_keys()
    if isinstance(weights, MaterialisedWeights) and masked:
        values = weights.weights.detach()
        if not bool((values[..., :: max(values.shape[-2] - 1, 1), :] == 0).any()):  # the first query and the last
            return None
        # a query that is padding itself may see all keys alike
        alike = values.amax(-1, keepdim=True) == values.amin(-1, keepdim=True)
        hidden = ((values == 0) | alike).all(-2)
        return hidden if bool(hidden.any()) and not bool(alike.all()) else None
    return None


def _hides(mask: Tensor) -> Tensor:
    return ~mask if mask.dtype == torch.bool else mask <= HIDDEN


@dataclass(eq=False)
class FlexWeights:
    """softmax of what `score_mod` makes of query · keyᵀ · scale where `mask_mod` allows, as `flex_attention` uses it.

    The two functions see scalars: score_mod(score, image, head, query, key), mask_mod(image, head, query, key).
    """

    query: Tensor
    """(images, heads, queries, width)"""
    key: Tensor
    """(images, heads or a divisor of heads, keys, width)"""
    scale: float
    score_mod: Callable[..., Tensor] | None = None
    mask_mod: Callable[..., Tensor] | None = None
    score_buffers: Sequence[Any] = ()
    mask_buffers: Sequence[Any] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(images, heads, queries, keys)."""
        return (*self.query.shape[:-1], self.key.shape[-2])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Queries and keys."""
        return self.query, self.key

    def detached(self) -> "FlexWeights":
        """The same weights without gradients."""
        return replace(self, query=self.query.detach(), key=self.key.detach())

    def rows(self, start: int, stop: int, images: slice | None = None) -> Tensor:
        """Weights of those queries, (images, heads, stop − start, keys); a row that the mask hides entirely is zero."""
        batch = torch.arange(self.query.shape[0], device=self.query.device)
        query, key = self.query[..., start:stop, :].float(), self.key.float()
        if images is not None:
            batch, query, key = batch[images], query[images], key[images]
        scores = scaled_products(query, for_heads(key, query), self.scale)
        places = (
            batch,
            torch.arange(scores.shape[1], device=scores.device),
            torch.arange(start, stop, device=scores.device),
            torch.arange(scores.shape[3], device=scores.device),
        )
        if self.score_mod is not None:
            scores = _for_each(self.score_mod, True, len(self.score_buffers))(scores, *places, *self.score_buffers)
        if self.mask_mod is None:
            return scores.softmax(-1)
        hidden = self._hidden(self.mask_mod, places).expand(scores.shape)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return weights.masked_fill(hidden, 0.0)

    def _hidden(self, mask_mod: Callable[..., Tensor], places: tuple[Tensor, ...]) -> Tensor:
        """Which keys the mask hides at (images, heads, queries, keys)."""
        return ~_for_each(mask_mod, False, len(self.mask_buffers))(*places, *self.mask_buffers)

    def hidden_keys(self) -> Tensor | None:
        """Which keys the mask hides from every query, (images, heads, keys); None if there are none."""
        if self.mask_mod is None:
            return None
        images, heads, queries, keys = (torch.arange(size, device=self.query.device) for size in self.shape)
        hidden = self._hidden(self.mask_mod, (images, heads, queries[:1], keys))
        for start in range(1, len(queries), 1024):
            if not bool(hidden.any()):
                return None
            block = self._hidden(self.mask_mod, (images, heads, queries[start : start + 1024], keys))
            hidden = hidden & block.all(-2, keepdim=True)
        return hidden.squeeze(-2).expand(*self.shape[:-2], -1) if bool(hidden.any()) else None


def _for_each(function: Callable[..., Tensor], scores: bool, buffers: int) -> Callable[..., Tensor]:
    """A function of scalars, for every image, head, query and key."""
    for axis in (3, 2, 1, 0):
        places = tuple(0 if other == axis else None for other in range(4))
        function = torch.vmap(function, in_dims=((0, *places) if scores else places) + (None,) * buffers)
    return function


_AS_WANTED = ((("image",), ("head",)), (("image", "window"), ("head",)), (("image",), ()), (("image", "window"), ()))


@dataclass(frozen=True, eq=False)
class Arrangement:
    """How the axes in front of (queries, keys) split into images, windows and heads, and which order tokens are in.

    `axes` names the factors of each axis, outermost first: (("image", "window"), ("head",)) is Swin's (batch · windows, heads).
    """

    axes: tuple[tuple[str, ...], ...]
    sizes: tuple[tuple[int, ...], ...]
    """Size of each factor; −1 for the images, whose number may change from call to call."""
    query_order: Tensor | None = None
    key_order: Tensor | None = None
    flat: bool = False
    """Whether nothing is known of the axes: all of them are one, and there are no heads."""
    query_heads: int = 1
    """Heads that lie along the axis of the queries and share the keys (multi-query attention)."""
    heads_inside: bool = False
    """Whether these heads of one query lie next to each other there, not the queries of one head."""

    @property
    def windows(self) -> int:
        """Windows per image."""
        return self._size("window")

    @property
    def heads(self) -> int:
        """Heads in the axes in front of the queries."""
        return self._size("head")

    @property
    def images_first(self) -> bool:
        """Whether the entries of an image lie next to each other in the first axis."""
        return not self.flat and self.axes[0][:1] == ("image",)

    def entries(self, images: slice) -> slice:
        """The slice of the first axis that holds a slice of the images, where these come first."""
        step = math.prod(self.sizes[0][1:])
        return slice(images.start * step, images.stop * step)

    @property
    def folded(self) -> bool:
        """Whether the axes are (images · windows, heads) already."""
        return self.axes in _AS_WANTED

    def _size(self, factor: str) -> int:
        return math.prod(
            size
            for axis, sizes in zip(self.axes, self.sizes, strict=True)
            for name, size in zip(axis, sizes, strict=True)
            if name == factor
        )

    def fold(self, weights: Tensor) -> Tensor:
        """(…, queries, keys) → (images · windows, heads, queries, keys)."""
        if self.flat:
            return weights.reshape(-1, 1, *weights.shape[-2:])
        if not self.folded:
            names = [name for axis in self.axes for name in axis]
            sizes = [size for axis in self.sizes for size in axis]
            images = math.prod(weights.shape[:-2]) // (self.windows * self.heads)
            weights = weights.reshape([images if size < 0 else size for size in sizes] + list(weights.shape[-2:]))
            order = [axis for kind in ("image", "window", "head") for axis, name in enumerate(names) if name == kind]
            weights = weights.permute(*order, -2, -1).reshape(images * self.windows, self.heads, *weights.shape[-2:])
        if self.key_order is not None:
            weights = weights.index_select(-1, on_device(self.key_order, weights.device))
        return weights

    def query_heads_apart(self, weights: Tensor) -> Tensor:
        """(…, heads, queries · query heads, keys) → (…, heads · query heads, queries, keys)."""
        if self.query_heads == 1:
            return weights
        apart = torch.unflatten(weights, -2, (-1, self.query_heads) if self.heads_inside else (self.query_heads, -1))
        return (apart.transpose(-3, -2) if self.heads_inside else apart).flatten(-4, -3)

    def unfold(self, keys: Tensor, width: int) -> Tensor:
        """(images · windows, keys) → (…, 1, width) with the model's own axes and order of the keys, the same for all heads.

        `width` is the number of the model's keys; those outside the map (padding) get 1 or True.
        """
        if self.key_order is not None:
            raw = keys.new_ones(len(keys), width)
            raw[:, on_device(self.key_order, keys.device)] = keys
            keys = raw
        images = len(keys) // self.windows
        names = [name for axis in self.axes for name in axis]
        sizes = [images if size < 0 else size for axis in self.sizes for size in axis]
        order = [axis for kind in ("image", "window", "head") for axis, name in enumerate(names) if name == kind]
        one_head = [1 if names[axis] == "head" else sizes[axis] for axis in order]
        spread = keys.reshape(*one_head, -1).expand(*(sizes[axis] for axis in order), -1)
        back = [order.index(axis) for axis in range(len(order))]
        leading = [math.prod(images if size < 0 else size for size in axis) for axis in self.sizes]
        return spread.permute(*back, -1).reshape(*leading, 1, keys.shape[-1])


@dataclass(eq=False)
class ArrangedWeights:
    """Weights of a source, folded to (images · windows, heads, queries, keys) with prefix tokens first."""

    source: WeightSource
    arrangement: Arrangement

    def __post_init__(self) -> None:
        self._versions = [tensor_version(tensor) for tensor in self.source.tensors]

    def check_unchanged(self, module: str) -> None:
        """Raise `CaptureError` where the model has overwritten what the weights come from since they were captured."""
        if any(tensor_version(tensor) != version for tensor, version in zip(self.source.tensors, self._versions, strict=True)):
            raise CaptureError(
                f"{module}: the model overwrote its queries, keys or weights in place after this attention, so the map is gone; "
                "give capture a reduce= function, which sees the map while its layer runs"
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images · windows, heads, queries, keys)."""
        raw = self.source.shape
        heads, shared = self.arrangement.heads, self.arrangement.query_heads
        queries = raw[-2] // shared if self.arrangement.query_order is None else len(self.arrangement.query_order)
        keys = raw[-1] if self.arrangement.key_order is None else len(self.arrangement.key_order)
        return math.prod(raw[:-2]) // heads, heads * shared, queries, keys

    @property
    def device(self) -> torch.device:
        """Where the weights are computed."""
        return self.source.tensors[0].device

    @property
    def images_first(self) -> bool:
        """Whether rows of some images cost no more than their share of the whole map."""
        return self.arrangement.images_first

    def rows(self, start: int, stop: int, images: slice | None = None) -> Tensor:
        """Weights of those queries (and images), (images · windows, heads, stop − start, keys), float32."""
        order = self.arrangement.query_order
        direct = images is None or self.arrangement.images_first
        block = self.arrangement.entries(images) if images is not None and direct else None
        if order is None and self.arrangement.query_heads == 1:
            weights = self.arrangement.fold(self.source.rows(start, stop, block))
        else:
            whole = self.arrangement.fold(self.source.rows(0, self.source.shape[-2], block))
            whole = self.arrangement.query_heads_apart(whole)
            weights = whole[..., start:stop, :]
            if order is not None:
                weights = whole.index_select(-2, on_device(order, whole.device)[start:stop])
        if direct or images is None:
            return weights
        windows = self.arrangement.windows
        return weights[images.start * windows : images.stop * windows]


def tensor_version(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 for those of inference mode, which do not count it."""
    return 0 if tensor.is_inference() else tensor._version


_FORWARD_ARGUMENTS = (
    "query",
    "key",
    "value",
    "key_padding_mask",
    "need_weights",
    "attn_mask",
    "average_attn_weights",
    "is_causal",
)
FUNCTION_ARGUMENTS = (
    "query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v add_zero_attn dropout_p "
    "out_proj_weight out_proj_bias training key_padding_mask need_weights attn_mask use_separate_proj_weight q_proj_weight "
    "k_proj_weight v_proj_weight static_k static_v average_attn_weights is_causal"
).split()
_LAYER_ARGUMENTS = ("src", "src_mask", "src_key_padding_mask", "is_causal")


@dataclass(eq=False)
class MultiheadCall:
    """One call of multi-head attention: its weights, and the values they were multiplied with."""

    weights: QueryKeyWeights
    """(batch, heads, queries, keys)"""
    values: Tensor
    """(batch, heads, keys, width)"""
    out_weight: Tensor
    out_bias: Tensor | None

    def attended(self) -> Tensor:
        """What the module returns, (batch, queries, channels), computed from weights × values."""
        weights = self.weights.rows(0, self.weights.shape[-2])
        mixed = (weights.to(self.values.dtype) @ self.values).transpose(1, 2).flatten(2)
        return F.linear(mixed, self.out_weight, self.out_bias)


def uses_fused_path(module: nn.Module) -> bool:
    """Whether the function mode steps aside for this module: those that would leave their fast path."""
    return any(
        isinstance(module, kind) and type(module).forward is kind.forward
        for kind in (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    )


def module_call(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> MultiheadCall:
    """The attention of one call of `nn.MultiheadAttention`."""
    given = dict(zip(_FORWARD_ARGUMENTS, args, strict=False)) | dict(kwargs)
    tensors = [given[name] for name in ("query", "key", "value")]
    if tensors[0].is_nested:
        padded = tensors[0].to_padded_tensor(0.0)
        given["key_padding_mask"] = _padding(tensors[0], padded)
        tensors = [padded] * 3
    if module.batch_first and tensors[0].ndim == 3:
        tensors = [tensor.transpose(0, 1) for tensor in tensors]
    separate = not module._qkv_same_embed_dim
    projections = (
        (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight) if separate else module.in_proj_weight.chunk(3)
    )
    return _call(
        tensors,
        heads=module.num_heads,
        projections=tuple(projections),
        biases=(None, None, None) if module.in_proj_bias is None else tuple(module.in_proj_bias.chunk(3)),
        extra=(module.bias_k, module.bias_v),
        zero=module.add_zero_attn,
        out=(module.out_proj.weight, module.out_proj.bias),
        padding=given.get("key_padding_mask"),
        mask=given.get("attn_mask"),
        is_causal=bool(given.get("is_causal", False)),
    )


def function_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[MultiheadCall, Tensor, Tensor]:
    """The attention of one call of `torch.nn.functional.multi_head_attention_forward`, its queries and its keys."""
    given = dict(zip(FUNCTION_ARGUMENTS, args, strict=False)) | dict(kwargs)
    if given.get("use_separate_proj_weight"):
        projections = tuple(given[f"{name}_proj_weight"] for name in "qkv")
    else:
        projections = tuple(given["in_proj_weight"].chunk(3))
    call = _call(
        [given[name] for name in ("query", "key", "value")],
        heads=given["num_heads"],
        projections=projections,
        biases=(None, None, None) if given.get("in_proj_bias") is None else tuple(given["in_proj_bias"].chunk(3)),
        extra=(given.get("bias_k"), given.get("bias_v")),
        zero=bool(given.get("add_zero_attn")),
        out=(given["out_proj_weight"], given["out_proj_bias"]),
        padding=given.get("key_padding_mask"),
        mask=given.get("attn_mask"),
        is_causal=bool(given.get("is_causal", False)),
    )
    return call, given["query"], given["key"]


def nested_call(query: Tensor, key: Tensor, scale: float | None, is_causal: bool) -> QueryKeyWeights:
    """The weights of nested queries and keys (batch, heads, *, width), padded; the rows and columns of padding are zero."""
    padded, padding = _padded(query)
    keys, hidden = _padded(key)
    mask = ~(padding[:, None, :, None] | hidden[:, None, None, :])
    if is_causal:
        mask = mask & torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril()
    return QueryKeyWeights(padded, keys, mask, scale)


def _padded(nested: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, heads, tokens, width) of nested tensors (batch, heads, *, width), and which tokens are padding."""
    items = nested.unbind()
    lengths = torch.tensor([item.shape[-2] for item in items], device=nested.device)
    longest = int(lengths.max())
    padded = torch.stack([F.pad(item, (0, 0, 0, longest - item.shape[-2])) for item in items])
    return padded, torch.arange(longest, device=nested.device) >= lengths[:, None]


def layer_call(
    layer: nn.TransformerEncoderLayer, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[MultiheadCall, Tensor]:
    """The attention of an encoder layer that took its fast path, and what the layer returns for it, for verification."""
    given = dict(zip(_LAYER_ARGUMENTS, args, strict=False)) | dict(kwargs)
    source = given["src"]
    padding = given.get("src_key_padding_mask")
    if source.is_nested:
        padded = source.to_padded_tensor(0.0)
        padding, source = _padding(source, padded), padded
    normed = layer.norm1(source) if layer.norm_first else source
    call = module_call(
        layer.self_attn, (normed, normed, normed), {"key_padding_mask": padding, "attn_mask": given.get("src_mask")}
    )
    after = source + call.attended()
    if layer.norm_first:
        return call, after + layer._ff_block(layer.norm2(after))
    after = layer.norm1(after)
    return call, layer.norm2(after + layer._ff_block(after))


def _padding(nested: Tensor, padded: Tensor) -> Tensor:
    lengths = torch.tensor([item.shape[0] for item in nested.unbind()], device=padded.device)
    return torch.arange(padded.shape[1], device=padded.device) >= lengths[:, None]


def _call(
    tensors: list[Tensor],
    *,
    heads: int,
    projections: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    extra: tuple[Tensor | None, Tensor | None],
    zero: bool,
    out: tuple[Tensor, Tensor | None],
    padding: Tensor | None,
    mask: Tensor | None,
    is_causal: bool,
) -> MultiheadCall:
    """Project (tokens, batch, channels) to heads and gather the masks; True in torch's module masks means hidden."""
    if tensors[0].ndim == 2:
        tensors = [tensor.unsqueeze(1) for tensor in tensors]
        padding = None if padding is None else padding.unsqueeze(0)
    query, key, value = (F.linear(t, w, b) for t, w, b in zip(tensors, projections, biases, strict=True))
    batch = query.shape[1]
    if extra[0] is not None and extra[1] is not None:
        key = torch.cat([key, extra[0].expand(1, batch, -1)])
        value = torch.cat([value, extra[1].expand(1, batch, -1)])
    if zero:
        key, value = (torch.cat([t, t.new_zeros(1, *t.shape[1:])]) for t in (key, value))
    added = key.shape[0] - tensors[1].shape[0]
    query, key, value = (t.reshape(t.shape[0], batch, heads, -1).permute(1, 2, 0, 3) for t in (query, key, value))
    bias = _additive(mask, query)
    if bias is not None:
        bias = F.pad(bias if bias.ndim == 2 else bias.reshape(batch, -1, *bias.shape[-2:]), (0, added))
    hidden = _additive(padding, query)
    if hidden is not None:
        hidden = F.pad(hidden, (0, added))[:, None, None, :]
        bias = hidden if bias is None else bias + hidden
    causal = is_causal and mask is None and padding is None
    return MultiheadCall(QueryKeyWeights(query, key, bias, is_causal=causal), value, *out)


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
