"""Maps of what speaks for one class: attention × gradient rollout, and Grad-CAM on tokens.

A recomputed map is not part of the logits' graph, so capture computes fused attention from the very weights that it holds
(`exact=False`).

Sources: H. Chefer, S. Gur, L. Wolf, "Generic Attention-model Explainability", ICCV 2021, section 3.1; R. Selvaraju et al.,
"Grad-CAM", ICCV 2017.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.attention import TOKEN_KINDS, AttentionMap
from overfocus.capturing import capture
from overfocus.capturing.sources import MaterialisedWeights
from overfocus.errors import CaptureError


def gradient_rollout(
    model: nn.Module, inputs: Tensor, target: int | None, row: int | None = None
) -> tuple[Float[Tensor, "batch tokens"], AttentionMap, int]:
    """How much each token speaks for a class: R ← R + mean over heads of (∇A ⊙ A)⁺ · R through the global layers, from R = I.

    Args:
        model: a classifier in eval mode.
        inputs: (batch, channels, height, width).
        target: the class; None takes the one predicted for the first image, for all of them.
        row: the token whose row of R is taken, counted with prefix tokens. None takes the class token, and the mean over the
            patches in a model without one. Class attention after the layers (CaiT, FAN), where there is any, reads the
            patches' rows instead.

    Returns:
        Relevance of each token, at least 0 (without R's identity, that is of other tokens and layers than itself); the map of
        the first layer; the class.

    Raises:
        CaptureError: there is no global attention, or layers differ in their tokens; or weights the logits do not come from.
    """
    with _logits(model, inputs) as (logits, maps):
        target = choose_class(logits, target)
        layers = [attention for attention in maps if attention.kind == "global"]
        readers = [attention for attention in maps if attention.kind == "class"]
        others = sorted({attention.kind for attention in maps} - {"global", "class"})
        tokens = {attention.shape[-1] for attention in layers}
        if others or len(tokens) != 1:
            found = f"{', '.join(others)} attention" if others else f"layers of {len(tokens)} numbers of tokens"
            raise CaptureError(
                f"gradient-rollout needs global attention over the same tokens in every layer, got {found}; use grad-cam"
            )
        weighted = _weighted(layers + readers, logits[:, target].sum())
    identity = torch.eye(tokens.pop(), device=inputs.device)
    relevance = identity.expand(len(inputs), -1, -1)
    for attention in weighted[: len(layers)]:
        relevance = relevance + attention @ relevance
    first = layers[0]
    if readers and row is None and not first.prefix_tokens:
        read = torch.stack([attention[:, 0, -len(identity) :] for attention in weighted[len(layers) :]]).sum(0)
        return (read.unsqueeze(1) @ relevance).squeeze(1), first, target
    relevance = relevance - identity
    if row is None and not first.prefix_tokens:
        return relevance.mean(1), first, target
    return relevance[:, row or 0], first, target


@dataclass(frozen=True)
class Cam:
    """Grad-CAM of one layer."""

    attention: AttentionMap
    patches: Float[Tensor, "maps patches"]
    """At least 0; of each image, or of each window of each image."""
    grid: tuple[int, int]
    """Of the patches; of those of a window in a layer with windows."""


def grad_cam(model: nn.Module, inputs: Tensor, target: int | None) -> tuple[list[Cam | None], int]:
    """Grad-CAM of the tokens that enter each layer's attention: ReLU of the sum of their channels, each weighted by its mean
    gradient over the patches of the image.

    Returns:
        For each layer its Grad-CAM, None where its tokens or their grid are not known; the class.

    Raises:
        CaptureError: there is no such layer, or the logits do not come from its tokens.
    """
    with torch.no_grad(), capture(model) as captured:
        model(inputs)
    layers = [attention for attention in captured.maps if attention.kind in TOKEN_KINDS]
    names = {attention.module for attention in layers}
    entering: dict[str, Tensor] = {}
    hooks = []

    def hook_of(name: str) -> Any:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tokens = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if tokens is not None and tokens.requires_grad:
                entering[name] = tokens

        return keep

    with torch.enable_grad():
        try:
            for name, module in model.named_modules():
                if name in names:
                    hooks.append(module.register_forward_pre_hook(hook_of(name), with_kwargs=True))
            logits = model(inputs.detach().requires_grad_())
        finally:
            for hook in hooks:
                hook.remove()
        target = choose_class(logits, target)
        tensors = list(entering.values())
        slopes = torch.autograd.grad(logits[:, target].sum(), tensors, allow_unused=True) if tensors else ()
    slope_of = dict(zip(entering, slopes, strict=True))
    found = [_cam(attention, entering.get(attention.module), slope_of.get(attention.module)) for attention in layers]
    if not any(found):
        raise CaptureError(
            f"no layer of {type(model).__name__} has attention whose module takes tokens of a known patch grid that reach the "
            "logits, which Grad-CAM needs; use gradient-rollout or received"
        )
    return found, target


def _cam(attention: AttentionMap, tokens: Tensor | None, slope: Tensor | None) -> Cam | None:
    maps, _, queries, keys = attention.shape
    arrangement = attention.source.arrangement
    grid, key_grid = attention.grid, attention.key_grid or attention.grid
    if tokens is None or slope is None or arrangement.query_order is not None or arrangement.key_order is not None:
        return None  # or the map's tokens are in another order than the module's
    if tokens.ndim >= 3 and tokens.shape[:-1].numel() == maps * queries and attention.kind != "class" and grid:
        count, prefix = queries, attention.prefix_tokens
    elif tokens.ndim >= 3 and tokens.shape[:-1].numel() == maps * keys and key_grid:
        count, prefix, grid = keys, attention.key_prefix_tokens, key_grid
    else:
        return None
    if grid is None or count - prefix != grid[0] * grid[1]:
        return None
    channels, slopes = (tensor.detach().float().reshape(maps, count, -1)[:, prefix:] for tensor in (tokens, slope))
    # A channel has one weight in an image, whatever its windows.
    weights = torch.unflatten(slopes, 0, (-1, attention.windows)).mean((1, 2)).repeat_interleave(attention.windows, 0)
    return Cam(attention, torch.einsum("mtc,mc->mt", channels, weights).relu(), grid)


def choose_class(logits: Tensor, target: int | None) -> int:
    """The class asked for, or the one predicted for the first image.

    Raises:
        CaptureError: the model gives no logits (batch, classes), or has no such class.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise CaptureError(f"expected logits (batch, classes) to explain, got {shape}; take a method without a class")
    if target is None:
        return int(logits[0].argmax())
    if not 0 <= target < logits.shape[1]:
        raise CaptureError(f"expected a class from 0 to {logits.shape[1] - 1}, got {target}")
    return target


@contextmanager
def _logits(model: nn.Module, inputs: Tensor) -> Iterator[tuple[Tensor, list[AttentionMap]]]:
    """Logits, and the maps they come from, with their graph."""
    with torch.enable_grad(), capture(model, gradients=True, exact=False) as captured:
        logits = model(inputs.detach().requires_grad_())
        maps = [attention for attention in captured.maps if attention.kind in TOKEN_KINDS]
        if not maps:
            raise CaptureError(
                f"no attention over tokens was found in {type(model).__name__}; `overfocus inspect` lists its sites"
            )
        yield logits, maps


def _weighted(maps: list[AttentionMap], score: Tensor) -> list[Float[Tensor, "batch queries keys"]]:
    """Mean over heads of (∇A ⊙ A)⁺ of each map."""
    weights: list[Tensor] = []
    for attention in maps:
        source = attention.source.source
        if not isinstance(source, MaterialisedWeights):
            raise CaptureError(f"{attention.module}: its weights are no part of the logits' graph here; use grad-cam or rollout")
        weights.append(source.weights)
    gradients = torch.autograd.grad(score, weights, allow_unused=True)
    results = []
    for attention, gradient in zip(maps, gradients, strict=True):
        if gradient is None:
            raise CaptureError(f"{attention.module}: the logits do not come from its weights; use grad-cam or rollout")
        slopes = replace(attention.source, source=MaterialisedWeights(gradient))
        queries = attention.shape[2]
        product = attention.source.rows(0, queries).detach() * slopes.rows(0, queries)
        results.append(product.relu_().mean(1))
    return results
