"""The look that all figures share: colours, the page's style, the style of papers, legends."""

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.text import Text

from overfocus.errors import RunError, explain
from overfocus.files import atomic_file, remove_unfinished
from overfocus.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes


INK = "#1a1d23"
"""Text and axes of every figure; inside the page it becomes the page's own text colour."""
OKABE_ITO = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Without black, which is the clean image, and yellow, which is invisible on white."""
DASHES = ("-", "--", ":", "-.")
SEQUENTIAL = "viridis"
DIFFERENCE = ("#0072B2", "#D55E00")
"""Less and more attention than clean; no difference is clear, so that it works on light, on dark and on images."""
MISSING = "#8a8f98"


def line_style(number: int) -> tuple[str, str]:
    """Colour and dash of the corruption with this number: colours first, then the same colours dashed."""
    return OKABE_ITO[number % len(OKABE_ITO)], DASHES[(number // len(OKABE_ITO)) % len(DASHES)]


def lookup_table(name: str) -> npt.NDArray[np.uint8]:
    """A matplotlib colour map as (256, 3) bytes."""
    import matplotlib as mpl

    return np.round(255 * mpl.colormaps[name](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)


def reads_dark(colour: npt.NDArray[np.uint8]) -> bool:
    """Whether text on this colour (red, green, blue bytes) has to be white, by WCAG relative luminance."""
    linear = np.where(colour / 255 <= 0.04045, colour / 255 / 12.92, ((colour / 255 + 0.055) / 1.055) ** 2.4)
    return bool(linear @ np.array([0.2126, 0.7152, 0.0722]) < 0.179)


ORDER = (1, 0, 2, 3, 4, 5)


def model_colour(number: int) -> str:
    """Colour of the model with this number; the baseline is 0."""
    return OKABE_ITO[ORDER[number % len(ORDER)]]


def model_dash(number: int) -> str:
    """Dash of its lines, which differs where colours repeat."""
    return DASHES[(number // len(ORDER)) % len(DASHES)]


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
    "axes.axisbelow": True,  # no grid over bars
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
        ValueError: it is not a width, or not between 0.5 and 30 inches.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(in|cm|mm|pt)?\s*", width)
    size = float(found[1]) * INCHES_PER[found[2] or "in"] if found else 0.0
    if not 0.5 <= size <= 30:
        raise ValueError(f"expected a width such as 3.3in, 8.4cm or 240pt (0.5 to 30 inches), got {width!r}")
    return size


def save_figure(figure: "Figure", path: Path, **options: Any) -> Path:
    """Write a figure whole or not at all, in the format of the path's ending; call inside `paper()` or `styled()`.

    Raises:
        RunError: the file cannot be written.
    """
    form = path.suffix.lstrip(".").lower()
    dated = {"pdf": "CreationDate", "svg": "Date"}.get(form)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent)
        with atomic_file(path) as file:
            metadata = {dated: None} if dated else None  # the same run gives the same file
            figure.savefig(file, format=form, metadata=metadata, **options)
    except OSError as error:
        raise RunError(f"the figure cannot be written ({explain(error)})") from error
    return path


class PlainFigure(Figure):
    """What the methods of `Run` and `Comparison` return; `savefig` writes it as any figure."""

    def draw(self, renderer: Any) -> None:
        """Draw it, every character of its texts visible: names of models and classes come from outside."""
        for axis in (axis for axes in self.axes for axis in (axes.xaxis, axes.yaxis)):
            own = vars(axis.get_major_formatter())
            if "format_ticks" not in own:
                own["format_ticks"] = partial(_visible_labels, axis.get_major_formatter().format_ticks)
        for text in self.findobj(Text):
            text.set_text(visible(text.get_text()))
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        """For notebooks."""
        buffer = io.BytesIO()
        with styled():
            self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def _visible_labels(labels: Callable[[Any], list[str]], values: Any) -> list[str]:
    return [visible(label) for label in labels(values)]


LINE = 20
"""Characters of a line of a label that stands beside a panel."""


def axis_label(title: str, unit: str) -> str:
    r"""A quantity for an axis in short lines; its unit stands below unless that takes more than one line.

    >>> axis_label("Jensen–Shannon divergence", "bits")
    'Jensen–Shannon\ndivergence\n(bits)'
    """
    title = title.replace("top k", "top\N{NO-BREAK SPACE}k")
    parts = [title] if len(title) <= LINE else re.split("(?<=:) ", title)
    lines = [line for part in parts for line in textwrap.wrap(part, LINE)]
    return "\n".join(lines if len(unit) + 2 > LINE or len(lines) > 2 else [*lines, f"({unit})"])


def name_lines(name: str, width: int) -> list[str]:
    """A name in lines of at most `width` characters, broken at spaces and after _ - . / where it can be.

    >>> name_lines("fashion_mnist_vit, gaussian noise 3", 16)
    ['fashion_mnist_', 'vit, gaussian', 'noise 3']
    """
    lines = [""]
    for part in re.findall(r"[^\s_./-]+[\s_./-]*|[\s_./-]+", name):
        for piece in (part[start : start + width] for start in range(0, len(part), width)):
            if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return [line.strip() for line in lines]


HANDLE, CHARACTER = 0.55, 0.062
"""Inches that a line and its margins take, and one character, in a legend of 7 points."""


def small_multiples(count: int, width: float, panel: float, below: float = 0.0) -> tuple["PlainFigure", list["Axes"]]:
    """A figure of `width` inches with panels of about `panel` inches, and the axes of the panels.

    Args:
        count: number of panels.
        width: of the figure in inches.
        panel: width of a panel in inches.
        below: inches that long labels take below each panel.
    """
    across = min(count, max(1, round(width / panel)))
    down = -(-count // across)
    figure = PlainFigure(figsize=(width, down * (min(2.1, 0.72 * width / across + 0.5) + below)), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def every_few(places: Sequence[float], labels: Sequence[object], width: float) -> tuple[list[float], list[str]]:
    """As many ticks and short labels as fit a width of so many inches."""
    step = -(-len(labels) // max(1, int(width / 0.28)))
    return list(places)[::step], [str(label) for label in labels[::step]]


def legend_below(figure: "Figure", handles: Sequence[Any], labels: Sequence[str], width: float) -> None:
    """Put the legend below the panels of a figure of `width` inches, which grows by it; long labels are wrapped."""
    import matplotlib as mpl
    from matplotlib.font_manager import FontProperties

    if not labels:
        return
    points = FontProperties(size=mpl.rcParams["legend.fontsize"]).get_size_in_points()
    handle, character = HANDLE * points / 7, CHARACTER * points / 7
    wrapped = [name_lines(label, max(8, int((width - handle) / character))) for label in labels]
    columns = int(width / (handle + character * max(len(line) for lines in wrapped for line in lines)))
    columns = min(max(1, columns), len(labels))
    rows = -(-len(labels) // columns)
    lines = max(sum(map(len, wrapped[start : start + rows])) for start in range(0, len(labels), rows))
    figure.set_figheight(figure.get_figheight() + 0.1 + 1.6 * lines * points / 72)
    texts = ["\n".join(lines) for lines in wrapped]
    figure.legend(handles, texts, loc="outside lower center", ncols=columns, handlelength=2.6, frameon=False)
