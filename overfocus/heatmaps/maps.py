"""Heat maps of one batch of pictures: per layer what the patches receive or one token attends, or rollout over all layers."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.attention import TOKEN_KINDS, AttentionMap
from overfocus.capturing import capture
from overfocus.errors import CaptureError
from overfocus.heatmaps.one_head import one_head
from overfocus.heatmaps.rows import Query, attended, patch_number, query_grid, usual_query
from overfocus.metrics import measure
from overfocus.rollout import HeadFusion, attention_rollout, token_row

Method = Literal["received", "rollout", "row"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class HeatMapRequest:
    """What to show.

    Raises:
        ValueError: unknown method, or options that the method has no meaning for.
    """

    method: Method = "received"
    """"received": the attention that each patch receives from all patches; "row": where one query attends; "rollout":
    attention followed through all layers (Abnar & Zuidema 2020)."""
    layer: int | None = None
    """Counted in call order, negative from the last; None shows every layer."""
    head: int | None = None
    """None takes the mean over heads (for rollout, what `head_fusion` says)."""
    query: Query | None = None
    """Of "row" and "rollout": the class token, or (row, column) of a patch; None takes the class token, or without one the
    middle patch (for rollout the mean over patches)."""
    head_fusion: HeadFusion = "mean"
    discard_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"expected method to be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.method == "rollout" and self.layer is not None:
            raise ValueError("rollout goes through all layers; leave layer out, or take the method row or received")
        if self.method == "received" and self.query is not None:
            raise ValueError("received attention is that of all queries; leave query out, or take the method row")
        if self.method != "rollout" and (self.head_fusion != "mean" or self.discard_ratio):
            raise ValueError("head_fusion and discard_ratio belong to the method rollout")


@dataclass(frozen=True)
class HeatMap:
    """One map over the picture."""

    label: str
    """Which layer, in few words."""
    module: str
    """Name of its module; empty for rollout."""
    values: Float[Tensor, "batch rows columns"]
    """Multiples of uniform attention; NaN where the query's window does not reach."""
    query: tuple[int, int] | None
    """The patch that asks, if one does."""
    query_grid: tuple[int, int] | None


@torch.no_grad()
def heat_maps(model: nn.Module, inputs: Tensor, request: HeatMapRequest) -> list[HeatMap]:
    """Run the model on a batch of inputs and lay its attention over their patch grids, one map per layer asked for.

    Raises:
        CaptureError: no attention over tokens, or the layer, head or query does not exist.
    """
    if request.method == "rollout":
        with capture(model) as captured:
            model(inputs)
        return [_rollout([attention for attention in captured.maps if attention.kind in TOKEN_KINDS], request)]
    counted = -1

    def reduce(attention: AttentionMap) -> HeatMap | None:
        nonlocal counted
        if attention.kind not in TOKEN_KINDS:
            return None
        counted += 1
        return _layer_map(attention, counted, request) if request.layer in (None, counted) or request.layer < 0 else None

    with capture(model, reduce=reduce) as streamed:
        model(inputs)
    found: list[Any] = [kept for kept in streamed.reduced if kept is not None]
    if counted < 0:
        raise CaptureError(f"no attention over tokens was found in {type(model).__name__}; `overfocus inspect` lists its sites")
    if request.layer is None:
        return found
    if not -counted - 1 <= request.layer <= counted:
        raise CaptureError(f"layer must be between {-counted - 1} and {counted} for this model, got {request.layer}")
    return [found[request.layer if request.layer < 0 else 0]]


def _layer_map(attention: AttentionMap, number: int, request: HeatMapRequest) -> HeatMap:
    heads = attention if request.head is None else one_head(attention, request.head)
    label = f"layer {number}" + (f", {attention.branch}" if attention.branch else "")
    if request.method == "row":
        query = usual_query(attention) if request.query is None else request.query
        patch = None if query == "class" else query
        return HeatMap(label, attention.module, attended(heads, query), patch, query_grid(attention) if patch else None)
    grid, received = attention.image_grid, measure(heads, profiles=True).get("received")
    if grid is None or received is None:
        raise CaptureError(f"{attention.module}: its patches have no known grid, so they cannot be laid over the picture")
    return HeatMap(label, attention.module, received.reshape(-1, *grid) * received.shape[-1], None, None)


def _rollout(maps: list[AttentionMap], request: HeatMapRequest) -> HeatMap:
    """Rollout of one token, its shares of the patches in multiples of an even share."""
    if request.head is not None:
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
