"""The received attention of a map, laid over the patch grid of the image."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.attention import AttentionMap
from overfocus.metrics.patch_sums import PatchSums
from overfocus.metrics.received import profile_of
from overfocus.metrics.token_groups import TokenGroup


def image_profile(attention: AttentionMap, parts: list[tuple[TokenGroup, PatchSums]]) -> Float[Tensor, "batch tokens"] | None:
    """Received attention r of each image over its key patches, windows put back where they came from; sums to 1.

    It is that of the mean over heads. Windows weigh the same; those whose r is undefined are left out; patches in no window
    receive 0. None where the places of the windows' keys are unknown.
    """
    if attention.windows == 1:
        return _window_profiles(*parts[0]).squeeze(1)
    partition, image_grid = attention.partition, attention.image_grid
    if partition is None or image_grid is None:
        return None
    total = torch.zeros(0)
    for group, sums in parts:
        received = _window_profiles(group, sums)
        places = partition.to(received.device)
        if group.windows is not None:
            places = places[group.windows]
        if group.kept_keys is not None:
            places = places[:, group.kept_keys]
        if places.shape != received.shape[1:]:
            return None
        if not len(total):
            total = received.new_zeros(len(received), math.prod(image_grid))
        total.index_add_(1, places.flatten(), received.nan_to_num(0.0).flatten(1))
    return total / total.sum(-1, keepdim=True)


def _window_profiles(group: TokenGroup, sums: PatchSums) -> Float[Tensor, "batch windows columns"]:
    column = sums.column.view(*group.size, group.columns).sum(2)
    return profile_of(column.float(), defined=sums.counted.view(*group.size, group.rows).flatten(2).any(-1))
