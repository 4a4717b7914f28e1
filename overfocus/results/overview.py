"""The rows of a comparison that fit on a page, as cells of text, Markdown or LaTeX."""

import re
from collections.abc import Callable, Sequence

import pandas as pd

from overfocus.metrics.catalogue import CATALOGUE
from overfocus.statistics.panel import EVERY, LAYER_GROUPS, OUTPUT
from overfocus.statistics.retained import RETAINED
from overfocus.statistics.wording import decimal, interval_text, measure_title, probability, variant_label
from overfocus.variants import CLEAN

HEADINGS = (
    "Metric",
    "Layers",
    "Corruption",
    "Model",
    "Mean",
    "Baseline",
    "Control",
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

    What is retained of a metric of stability stands behind the metric. Effective tokens under corruption stand before the
    top-k overlap: where attention is flat, the overlap means little.
    """
    metric = table["metric"].str.removeprefix(RETAINED)
    clean = table["corruption"] == CLEAN
    every = table["corruption"] == EVERY
    paired = metric.map(lambda name: name not in CATALOGUE or CATALOGUE[name].group in ("stability", "prediction"))
    whole = table["layers"].isin([LAYER_GROUPS[0], OUTPUT])
    beside = metric == "effective_tokens"
    chosen = table[whole & (clean | (every & (paired | beside)))]
    place = {name: number for number, name in enumerate(dict.fromkeys(metric))}
    shown = metric.where(~beside | clean, "top_overlap")[chosen.index].map(place)
    return chosen.loc[shown.sort_values(kind="stable").index]


def cells(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """The text of each row under `HEADINGS`."""
    return [
        (
            measure_title(str(row["metric"])),
            str(row["layers"]),
            variant_label(str(row["corruption"]), int(row["severity"])),
            str(row["model"]),
            decimal(row["mean"]),
            decimal(row["baseline_mean"]),
            f"{decimal(row['control'])} / {decimal(row['baseline_control'])}" if row["control"] == row["control"] else "",
            decimal(row["difference"], sign=True),
            interval_text(row["low"], row["high"]),
            probability(row["p_adjusted"]),
            decimal(row["effect_size"], sign=True, places=2),
            str(int(row["count"])),
        )
        for row in rows.to_dict("records")
    ]


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
