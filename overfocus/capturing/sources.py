"""Where the attention weights of a site come from, and how their axes are arranged."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class WeightSource(Protocol):
    """Attention weights with the model's own axes: (…, queries, keys)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole map."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are computed."""
        ...

    def rows(self, start: int, stop: int, images: slice | None = None) -> Tensor:
        """Weights of some queries, and of some entries of the first axis, in float32."""
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
        leading = self.query.shape[:-3]
        return (*leading, *self.query.shape[-3:-1], self.key.shape[-2])

    @property
    def device(self) -> torch.device:
        """Where the weights are computed."""
        return self.query.device

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
            query, key = query.float(), key.float()
            if key.shape[-3] != query.shape[-3]:
                key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
            scale = 1 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale
            scores = scaled_products(query, key, scale)
            if self.is_causal:
                future = torch.ones(stop - start, key.shape[-2], dtype=torch.bool, device=key.device).triu(1 + start)
                scores = scores.masked_fill(future, -torch.inf)
            if mask is None:
                return scores.softmax(-1)
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
            hidden = scores.detach().amax(-1, keepdim=True) == -torch.inf
            weights = scores.softmax(-1)
            if hidden.device.type == "cpu" and not bool(hidden.any()):  # elsewhere the answer would have to be waited for
                return weights
            return weights.masked_fill(hidden, 0.0)


def scaled_products(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Scaled products of queries and keys, (…, queries, keys), without a pass over the queries for the factor."""
    if query.shape[:-2] != key.shape[:-2]:
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
    def device(self) -> torch.device:
        """Where the weights are computed."""
        return self.weights.device

    def rows(self, start: int, stop: int, images: slice | None = None) -> Tensor:
        """Weights of those queries, (…, stop − start, keys)."""
        weights = self.weights if images is None else self.weights[images]
        return weights[..., start:stop, :].float()


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

    @property
    def windows(self) -> int:
        """Windows per image."""
        return self._size("window")

    @property
    def heads(self) -> int:
        """Heads of the site."""
        return self._size("head")

    @property
    def images_first(self) -> bool:
        """Whether the entries of an image lie next to each other in the first axis."""
        return self.axes[0][:1] == ("image",)

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
        if not self.folded:
            names = [name for axis in self.axes for name in axis]
            sizes = [size for axis in self.sizes for size in axis]
            images = math.prod(weights.shape[:-2]) // (self.windows * self.heads)
            weights = weights.reshape([images if size < 0 else size for size in sizes] + list(weights.shape[-2:]))
            order = [axis for kind in ("image", "window", "head") for axis, name in enumerate(names) if name == kind]
            weights = weights.permute(*order, -2, -1).reshape(images * self.windows, self.heads, *weights.shape[-2:])
        if self.key_order is not None:
            weights = weights.index_select(-1, self.key_order.to(weights.device))
        return weights

    def unfold(self, keys: Tensor, width: int) -> Tensor:
        """(images · windows, keys) → (…, 1, width) with the model's own axes and order of the keys, the same for all heads.

        `width` is the number of the model's keys; those that are none of the map (padding) get 1 or True.
        """
        if self.key_order is not None:
            raw = keys.new_ones(len(keys), width)
            raw[:, self.key_order.to(keys.device)] = keys
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

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images · windows, heads, queries, keys)."""
        raw = self.source.shape
        heads = self.arrangement.heads
        queries = raw[-2] if self.arrangement.query_order is None else len(self.arrangement.query_order)
        keys = raw[-1] if self.arrangement.key_order is None else len(self.arrangement.key_order)
        return math.prod(raw[:-2]) // heads, heads, queries, keys

    @property
    def device(self) -> torch.device:
        """Where the weights are computed."""
        return self.source.device

    @property
    def images_first(self) -> bool:
        """Whether rows of some images cost no more than their share of the whole map."""
        return self.arrangement.images_first

    def rows(self, start: int, stop: int, images: slice | None = None) -> Tensor:
        """Weights of those queries (and images), (images · windows, heads, stop − start, keys), float32."""
        order = self.arrangement.query_order
        direct = images is None or self.arrangement.images_first
        block = self.arrangement.entries(images) if images is not None and direct else None
        if order is None:
            weights = self.arrangement.fold(self.source.rows(start, stop, block))
        else:
            weights = self.arrangement.fold(self.source.rows(0, self.source.shape[-2], block))
            weights = weights.index_select(-2, order[start:stop].to(weights.device))
        if direct or images is None:
            return weights
        windows = self.arrangement.windows
        return weights[images.start * windows : images.stop * windows]
