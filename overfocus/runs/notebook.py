"""The methods that runs and comparisons have in a notebook.

What draws is attached from outside, by `overfocus` itself: results know nothing of figures.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from overfocus.errors import RunError
from overfocus.settings import typed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

figures: Callable[[], Any] | None = None
"""Gives the module that draws (`overfocus.figures.draw`)."""

Names = str | Sequence[str] | None
"""One name, several, or None for the usual ones."""


class NotebookMethods:
    """Figures of what a class holds, which says itself which runs these are."""

    def _shown_runs(self) -> tuple[Sequence[Any], Sequence[str]]:
        """The runs to draw and a name for each; one run or several."""
        raise NotImplementedError

    @typed(RunError)
    def plot_layers(self, metrics: Names = None, corruption: Names = None, severity: int | None = None) -> "Figure":
        """Metrics over depth, clean and corrupted (by default at the middle severity), with 95 % intervals over images.

        Raises:
            RunError: what was asked for was not measured; the message lists what there is.
        """
        figure: Figure = _drawing().plot_layers(*self._shown_runs(), metrics, corruption, severity)
        return figure

    @typed(RunError)
    def plot_stability(self, metrics: Names = None, corruption: Names = None, severity: int | None = None) -> "Figure":
        """Stability metrics against severity (against corruption where there is one severity), with 95 % intervals.

        Raises:
            RunError: what was asked for was not measured; the message lists what there is.
        """
        figure: Figure = _drawing().plot_stability(*self._shown_runs(), metrics, corruption, severity)
        return figure

    @typed(RunError)
    def show(
        self, image: int | str | None = None, layer: int | None = None, corruption: Names = None, severity: int | None = None
    ) -> "Figure":
        """One displayed image (number or name) under its received attention, clean and corrupted; of one run its matrices too.

        `layer` is by default the most overfocused one; colours are multiples of uniform attention.

        Raises:
            RunError: its maps were not kept, or what was asked for was not measured.
        """
        figure: Figure = _drawing().show(*self._shown_runs(), image, layer, corruption, severity)
        return figure

    def _repr_html_(self) -> str:
        return str(_drawing().as_html(self))


def _drawing() -> Any:
    if figures is None:
        raise RuntimeError("figures are attached by the package overfocus; import it before its modules")
    return figures()
