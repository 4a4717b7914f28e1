"""Attention Diversification Loss (ADL): of given maps, and with `diversify(model)` of what any model attends in its forward.

Source: Guo, Stutz, Schiele, "Robustifying Token Attention for Vision Transformers", ICCV 2023, section 3.2.

With M the mean map over heads, (queries, keys), n its queries, t the threshold and M̂ = M where M > t, else 0:

    v_i = M̂_i / ‖M̂_i‖            direction of row i (0 for a row without entries above t)
    r   = Σ M_i / n              what each key receives; r̂ = r where r > t, else 0; u = r̂ / ‖r̂‖
    s   = mean of cos(r̂, M̂_i) = u · Σ v_i / n

The two sums over rows, each as long as one row, give the loss, and the gradient too:

    ds/dM_i = (u − (u · v_i) v_i) / (n ‖M̂_i‖) where M_i > t,  plus  (Σ v_j − (u · Σ v_j) u) / (n² ‖r̂‖) where r > t

Weights are computed from their source (queries and keys, as fused attention leaves them, or a map that the model made) for a
few images at a time, and with them their part of the gradient at once, since the loss is one number and the backward pass
only scales it. Where one image alone is large, its queries are taken in blocks, twice.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from overfocus.attention import AttentionMap
from overfocus.capturing import Captured, capture
from overfocus.capturing.sources import ArrangedWeights, Arrangement, MaterialisedWeights, QueryKeyWeights, WeightSource
from overfocus.errors import OverfocusError

NORM_FLOOR = 1e-8
"""ε of the cosine; entries above the threshold lie far above it."""
CPU_BLOCK = 2**20
"""Weights of images to work on at a time: few enough for a processor's cache, enough that a call costs more than its overhead."""
GPU_BLOCK = 2**26
"""Weights of images to work on at a time, so that a GPU is busy."""
LIMIT = 2**22
"""Weights of one image from which its queries are taken in blocks: computing them twice then costs less than their memory."""

Tensors = Sequence[Tensor | None]


@dataclass(frozen=True)
class WeightForm:
    """How the weights of a site are computed from its tensors: query, key and mask, or the map that the model made."""

    build: Callable[..., WeightSource]
    arrangement: Arrangement

    @classmethod
    def of(cls, source: ArrangedWeights) -> tuple["WeightForm", Tensors]:
        """The form of a source, and its tensors."""
        raw = source.source
        if isinstance(raw, QueryKeyWeights):
            build = partial(QueryKeyWeights, scale=raw.scale, is_causal=raw.is_causal)
            return cls(build, source.arrangement), (raw.query, raw.key, raw.mask)
        assert isinstance(raw, MaterialisedWeights)
        return cls(MaterialisedWeights, source.arrangement), (raw.weights,)

    def source(self, tensors: Tensors) -> ArrangedWeights:
        """The weights of these tensors."""
        return ArrangedWeights(self.build(*tensors), self.arrangement)

    def images(self, tensors: Tensors) -> Iterator[slice]:
        """Slices of the tensors' first axis that hold whole images (or windows), and about as many weights as suit the device.

        One slice with everything where the first axis does not begin with the images.
        """
        source, arrangement = self.source(tensors), self.arrangement
        entries = source.source.shape[0]
        per_image = math.prod(arrangement.sizes[0][1:]) if arrangement.images_first else entries
        together = 1 if arrangement.folded else per_image
        weights = math.prod(source.shape) * together // entries
        size = together * max(1, _block_size(tensors) // weights)
        return (slice(start, min(start + size, entries)) for start in range(0, entries, size))

    def shared(self, tensors: Tensors) -> list[bool]:
        """Which tensors all images share, like a position bias: they have no axis of images to slice."""
        shape = self.build(*tensors).shape
        return [tensor is None or tensor.ndim < len(shape) or tensor.shape[0] != shape[0] for tensor in tensors]

    def queries(self, tensors: Tensors, wanted: slice) -> list[slice]:
        """The wanted queries, at once or in blocks."""
        maps, heads, _, keys = self.source(tensors).shape
        size = max(1, max(LIMIT, _block_size(tensors)) // (maps * heads * keys))
        return [slice(start, min(start + size, wanted.stop)) for start in range(wanted.start, wanted.stop, size)]


def arrange(weights: Float[Tensor, "images heads queries keys"]) -> ArrangedWeights:
    """A map that is there already, as a source of weights."""
    return ArrangedWeights(MaterialisedWeights(weights), Arrangement((("image",), ("head",)), ((-1,), (weights.shape[1],))))


def _block_size(tensors: Tensors) -> int:
    on_cpu = tensors[0] is not None and tensors[0].device.type == "cpu"
    return CPU_BLOCK if on_cpu else GPU_BLOCK


def row_alignment(source: ArrangedWeights, threshold: float, prefix_queries: int = 0, prefix_keys: int = 0) -> Float[Tensor, ""]:
    """Mean cosine between the rows of each head-mean map and its mean row, 0 … 1; high = all queries look at the same keys.

    Entries of at most threshold / keys count as zero, in the rows and in the mean row; a row of zeros has cosine 0. Prefix
    queries and keys are left out, and what remains of a row is not normalised again.
    """
    if not isinstance(source.source, QueryKeyWeights):
        source = arrange(source.rows(0, source.shape[2]).mean(1, keepdim=True))  # only the mean over heads is judged
    _, _, queries, keys = source.shape
    judged = _Judged(slice(prefix_queries, queries), prefix_keys, threshold / (keys - prefix_keys))
    form, tensors = WeightForm.of(source)
    if not torch.is_grad_enabled():
        tensors = [tensor if tensor is None else tensor.detach() for tensor in tensors]
    result: Tensor = _RowAlignment.apply(form, judged, *tensors)
    return result


class _Judged(NamedTuple):
    """Which part of a map is judged, and t."""

    queries: slice
    prefix_keys: int
    limit: float

    def directions(self, weights: Float[Tensor, "maps heads rows keys"]) -> "_Rows":
        """The judged part of some rows."""
        mean_map = weights.detach().mean(1)[..., self.prefix_keys :]
        below = mean_map <= self.limit
        kept = mean_map.masked_fill(below, 0.0)
        return _Rows(
            mean_map, below, kept, torch.linalg.vector_norm(kept, dim=-1, keepdim=True).clamp_min_(NORM_FLOOR).reciprocal_()
        )


class _Rows(NamedTuple):
    """Rows of the mean map."""

    weights: Float[Tensor, "maps rows keys"]
    """M_i"""
    below: Bool[Tensor, "maps rows keys"]
    """Where M̂_i is zero."""
    kept: Float[Tensor, "maps rows keys"]
    """M̂_i"""
    inverse: Float[Tensor, "maps rows 1"]
    """1 / ‖M̂_i‖"""

    def sums(self) -> Float[Tensor, "2 maps keys"]:
        """Σ M_i and Σ v_i."""
        return torch.stack([self.weights.sum(1), (self.kept * self.inverse).sum(1)])

    def gradient(self, received: "_Received") -> Float[Tensor, "maps rows keys"]:
        """ds/dM_i, without the factor 1 / n."""
        along = (self.kept @ received.direction.unsqueeze(-1)) * self.inverse**3
        gradient = torch.addcmul(self.inverse * received.direction.unsqueeze(1), self.kept, along, value=-1)
        return gradient.masked_fill_(self.below, 0.0).add_(received.gradient.unsqueeze(1))


class _Received(NamedTuple):
    """What follows from the sums over all rows."""

    alignment: Float[Tensor, " maps"]
    """s"""
    direction: Float[Tensor, "maps keys"]
    """u"""
    gradient: Float[Tensor, "maps keys"]
    """(Σ v_j − (u · Σ v_j) u) / (n ‖r̂‖) where r > t"""

    @classmethod
    def of(cls, sums: Float[Tensor, "2 maps keys"], judged: _Judged) -> "_Received":
        count = judged.queries.stop - judged.queries.start
        received, directions = sums[0] / count, sums[1]
        received = torch.where(received > judged.limit, received, 0.0)
        length = torch.linalg.vector_norm(received, dim=-1, keepdim=True).clamp_min_(NORM_FLOOR)
        direction = received / length
        aligned = (direction * directions).sum(-1, keepdim=True)
        gradient = torch.where(received > 0, (directions - aligned * direction) / (length * count), 0.0)
        return cls(aligned.squeeze(-1) / count, direction, gradient)


class _RowAlignment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: WeightForm, judged: _Judged, *tensors: Tensor | None) -> Tensor:
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        shared = form.shared(tensors)
        gradients = {
            index: _empty_gradient(tensor) for index, tensor in enumerate(tensors) if index in wanted and tensor is not None
        }
        for index in gradients:
            if shared[index]:
                gradients[index].zero_()
        alignments = []
        for images in form.images(tensors):
            part = [tensor if tensor is None or shared[index] else tensor[images] for index, tensor in enumerate(tensors)]
            alignment, parts = _align(form, judged, part, wanted)
            alignments.append(alignment)
            for index, gradient in parts.items():
                if shared[index]:
                    gradients[index].add_(gradient)
                else:
                    gradients[index][images] = gradient
        result = torch.cat(alignments)
        ctx.scale = 1 / (len(result) * form.source(tensors).shape[1] * (judged.queries.stop - judged.queries.start))
        ctx.types = [None if tensor is None else tensor.dtype for tensor in tensors]
        ctx.wanted = wanted
        ctx.save_for_backward(*gradients.values())
        return result.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = dict(zip(ctx.wanted, ctx.saved_tensors, strict=True))
        factor = upstream * ctx.scale
        scaled = [(gradients[index] * factor).to(kind) if index in gradients else None for index, kind in enumerate(ctx.types)]
        return None, None, *scaled


def _align(
    form: WeightForm, judged: _Judged, tensors: Tensors, wanted: list[int]
) -> tuple[Float[Tensor, " maps"], dict[int, Tensor]]:
    """The alignment s of each map, and the gradients of Σ s · queries · heads with respect to the wanted tensors."""
    leaves = [None if t is None else t.detach().float() if t.is_floating_point() else t for t in tensors]
    inputs = [leaf.requires_grad_() for index in wanted if (leaf := leaves[index]) is not None]
    source, blocks = form.source(leaves), form.queries(leaves, judged.queries)
    at_once = len(blocks) == 1
    sums: list[Tensor] = []
    for block in blocks:
        with torch.set_grad_enabled(at_once and bool(wanted)):
            weights = source.rows(block.start, block.stop)
        rows = judged.directions(weights)
        sums.append(rows.sums())
    received = _Received.of(torch.stack(sums).sum(0), judged)
    if not wanted:
        return received.alignment, {}
    totals: list[Tensor] | None = None
    for block in blocks:
        if not at_once:
            with torch.enable_grad():
                weights = source.rows(block.start, block.stop)
            rows = judged.directions(weights)
        to_map = F.pad(rows.gradient(received), (judged.prefix_keys, 0))
        parts = torch.autograd.grad(weights, inputs, to_map.unsqueeze(1).expand_as(weights))
        totals = list(parts) if totals is None else [total.add_(part) for total, part in zip(totals, parts, strict=True)]
    return received.alignment, dict(zip(wanted, totals or [], strict=True))


def _empty_gradient(tensor: Tensor) -> Tensor:
    """Room for a gradient; float32 for a float16 tensor, whose range is too short for gradients that are not scaled yet."""
    return torch.empty_like(tensor, dtype=torch.float32 if tensor.dtype == torch.float16 else tensor.dtype)


class AttentionDiversificationLoss(nn.Module):
    """Mean over layers of how alike the rows of each attention map are; 0 … 1, high = every token attends to the same places.

    Per layer, with M the mean over heads and t = threshold / tokens: the cosine of every row of M with the mean row, entries of
    at most t counting as zero, averaged over rows and images. Gradients flow through rows and mean row.

    An image is treated alike in a batch of one and in a larger batch. The published code is not: it squeezes away a batch of one,
    averages over the wrong axis, and its loss and gradient are exactly 0 there, so that its segmentation recipe (one image per
    GPU) trained without ADL.

    Raises:
        ValueError: the threshold is not above 0.
    """

    def __init__(self, threshold: float = 2.0) -> None:
        super().__init__()
        self.threshold = check_threshold(threshold)

    def forward(
        self, attentions: Sequence[Float[Tensor, "batch heads tokens tokens"]], prefix_tokens: int = 0
    ) -> Float[Tensor, ""]:
        """The loss of the maps of several layers, as they are after the softmax.

        `prefix_tokens` (class, distillation, register) at the front are left out as queries and as keys; the reference's
        models have none in these layers.

        Raises:
            ValueError: there are no maps, or one has not four axes or no patch tokens.
        """
        alignments = []
        for weights in attentions:
            if weights.ndim != 4 or weights.shape[-1] <= prefix_tokens:
                raise ValueError(
                    f"expected attention weights (batch, heads, tokens, tokens) with more than {prefix_tokens} tokens, "
                    f"got shape {tuple(weights.shape)}"
                )
            alignments.append(row_alignment(arrange(weights), self.threshold, prefix_tokens, prefix_tokens))
        return mean_over_layers(alignments)


def check_threshold(threshold: float) -> float:
    """The threshold, if it is above 0.

    Raises:
        ValueError: it is not.
    """
    if not threshold > 0:
        raise ValueError(f"expected a threshold above 0 (in units of uniform attention; the paper uses 2), got {threshold}")
    return threshold


def mean_over_layers(alignments: Sequence[Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """The reference's mean over layers, which counts them from 1e-6.

    Raises:
        ValueError: there are no layers.
    """
    if not alignments:
        raise ValueError("expected the attention of at least one layer, got none")
    return torch.stack(list(alignments)).sum() / (len(alignments) + 1e-6)


DIVERSIFIED_KINDS = ("global", "window", "pooled")


class NoAttentionError(OverfocusError):
    """A model has no attention between tokens, or has not run."""


class NoGradientError(OverfocusError):
    """The attention of a layer came without gradient, so that the loss could not train it."""


class Diversification:
    """Computes the loss of the forwards that a `diversify` block has seen."""

    def __init__(self, captured: Captured, layers: Sequence[int] | None, threshold: float) -> None:
        self._captured = captured
        self._layers = layers
        self._threshold = threshold

    def loss(self) -> Float[Tensor, ""]:
        """The loss of the forwards since the block began or since `loss` was last called; carries gradients.

        Raises:
            NoAttentionError: the model has not run, or has no attention between tokens.
            NoGradientError: gradients are on, but a layer whose parameters want them ran without, as under reentrant checkpoints.
            ValueError: a layer does not exist.
        """
        maps = [attention for attention in self._captured.maps if attention.kind in DIVERSIFIED_KINDS]
        without_gradient = self._captured.tracer.without_gradient
        self._captured.clear()
        if not maps:
            raise NoAttentionError(
                "expected attention between tokens to diversify, got none; run the model inside the block, before adl.loss()"
            )
        chosen = self._chosen(maps)
        hidden = [attention.module for attention in chosen if attention.module in without_gradient]
        if hidden and torch.is_grad_enabled():
            raise NoGradientError(
                f"{hidden[0]}: its attention ran without gradients, so the loss could not train it; under activation checkpoints "
                "use the other kind, checkpoint(…, use_reentrant=False); or run this layer outside of torch.no_grad(), "
                "or adl.loss() inside of it where only its value is wanted"
            )
        return mean_over_layers([self._alignment(attention) for attention in chosen])

    def _chosen(self, maps: list[AttentionMap]) -> list[AttentionMap]:
        if self._layers is None:
            return maps
        modules = list(dict.fromkeys(attention.module for attention in maps))
        for layer in self._layers:
            if not -len(modules) <= layer < len(modules):
                raise ValueError(f"expected layers from 0 to {len(modules) - 1}, got {layer}")
        chosen = {modules[layer] for layer in self._layers}
        return [attention for attention in maps if attention.module in chosen]

    def _alignment(self, attention: AttentionMap) -> Tensor:
        return row_alignment(attention.source, self._threshold, attention.prefix_tokens, attention.key_prefix_tokens)


@contextmanager
def diversify(model: nn.Module, layers: Sequence[int] | None = None, threshold: float = 2.0) -> Iterator[Diversification]:
    """Attention diversification loss (ADL) of what `model` runs inside the block, fused attention included:

        with overfocus.losses.diversify(model) as adl:
            loss = criterion(model(images), labels) + adl.loss()
        loss.backward()

    The loss is `AttentionDiversificationLoss` of the attention between tokens: global, windowed (each window on its own) and
    pooled. Class attention and attention between channels are left out, as in the reference. Prefix tokens (class,
    distillation, register) are left out as queries and as keys, like in the metric `diversification`; rows are not normalised
    again. Maps that a model changes after its softmax (CaiT mixes heads) are taken as it uses them.

    Weights are computed from queries and keys in blocks, together with their part of the gradient, so the map of a layer never
    exists as a whole. Models compiled with `torch.compile` run eagerly inside the block. `layers` counts the modules with such
    attention from 0 in call order (negative from the end); all by default.

    Raises:
        ValueError: the threshold is not above 0, or a layer does not exist.
    """
    check_threshold(threshold)
    with capture(model, gradients=True) as captured:
        yield Diversification(captured, layers, threshold)
