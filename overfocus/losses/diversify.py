"""`diversify(model)`: the attention diversification loss of any model, from the attention of its own forward."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn

from overfocus.attention import AttentionMap
from overfocus.capturing import Captured, capture
from overfocus.errors import OverfocusError
from overfocus.losses.attention_diversification import check_threshold, mean_over_layers
from overfocus.losses.row_alignment import row_alignment

DIVERSIFIED_KINDS = ("global", "window", "pooled")


class NoAttentionError(OverfocusError):
    """A model has no attention between tokens, or has not run."""


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
            ValueError: a layer does not exist.
        """
        maps = [attention for attention in self._captured.maps if attention.kind in DIVERSIFIED_KINDS]
        self._captured.clear()
        if not maps:
            raise NoAttentionError(
                "expected attention between tokens to diversify, got none; run the model inside the block, before adl.loss()"
            )
        return mean_over_layers([self._alignment(attention) for attention in self._chosen(maps)])

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
