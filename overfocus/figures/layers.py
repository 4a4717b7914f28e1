"""The layers of a run."""

from typing import TYPE_CHECKING

from overfocus.runs.description import Layer

if TYPE_CHECKING:
    from overfocus.run import Run

__all__ = ["Layer", "layers_of"]


def layers_of(run: "Run") -> list[Layer]:
    """The layers of a run, in the order in which the model called them."""
    return run.layers
