"""The received attention of a map, laid over the patch grid of the image."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.attention import AttentionMap
from overfocus.metrics.group_measurement import GroupMeasurement


def image_profile(groups: list[GroupMeasurement], attention: AttentionMap) -> Float[Tensor, "batch tokens"] | None:
    """Received attention r of each image over its key patches, windows put back where they came from; sums to 1.

    Windows weigh the same; those whose r is undefined are left out; patches in no window receive 0. None where the places of the
    windows' keys are unknown.
    """
    if attention.windows == 1:
        return groups[0].received().squeeze(1)
    partition, image_grid = attention.partition, attention.image_grid
    if partition is None or image_grid is None:
        return None
    total = torch.zeros(0)
    for measured in groups:
        received = measured.received()
        places = partition.to(received.device)
        if measured.group.windows is not None:
            places = places[measured.group.windows]
        if measured.group.kept_keys is not None:
            places = places[:, measured.group.kept_keys]
        if places.shape != received.shape[1:]:
            return None
        if not len(total):
            total = received.new_zeros(len(received), math.prod(image_grid))
        total.index_add_(1, places.flatten(), received.nan_to_num(0.0).flatten(1))
    return total / total.sum(-1, keepdim=True)
