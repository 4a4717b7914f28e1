"""The methods that runs and comparisons have in a notebook; matplotlib is imported when one is called."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from overfocus.run import Run

Names = str | Sequence[str] | None
"""One name, several, or None for the usual ones."""


class NotebookMethods:
    """Figures of what a class holds, which says itself which runs these are."""

    def _shown_runs(self) -> "tuple[Sequence[Run], Sequence[str]]":
        """The runs to draw and a name for each; one run or several."""
        raise NotImplementedError

    def plot_layers(self, metrics: Names = None, corruption: Names = None, severity: int | None = None) -> "Figure":
        """Metrics over depth, clean and corrupted (at the middle severity unless told), with 95 % intervals over images.

        Raises:
            RunError: what was asked for was not measured; the message lists what there is.
        """
        from overfocus.figures.notebook import plot_layers

        return plot_layers(*self._shown_runs(), metrics, corruption, severity)

    def plot_stability(self, metrics: Names = None, corruption: Names = None, severity: int | None = None) -> "Figure":
        """Stability metrics against severity (against corruption where there is one severity), with 95 % intervals.

        Raises:
            RunError: what was asked for was not measured; the message lists what there is.
        """
        from overfocus.figures.notebook import plot_stability

        return plot_stability(*self._shown_runs(), metrics, corruption, severity)

    def show(
        self, image: int | str | None = None, layer: int | None = None, corruption: Names = None, severity: int | None = None
    ) -> "Figure":
        """One displayed image (number or name) under its received attention, clean and corrupted; of one run its matrices too.

        `layer` is the most overfocused one unless told; colours are multiples of uniform attention.

        Raises:
            RunError: its maps were not kept, or what was asked for was not measured.
        """
        from overfocus.figures.notebook import show

        return show(*self._shown_runs(), image, layer, corruption, severity)
