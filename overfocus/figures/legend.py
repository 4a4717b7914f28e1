"""One legend for all panels of a figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HANDLE, CHARACTER = 0.55, 0.062
"""Inches that a line and its margins take, and one character of 7 points."""


def legend_below(figure: "Figure", handles: Sequence[Any], labels: Sequence[str], width: float) -> None:
    """Put the legend below the panels, in as many columns as fit a figure of `width` inches."""
    longest = max((len(label) for label in labels), default=0)
    columns = max(1, int(width / (HANDLE + CHARACTER * longest)))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels) or 1), handlelength=2.6)
