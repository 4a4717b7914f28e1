"""What a model is trained for, as the training loop sees it."""

from typing import Any, NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor, nn


class Part(NamedTuple):
    """One forward of a step."""

    inputs: Float[Tensor, "batch channels height width"]
    targets: Tensor
    diversified: bool
    """Whether the attention diversification loss is taken of it."""


class Objective(Protocol):
    """The loss of a task and how well the task is done."""

    unit: str
    """What the loss is measured in."""
    sums: int
    """How many numbers `score` gives."""

    def network(self, model: nn.Module) -> nn.Module:
        """The part of the trained model that is kept in the end, whose attention ADL sees; usually all of it."""
        ...

    def parts(self, images: Float[Tensor, "batch channels height width"], targets: Tensor) -> list[Part]:
        """The forwards of a batch, in order; their losses are added. May draw from the global generators."""
        ...

    def loss(self, output: Any, targets: Tensor) -> Float[Tensor, ""]:
        """Mean loss of one forward."""
        ...

    def right(self, output: Any, targets: Tensor) -> Float[Tensor, " 2"]:
        """How many answers to a training batch are right, and of how many; 0 of 0 where nothing can be right."""
        ...

    def score(self, output: Any, targets: Tensor) -> Float[Tensor, " sums"]:
        """What `summarise` needs of a validation batch, to be added up over batches and processes."""
        ...

    def summarise(self, sums: Float[Tensor, " sums"]) -> dict[str, float]:
        """Columns of the log, of the sums in float64: validation_loss and how well the task is done."""
        ...
