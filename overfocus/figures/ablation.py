"""How predictions change without the most attended patches: curves beside the controls, and differences, with intervals."""

from typing import TYPE_CHECKING, Any

import numpy as np

from overfocus.errors import RunError
from overfocus.figures.style import INK, OKABE_ITO, PlainFigure, every_few, legend_below
from overfocus.metrics.catalogue import title_of
from overfocus.statistics.ablation import CHOICE_WORDS, CHOICES
from overfocus.variants import Variant

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LOOKS = {"top": (OKABE_ITO[0], "-"), "random": (INK, "--"), "bottom": (OKABE_ITO[1], ":"), "mass": (OKABE_ITO[2], "-.")}
"""Colour and dash of the curves of each choice of patches."""
SCORES = ("agreement", "confidence_drop", "output_cosine")
"""What can be drawn; by default the first that was measured."""
ACROSS = 4
"""Variants side by side."""
PANEL_INCHES = (2.7, 2.1)
NARROWEST = 1.6
"""Inches that a panel needs for its title and labels."""


def usual_score(table: "pd.DataFrame") -> str:
    """The first of `SCORES` that has values."""
    return next((name for name in SCORES if table[name].notna().any()), SCORES[-1])


def ablation_figure(
    table: "pd.DataFrame", differences: "pd.DataFrame", how: str, *, score: str | None = None, width: float | None = None
) -> PlainFigure:
    """For each variant of the images the score against the share of patches taken, and below it the paired differences.

    Bars are 95 % intervals over images. The upper panels have a curve for each choice of patches; the lower ones the most
    attended patches minus each other choice, on the same images. Call inside `styled()` or `paper()`.

    Args:
        table: as in `Ablation.table`.
        differences: as in `Ablation.differences`.
        how: "remove" or "corrupt".
        score: one of `SCORES`.
        width: of the figure in inches; unless given, it follows the number of variants.

    Raises:
        RunError: the ablation has no such score.
    """
    known = [name for name in SCORES if table[name].notna().any()]
    if score is not None and score not in known:
        raise RunError(f"the ablation has no {score!r}; there is {', '.join(known) or 'nothing'}")
    score = score or usual_score(table)
    pairs = table[["corruption", "severity"]].drop_duplicates().to_numpy()
    variants = [Variant(str(name), int(severity)) for name, severity in pairs]
    fitting = ACROSS if width is None else min(ACROSS, max(1, int(width / NARROWEST)))
    blocks = -(-len(variants) // fitting)
    across = -(-len(variants) // blocks)
    shares = sorted(set(table.loc[table["k"] > 0, "fraction"]))
    width = width or PANEL_INCHES[0] * max(across, 2)
    panel = width / across
    figure = PlainFigure(figsize=(width, 2 * min(PANEL_INCHES[1], 0.85 * panel) * blocks), layout="constrained")
    panels = figure.subplots(2 * blocks, across, squeeze=False)
    done = "removed" if how == "remove" else "corrupted"
    for place in range(blocks * across):
        upper, lower = (panels[2 * (place // across) + row, place % across] for row in (0, 1))
        if place >= len(variants):
            upper.set_axis_off()
            lower.set_axis_off()
            continue
        variant = variants[place]
        _curves(upper, _of(table, variant), shares, "choice", score, score, panel)
        rows = _of(differences, variant)
        _curves(lower, rows[rows["quantity"] == score], shares, "against", "difference", "", panel)
        lower.axhline(0, color=INK, linewidth=0.7, alpha=0.6)
        upper.set_title(variant.label, fontsize=9 if panel >= 2 else 7.5)
        lower.set_xlabel(f"% of patches {done}" if panel >= 2 else f"% {done}")
        if place % across == 0:
            upper.set_ylabel(title_of(score).lower())
            lower.set_ylabel("most attended − other")
    for row in range(2 * blocks):
        used = [axes for axes in panels[row] if axes.axison]
        low, high = min(axes.get_ylim()[0] for axes in used), max(axes.get_ylim()[1] for axes in used)
        for axes in used:  # one scale in a row
            axes.set_ylim(low, high)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    legend_below(figure, handles, labels, width)
    return figure


def _of(table: "pd.DataFrame", variant: Variant) -> "pd.DataFrame":
    return table[(table["corruption"] == variant.corruption) & (table["severity"] == variant.severity)]


def _curves(axes: "Axes", table: "pd.DataFrame", shares: list[float], column: str, value: str, ends: str, inches: float) -> None:
    """A curve for each choice in `column`: `value`, whose interval ends in the columns low and high, after `ends` and _.

    Shares of the patches stand at equal distances, since they are about multiples of one another; 0 is left of them. Ticks are
    those that fit a panel of so many inches.
    """
    prefix = f"{ends}_" if ends else ""
    for choice in CHOICES:
        rows = table[table[column] == choice].sort_values("fraction")
        if rows.empty:
            continue
        colour, dash = LOOKS[choice]
        middle, low, high = (rows[name].to_numpy("float64", na_value=np.nan) for name in (value, f"{prefix}low", f"{prefix}high"))
        bars: Any = np.nan_to_num(np.clip([middle - low, high - middle], 0, None))
        at = [0 if share == 0 else 1 + shares.index(share) for share in rows["fraction"]]
        axes.errorbar(
            at, middle, yerr=bars, color=colour, linestyle=dash, marker="o", markersize=3, linewidth=1.3,
            elinewidth=0.8, capsize=2, label=CHOICE_WORDS[choice],
        )  # fmt: skip
    axes.set_xticks(*every_few(range(len(shares) + 1), ["0", *(f"{100 * share:.3g}" for share in shares)], inches - 0.6))
    axes.set_xlim(-0.4, len(shares) + 0.4)
    axes.grid(axis="y")
