"""The look that all figures share: small text, thin axes, the report's ink."""

from contextlib import AbstractContextManager
from typing import Any

from overfocus.figures.colours import INK

STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of files and models may hold dollar signs
    "svg.hashsalt": "overfocus",
    "font.size": 9.0,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "white",
    "savefig.dpi": 150,
}
"""Matplotlib settings."""


def styled() -> AbstractContextManager[None]:
    """The settings that every figure is drawn and saved with."""
    import matplotlib as mpl

    return mpl.rc_context(STYLE)
