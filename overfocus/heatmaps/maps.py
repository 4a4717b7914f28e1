"""Heat maps of one batch of images: what patches receive, where one token attends, rollout, and evidence for a class.

Evidence for a class is attention × gradient rollout, or Grad-CAM on tokens. A recomputed map is not part of the logits' graph,
so capture computes fused attention there from the same weights that it holds (`exact=False`).

Sources: H. Chefer, S. Gur, L. Wolf, "Generic Attention-model Explainability", ICCV 2021, section 3.1; R. Selvaraju et al.,
"Grad-CAM", ICCV 2017.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.attention import TOKEN_KINDS, AttentionMap, attention_rollout, token_row
from overfocus.capturing import capture
from overfocus.capturing.sources import ArrangedWeights, MaterialisedWeights
from overfocus.errors import CaptureError
from overfocus.metrics import measure
from overfocus.sweep.settings import HeatMapRequest, Query


def gradient_rollout(
    model: nn.Module, inputs: Tensor, target: int | None, row: int | None = None
) -> tuple[Float[Tensor, "batch tokens"], AttentionMap, int]:
    """How much each token contributes to a class: R ← R + mean over heads of (∇A ⊙ A)⁺ · R through the global layers, from R = I.

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
            raise CaptureError(f"{attention.module}: its weights are not part of the logits' graph; use grad-cam or rollout")
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


@dataclass(frozen=True)
class HeatMap:
    """One map over the image."""

    label: str
    """Which layer, in few words."""
    module: str
    """Name of its module; empty for a rollout."""
    values: Float[Tensor, "batch rows columns"]
    """Multiples of uniform attention; NaN where the query's window does not reach."""
    query: tuple[int, int] | None
    """The patch that asks, if one does."""
    query_grid: tuple[int, int] | None
    layer: int | None = None
    """Counted from 0; None for a rollout."""
    head: int | None = None
    """Counted from 0; None for all together."""
    target: int | None = None
    """The class that the map is of; None for a method without one."""


@torch.no_grad()
def heat_maps(model: nn.Module, inputs: Tensor, request: HeatMapRequest) -> list[HeatMap]:
    """Run the model on a batch of inputs and lay its attention over their patch grids, one map per layer asked for.

    Raises:
        CaptureError: no attention over tokens, or the layer, head or query does not exist.
    """
    if request.method == "gradient-rollout":
        return [_gradient_rollout(model, inputs, request)]
    if request.method == "grad-cam":
        cams, target = grad_cam(model, inputs, _number(request))
        laid = [
            HeatMap(f"layer {number}", cam.attention.module, _laid(cam), None, None, number, target=target)
            for number, cam in enumerate(cams)
            if cam is not None
        ]
        chosen = _chosen(laid, len(cams), request)
        if not chosen:
            raise CaptureError(f"layer {request.layer}: its tokens or their patch grid are not known, which Grad-CAM needs")
        return chosen
    if request.method == "rollout":
        with capture(model) as captured:
            model(inputs)
        return [_rollout([attention for attention in captured.maps if attention.kind in TOKEN_KINDS], request)]
    counted = 0

    def reduce(attention: AttentionMap) -> list[HeatMap]:
        nonlocal counted
        if attention.kind not in TOKEN_KINDS:
            return []
        number, counted = counted, counted + 1
        if request.layer is not None and request.layer >= 0 and request.layer != number:
            return []
        heads = range(attention.shape[1]) if request.head == "all" else [request.head]
        return [_layer_map(attention, number, head, request) for head in heads]

    with capture(model, reduce=reduce) as streamed:
        model(inputs)
    if not counted:
        raise CaptureError(f"no attention over tokens was found in {type(model).__name__}; `overfocus inspect` lists its sites")
    return _chosen([map for kept in streamed.reduced if kept for map in kept], counted, request)


def _chosen(maps: list[HeatMap], layers: int, request: HeatMapRequest) -> list[HeatMap]:
    """The maps of the layer asked for."""
    if request.layer is None:
        return maps
    if not -layers <= request.layer < layers:
        raise CaptureError(f"layer must be between {-layers} and {layers - 1} for this model, got {request.layer}")
    return [map for map in maps if map.layer == request.layer % layers]


def _layer_map(attention: AttentionMap, number: int, head: int | None, request: HeatMapRequest) -> HeatMap:
    heads = attention if head is None else one_head(attention, head)
    head = None if head is None else head % attention.shape[1]
    label = f"layer {number}" + (f", {attention.branch}" if attention.branch else "")
    label += f", head {head}" if request.head == "all" else ""
    if request.method == "row":
        query = usual_query(attention) if request.query is None else request.query
        patch = None if query == "class" else query
        grid = query_grid(attention) if patch else None
        return HeatMap(label, attention.module, attended(heads, query), patch, grid, number, head)
    grid, received = attention.image_grid, measure(heads, profiles=True).get("received")
    if grid is None or received is None:
        raise CaptureError(f"{attention.module}: its patches have no known grid, so they cannot be laid over the image")
    values = received.reshape(-1, *grid) * received.shape[-1]
    return HeatMap(label, attention.module, values, None, None, number, head)


def _number(request: HeatMapRequest) -> int | None:
    if isinstance(request.target, str):
        raise ValueError(f"expected the number of a class, got the name {request.target!r}; `overfocus.heatmap` knows names")
    return request.target


def _gradient_rollout(model: nn.Module, inputs: Tensor, request: HeatMapRequest) -> HeatMap:
    """Relevance of the patches for the class, in multiples of their mean."""
    query = request.query
    row = None
    if query is not None:
        with torch.no_grad(), capture(model) as captured:
            model(inputs)
        first = next((attention for attention in captured.maps if attention.kind == "global"), None)
        if first is None or (query == "class" and not first.prefix_tokens):
            raise CaptureError("expected a model with global attention, and a class token for the query class; got none")
        row = 0 if query == "class" else first.prefix_tokens + patch_number(first, query, query_grid(first))
    relevance, first, target = gradient_rollout(model, inputs, _number(request), row)
    grid = query_grid(first)
    laid = relevance[:, relevance.shape[1] - grid[0] * grid[1] :].reshape(-1, *grid)
    patch = None if query is None or query == "class" else query
    return HeatMap("attention × gradient through all layers", "", _relative(laid), patch, grid if patch else None, target=target)


def _laid(cam: Cam) -> Float[Tensor, "batch rows columns"]:
    """Grad-CAM on the grid of the image, windows put back where they lie, in multiples of its mean."""
    attention, patches = cam.attention, cam.patches
    if attention.kind != "window":
        return _relative(patches.reshape(-1, *cam.grid))
    grid, places = query_grid(attention), attention.partition
    if places is None:
        raise CaptureError(f"{attention.module}: the positions of its windows are unknown, so they cannot be laid over the image")
    places = places.to(patches.device).flatten()
    laid = torch.zeros(len(patches) // attention.windows, math.prod(grid), device=patches.device)
    laid[:, places[places >= 0]] = patches.reshape(len(laid), -1)[:, places >= 0]
    return _relative(laid.reshape(-1, *grid))


def _relative(values: Float[Tensor, "batch rows columns"]) -> Float[Tensor, "batch rows columns"]:
    """Values in multiples of their mean over the image; 0 everywhere where there is no evidence for the class."""
    mean = values.mean((1, 2), keepdim=True)
    return torch.where(mean > 0, values / mean, 0.0)


def _rollout(maps: list[AttentionMap], request: HeatMapRequest) -> HeatMap:
    """Rollout of one token, its shares of the patches in multiples of an even share."""
    if isinstance(request.head, int):
        maps = [one_head(attention, request.head) for attention in maps]
    rolled = attention_rollout(maps, head_fusion=request.head_fusion, discard_ratio=request.discard_ratio)
    first = next(attention for attention in maps if attention.kind == "global")
    grid, prefix = query_grid(first), first.prefix_tokens
    patch = None if request.query is None or request.query == "class" else request.query
    if request.query == "class" and not prefix:
        raise CaptureError(f"{first.module}: has no class token; choose a patch as row,column")
    number = None if patch is None else prefix + patch_number(first, patch, grid)
    laid = token_row(rolled, prefix_tokens=prefix, grid=grid, query=number)
    share = laid / laid.sum((-2, -1), keepdim=True)
    return HeatMap("rollout through all layers", "", share * (grid[0] * grid[1]), patch, grid if patch else None)


def usual_query(attention: AttentionMap) -> Query:
    """The class token where the layer has one, else the patch in the middle."""
    if attention.kind == "class" or (attention.kind != "window" and attention.prefix_tokens):
        return "class"
    rows, columns = query_grid(attention)
    return rows // 2, columns // 2


def query_grid(attention: AttentionMap) -> tuple[int, int]:
    """(rows, columns) of the patches that queries are chosen from.

    Raises:
        CaptureError: they have no known grid.
    """
    grid = attention.image_grid if attention.kind == "window" else attention.grid
    if grid is None:
        raise CaptureError(f"{attention.module}: its patches have no known grid, so they cannot be laid over the image")
    return grid


def attended(attention: AttentionMap, query: Query) -> Float[Tensor, "batch rows columns"]:
    """What `query` attends, mean over heads, in multiples of uniform attention on the key patches' grid; NaN out of its window.

    Raises:
        CaptureError: the layer has no such query, or no known grid.
    """
    if attention.kind == "window":
        return _in_window(attention, query)
    grid = query_grid(attention)
    keys = attention.key_grid or grid
    number = 0 if query == "class" else attention.prefix_tokens + patch_number(attention, query, grid)
    if query == "class" and not attention.prefix_tokens:
        raise CaptureError(f"{attention.module}: has no class token; choose a patch as row,column, e.g. {_middle(grid)}")
    if query != "class" and attention.kind == "class":
        raise CaptureError(f"{attention.module}: only the class token attends here; choose the query class")
    row = attention.rows(number, number + 1).mean(1)[:, 0]
    patches = row[:, row.shape[-1] - math.prod(keys) :]
    return patches.reshape(-1, *keys) * row.shape[-1]


def _in_window(attention: AttentionMap, query: Query) -> Tensor:
    grid, partition = query_grid(attention), attention.partition
    if partition is None:
        raise CaptureError(f"{attention.module}: the positions of its windows are unknown, so they cannot be laid over the image")
    if query == "class":
        raise CaptureError(f"{attention.module}: windows have no class token; choose a patch as row,column, e.g. {_middle(grid)}")
    held = (partition == patch_number(attention, query, grid)).nonzero()
    if not len(held):
        raise CaptureError(f"{attention.module}: the patch {query[0]},{query[1]} is in no window; choose another")
    window, token = (int(number) for number in held[0])
    number = attention.prefix_tokens + token
    rows = attention.rows(number, number + 1).mean(1)[window :: attention.windows, 0]
    patches = rows[:, rows.shape[-1] - partition.shape[1] :] * rows.shape[-1]
    places = partition[window].to(rows.device)
    laid = torch.full((len(rows), math.prod(grid)), torch.nan, device=rows.device)
    laid[:, places[places >= 0]] = patches[:, places >= 0]
    return laid.reshape(-1, *grid)


def patch_number(attention: AttentionMap, query: tuple[int, int], grid: tuple[int, int]) -> int:
    """Number of a patch in its grid, row by row.

    Raises:
        CaptureError: it lies outside.
    """
    (row, column), (rows, columns) = query, grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise CaptureError(
            f"{attention.module}: expected a query from 0,0 to {rows - 1},{columns - 1} (row,column), got {row},{column}"
        )
    return row * columns + column


def _middle(grid: tuple[int, int]) -> str:
    return f"{grid[0] // 2},{grid[1] // 2}"


@dataclass(eq=False)
class HeadWeights(ArrangedWeights):
    """Weights of one head, (images · windows, 1, queries, keys)."""

    head: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images · windows, 1, queries, keys)."""
        maps, _, queries, keys = super().shape
        return maps, 1, queries, keys

    def rows(self, start: int, stop: int, images: slice | None = None) -> Tensor:
        """Weights of those queries (and images) in that head."""
        return super().rows(start, stop, images)[:, self.head : self.head + 1]


def one_head(attention: AttentionMap, head: int) -> AttentionMap:
    """The map of head `head`, counted from 0; negative numbers count from the last.

    Raises:
        CaptureError: the layer has no such head.
    """
    heads = attention.shape[1]
    if not -heads <= head < heads:
        raise CaptureError(f"{attention.module}: head must be between {-heads} and {heads - 1}, got {head}")
    source = attention.source
    return replace(attention, source=HeadWeights(source.source, source.arrangement, head % heads))
