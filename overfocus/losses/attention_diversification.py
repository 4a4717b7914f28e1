"""Attention Diversification Loss (ADL): of given maps, and with `diversify(model)` of what any model attends in its forward.

Source: Guo, Stutz, Schiele, "Robustifying Token Attention for Vision Transformers", ICCV 2023, section 3.2.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.attention import AttentionMap
from overfocus.capturing import Captured, capture
from overfocus.errors import OverfocusError
from overfocus.losses.row_alignment import arrange, row_alignment


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
            NoGradientError: a layer ran without gradients in a forward with gradients, as under reentrant checkpoints.
            ValueError: a layer does not exist.
        """
        maps = [attention for attention in self._captured.maps if attention.kind in DIVERSIFIED_KINDS]
        self._captured.clear()
        if not maps:
            raise NoAttentionError(
                "expected attention between tokens to diversify, got none; run the model inside the block, before adl.loss()"
            )
        chosen = self._chosen(maps)
        hidden = [attention.module for attention in chosen if attention.module in self._captured.tracer.without_gradient]
        if hidden and torch.is_grad_enabled():
            raise NoGradientError(
                f"{hidden[0]}: its attention ran without gradients, so the loss could not train it; under activation checkpoints "
                "use the other kind, checkpoint(…, use_reentrant=False), or run this layer outside of torch.no_grad()"
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
