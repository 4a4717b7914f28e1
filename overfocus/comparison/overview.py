"""The rows of a comparison that fit on a page, as cells of text, Markdown or LaTeX."""

import math
import re
from collections.abc import Callable, Sequence

import pandas as pd

from overfocus.comparison.differences import EVERY
from overfocus.comparison.panel import LAYER_GROUPS, OUTPUT
from overfocus.metrics.catalogue import CATALOGUE, title_of

HEADINGS = (
    "Metric",
    "Layers",
    "Corruption",
    "Model",
    "Mean",
    "Baseline",
    "Difference",
    "95 % interval",
    "p (Holm)",
    "d_z",
    "Images",
)
TEXT_COLUMNS = 4
"""The first columns hold words, the others numbers."""
_LATEX_SIGNS = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": "$|$", "−": "$-$",
    "…": r"\ldots{}",
}  # fmt: skip


def choose_overview(table: pd.DataFrame) -> pd.DataFrame:
    """All layers only: what speaks of one map and the accuracy on clean images, the rest over all corruptions together.

    Effective tokens under corruption stand behind the top-k overlap: where attention is flat, the overlap means little.
    """
    clean = table["corruption"] == "clean"
    every = table["corruption"] == EVERY
    paired = table["metric"].map(lambda name: name not in CATALOGUE or CATALOGUE[name].group in ("stability", "prediction"))
    whole = table["layers"].isin([LAYER_GROUPS[0], OUTPUT])
    beside = table["metric"] == "effective_tokens"
    chosen = table[whole & (clean | (every & (paired | beside)))]
    metric = chosen["metric"].where(~beside | (chosen["corruption"] == "clean"), "top_overlap")
    place = metric.map({name: number for number, name in enumerate(dict.fromkeys(table["metric"]))})
    return chosen.loc[place.sort_values(kind="stable").index]


def cells(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """The text of each row under `HEADINGS`."""
    return [
        (
            metric_label(str(row["metric"]), row["chance"]),
            str(row["layers"]),
            variant_label(str(row["corruption"]), int(row["severity"])),
            str(row["model"]),
            decimal(row["mean"]),
            decimal(row["baseline_mean"]),
            decimal(row["difference"], sign=True),
            f"{decimal(row['low'], sign=True)} … {decimal(row['high'], sign=True)}",
            probability(row["p_adjusted"]),
            decimal(row["effect_size"], sign=True, places=2),
            str(int(row["count"])),
        )
        for row in rows.to_dict("records")
    ]


def metric_label(metric: str, chance: float) -> str:
    """A metric's name, beside its level by chance where it has one."""
    return title_of(metric) if math.isnan(chance) else f"{title_of(metric)} (chance {decimal(chance)})"


def variant_label(corruption: str, severity: int) -> str:
    """A version of the images in words: "clean", "fog 3", "all corruptions"."""
    words = corruption.replace("_", " ")
    return f"{words} {severity}" if severity else "all corruptions" if corruption == EVERY else words


def decimal(number: float, *, sign: bool = False, places: int = 3) -> str:
    """With three places after the point, fewer for numbers from 100 on; "–" where undefined."""
    if math.isnan(number):
        return "–"
    places = places if abs(number) < 100 else 1
    number = round(number, places) or 0.0  # no minus in front of zeros
    return format(number, f"{'+' if sign and number else ''}.{places}f").replace("-", "−")


def probability(number: float) -> str:
    """A p-value; "< 0.001" for smaller ones."""
    return "–" if math.isnan(number) else "< 0.001" if number < 0.001 else f"{number:.3f}"


def markdown(rows: pd.DataFrame) -> str:
    """A table in GitHub's Markdown."""
    ruler = "|" + " --- |" * TEXT_COLUMNS + " ---: |" * (len(HEADINGS) - TEXT_COLUMNS)
    headings, *lines = (
        _joined(line, lambda text: re.sub(r"([\\|*_<>`\[\]])", r"\\\1", text), "| ", " | ", " |")
        for line in (HEADINGS, *cells(rows))
    )
    return "\n".join([headings, ruler, *lines]) + "\n"


def latex(rows: pd.DataFrame) -> str:
    """A table for the package booktabs, without a float around it."""
    columns = "l" * TEXT_COLUMNS + "r" * (len(HEADINGS) - TEXT_COLUMNS)
    headings = _joined(HEADINGS, lambda text: "$d_z$" if text == "d_z" else escape_latex(text), "", " & ", r" \\")
    lines = [_joined(line, escape_latex, "", " & ", r" \\") for line in cells(rows)]
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", headings, r"\midrule", *lines, r"\bottomrule", end]) + "\n"


def escape_latex(text: str) -> str:
    """Text that stands for itself in LaTeX."""
    return "".join(_LATEX_SIGNS.get(sign, sign) for sign in text)


def _joined(line: Sequence[str], escape: Callable[[str], str], begin: str, between: str, end: str) -> str:
    return begin + between.join(escape(" ".join(text.split())) for text in line) + end
