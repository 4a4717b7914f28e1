"""What a map is: its kind, its grids, its windows, worked out from the positions of its queries and keys."""

from dataclasses import dataclass

import torch
from torch import Tensor

from overfocus.attention import Kind
from overfocus.capturing.arrange import arrange, padded_alike
from overfocus.capturing.positions import Positions, constant, representative
from overfocus.capturing.sources import Arrangement
from overfocus.capturing.tokens import branch_of, cell_grid, token_places


@dataclass(frozen=True, eq=False)
class Layout:
    """Everything about a map except its weights; the same for every call with inputs of the same size."""

    kind: Kind
    arrangement: Arrangement
    tokens: tuple[int, ...]
    """(queries, keys) of the model's own map."""
    prefix_tokens: int = 0
    key_prefix_tokens: int = 0
    grid: tuple[int, int] | None = None
    key_grid: tuple[int, int] | None = None
    image_grid: tuple[int, int] | None = None
    partition: Tensor | None = None
    branch: str | None = None
    reason: str | None = None
    """Why the map cannot be used; None where it can."""


def is_channel_map(values: Positions) -> bool:
    """Whether the keys of a map are channels: along them every value is at the same place, across them places differ."""
    return constant(values.ids, -2) and not constant(values.ids, -1)


def channel_layout(shape: tuple[int, ...]) -> Layout:
    """Layout of channels that attend channels."""
    heads = shape[1:-2]
    axes = (("image",), *(("head",) for _ in heads))
    return Layout("channel", Arrangement(axes, ((-1,), *((size,) for size in heads))), shape[-2:])


def token_positions(tensor: Positions) -> Tensor:
    """One position per token of queries, keys or values (…, tokens, width), (…, tokens)."""
    return representative(tensor.ids, -1).squeeze(-1)


def infer_layout(
    shape: tuple[int, ...],
    queries: Tensor | None,
    keys: Tensor,
    query_image: tuple[int, int] | None,
    key_image: tuple[int, int] | None,
    *,
    padding_attended: bool = False,
) -> Layout | None:
    """Layout of a map from the positions of its tokens.

    `shape` is (…, queries, keys); `queries` (…, queries) and `keys` (…, keys) are positions, broadcastable to the axes in
    front; `query_image` and `key_image` are the image grids that they point into; `padding_attended` says that no mask hides
    padding. None where the axes cannot be told apart.
    """
    leading = shape[:-2]
    keys = keys.expand(*leading, shape[-1]).cpu()
    arrangement = arrange(keys)
    if arrangement is None:
        return None
    if arrangement.windows == 1 and not padded_alike(arrangement, keys):
        return Layout(
            "global",
            arrangement,
            shape[-2:],
            reason="images of different sizes share the batch: give one size per batch",
        )
    windows = arrangement.windows
    windowed = windows > 1 or padding_attended
    key_tokens = token_places(arrangement, keys, key_image, keeps_padding=windowed)
    query_tokens = None
    if queries is not None:
        queries = queries.expand(*leading, shape[-2]).cpu()
        query_tokens = token_places(arrangement, queries, query_image, keeps_padding=windowed)
    if query_tokens is None or bool(query_tokens.prefix.all()):
        kind: Kind = "class"
        query_tokens = None
    elif windowed:
        kind = "window"
    elif query_tokens.grid == key_tokens.grid and torch.equal(query_tokens.ordered(), key_tokens.ordered()):
        kind = "global"
    else:
        kind = "pooled"
    key_order = key_tokens.order()
    key_prefix = int(key_tokens.prefix.sum())
    places = key_tokens.ordered()[:, key_prefix:]
    key_grid = cell_grid(places, key_tokens.grid)
    grid = key_grid
    if query_tokens is not None:
        query_prefix = int(query_tokens.prefix.sum())
        grid = cell_grid(query_tokens.ordered()[:, query_prefix:], query_tokens.grid)
    return Layout(
        kind=kind,
        arrangement=Arrangement(
            arrangement.axes, arrangement.sizes, None if query_tokens is None else query_tokens.order(), key_order
        ),
        tokens=shape[-2:],
        prefix_tokens=shape[-2] if query_tokens is None else int(query_tokens.prefix.sum()),
        key_prefix_tokens=key_prefix,
        grid=grid,
        key_grid=key_grid,
        image_grid=key_tokens.grid,
        partition=places.clamp(min=-1) if windowed else None,
        branch=branch_of(places, key_tokens.grid) if windows > 1 else None,
    )
