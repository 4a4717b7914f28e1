"""Attention Diversification Loss (ADL) on maps that are there already.

Source: Guo, Stutz, Schiele, "Robustifying Token Attention for Vision Transformers", ICCV 2023, section 3.2.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.losses.row_alignment import row_alignment
from overfocus.losses.weight_blocks import arrange


class AttentionDiversificationLoss(nn.Module):
    """Mean over layers of how alike the rows of each attention map are; 0 … 1, high = every token attends alike.

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
