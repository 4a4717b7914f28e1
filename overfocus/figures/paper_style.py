"""The look of figures for papers: small type, embedded fonts, text that stays text, and the size of a column."""

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.errors import RunError
from overfocus.figures.style import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("pdf", "svg", "png")
INCHES_PER = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}
"""TeX's point, in which \\columnwidth is printed."""
PAPER: Any = STYLE | {
    "pdf.fonttype": 42,  # TrueType, which publishers ask for; matplotlib's default, Type 3, is refused by some
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "savefig.dpi": 300,
}


def paper() -> AbstractContextManager[None]:
    """The settings that a figure for a paper is drawn and saved with."""
    import matplotlib as mpl

    return mpl.rc_context(PAPER)


def inches(width: str) -> float:
    """A width such as "3.3in", "8.4cm", "84mm" or "240pt" in inches; a bare number is inches.

    Raises:
        ValueError: it is none, or not between 0.5 and 30 inches.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(in|cm|mm|pt)?\s*", width)
    size = float(found[1]) * INCHES_PER[found[2] or "in"] if found else 0.0
    if not 0.5 <= size <= 30:
        raise ValueError(f"expected a width such as 3.3in, 8.4cm or 240pt (0.5 to 30 inches), got {width!r}")
    return size


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure in the format of the path's ending; call inside `paper()`.

    Raises:
        RunError: the file cannot be written.
    """
    dated = {"pdf": "CreationDate", "svg": "Date"}.get(path.suffix.lstrip("."))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={dated: None} if dated else None)  # the same run gives the same file
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}); choose another output") from error
    return path
