"""Received attention r: of weights, laid over the image, the tokens that receive most, and the shares of an image's classes."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from overfocus.metrics.catalogue import TOP_FRACTION, top_count
from overfocus.metrics.sums import profile_of, tied
from overfocus.metrics.tokens import TokenGroup, sums_of_weights
from overfocus.settings import shown, typed

if TYPE_CHECKING:
    from overfocus.metrics.sums import MapSums

Array = np.ndarray[Any, Any]


@typed(ValueError)
def received_attention(
    weights: Float[Tensor, "batch heads queries keys"],
    *,
    prefix_tokens: int = 0,
    key_prefix_tokens: int | None = None,
    per_head: bool = False,
) -> Float[Tensor, "batch *heads key_patches"]:
    """r: the share of the patches' attention that each patch receives; non-negative, sums to 1, uniform attention gives 1/N.

    NaN where the patches give all their attention to prefix tokens.

    >>> weights = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])
    >>> received_attention(weights)
    tensor([[0.7500, 0.2500]])
    """
    sums = sums_of_weights(
        weights, prefix_tokens=prefix_tokens, key_prefix_tokens=key_prefix_tokens, per_head=per_head, precise=True
    )
    profile = sums.profile if weights.dtype == torch.float64 else sums.profile.float()
    return profile.view(*weights.shape[:2], -1) if per_head else profile


@typed(ValueError)
def top_tokens(profile: Float[Tensor, "*items keys"], top_fraction: float = TOP_FRACTION) -> Int[Tensor, "*items k"]:
    """T_k(r): indices of the k = max(1, round(f·N)) tokens that receive most, most first; ties go to the lower index.

    >>> top_tokens(torch.tensor([0.2, 0.3, 0.2, 0.3]), top_fraction=0.75)
    tensor([1, 3, 0])
    """
    if profile.ndim < 1 or profile.layout is not torch.strided:
        raise ValueError(f"expected a profile (…, keys) as a dense tensor, got {shown(profile)}")
    order = torch.sort(tied(profile), dim=-1, descending=True, stable=True).indices
    return order[..., : top_count(profile.shape[-1], top_fraction)]


def image_profiles(
    groups: Sequence[TokenGroup], sums: "Sequence[MapSums]", image_grid: tuple[int, int] | None
) -> Float[Tensor, "*layers batch tokens"] | None:
    """Received attention r of each image over its key patches, windows put back where they came from; sums to 1.

    It is that of the mean over heads; `sums` are those of each group of windows. Windows weigh the same; those whose r is
    undefined are left out; patches in no window receive 0. None where the places of the windows' keys are unknown.
    """
    if groups[0].map_windows == 1:
        return _window_profiles(groups[0], sums[0]).squeeze(-2)
    total: Tensor | None = None
    for group, of_group in zip(groups, sums, strict=True):
        places = group.image_places
        if image_grid is None or places is None or tuple(places.shape) != (group.windows, group.columns):
            return None
        received = _window_profiles(group, of_group)
        if total is None:
            total = received.new_zeros(*received.shape[:-2], math.prod(image_grid))
        total.index_add_(-1, places.flatten(), received.nan_to_num(0.0).flatten(-2))
    assert total is not None
    return total / total.sum(-1, keepdim=True)


def _window_profiles(group: TokenGroup, sums: "MapSums") -> Float[Tensor, "*layers batch windows columns"]:
    layers = sums.mass.shape[:-2]
    column = sums.column.view(*layers, -1, group.windows, group.heads, group.columns).sum(-2)
    defined = sums.count.view(*layers, -1, group.windows, group.heads).sum(-1) > 0
    return profile_of(column.float(), defined=defined)


def class_areas(
    mask: UInt8[np.ndarray, "height width"], grid: tuple[int, int], ignored: int = 255
) -> tuple[Int[np.ndarray, " classes"], Float[np.ndarray, "classes rows columns"]]:
    """The classes in a mask, ascending, and the share of each token's area on the image that each of them covers.

    A token of a (rows, columns) `grid` covers a rectangle of the image; pixels on its edge count with the part inside. Over
    the classes the shares of a token add up to 1, or to less where `ignored` pixels lie in it.

    >>> class_areas(np.array([[0, 1], [1, 1]], np.uint8), (1, 1))[1].ravel()
    array([0.25, 0.75])
    """
    numbers = np.unique(mask)
    numbers = numbers[numbers != ignored].astype(np.int64)
    rows, columns = (_overlaps(*sides) for sides in zip(mask.shape, grid, strict=True))
    areas = [rows @ (mask == number).astype(np.float64) @ columns.T for number in numbers]
    return numbers, np.stack(areas) if areas else np.zeros((0, *grid))


def received_shares(
    received: Float[np.ndarray, "*images rows columns"], areas: Float[np.ndarray, "classes rows columns"]
) -> Float[np.ndarray, "*images classes"]:
    """Share of the received attention that lands on each class; a token's is spread evenly over its area.

    Between 0 and 1; NaN where the received attention is undefined. Attention that does not look at the content gives each
    class its share of the area, `areas.mean((1, 2))`; the object being looked at gives more.

    >>> areas = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> received_shares(np.array([[0.75, 0.25]]), areas)
    array([0.75, 0.25])
    """
    shares: Array = np.einsum("...rc,krc->...k", received.astype(np.float64), areas)
    return shares


def _overlaps(pixels: int, tokens: int) -> Float[np.ndarray, "tokens pixels"]:
    """Share of each token's side that each pixel covers."""
    edges = np.arange(tokens + 1) * pixels / tokens
    starts = np.arange(pixels)
    inside = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    overlaps: Array = np.clip(inside, 0, None) * tokens / pixels
    return overlaps
