"""ADL as the paper writes it, on whole maps."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

Textbook = Callable[..., Tensor]


@pytest.fixture(scope="session")
def textbook() -> Textbook:
    """(maps, heads, queries, keys) → mean cosine of thresholded rows with their thresholded mean."""

    def loss(weights: Tensor, threshold: float = 2.0, prefix_queries: int = 0, prefix_keys: int = 0) -> Tensor:
        mean_map = weights.mean(1)[:, prefix_queries:, prefix_keys:]
        received = mean_map.mean(1)
        limit = threshold / mean_map.shape[-1]
        rows = torch.where(mean_map > limit, mean_map, 0.0)
        received = torch.where(received > limit, received, 0.0)
        return F.cosine_similarity(received.unsqueeze(1).expand_as(rows), rows, dim=-1).mean()

    return loss
