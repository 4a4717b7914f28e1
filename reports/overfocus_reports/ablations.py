"""What the removal of tokens does: a figure, the numbers and the answer in words for each ablation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from overfocus.figures.style import INK, OKABE_ITO, PlainFigure, styled
from overfocus.metrics.catalogue import title_of
from overfocus.runs.names import distinct_names
from overfocus.statistics.ablation import CHOICE_WORDS
from overfocus.variants import Variant
from overfocus_reports.svg import inline_svg

if TYPE_CHECKING:
    from overfocus.ablation.ablation import Ablation

CHOICES = {"top": (OKABE_ITO[0], "-"), "random": (INK, "--"), "bottom": (OKABE_ITO[1], ":"), "mass": (OKABE_ITO[2], "-.")}
"""Colour and dash of the curves of each choice of tokens."""
SCORES = ("agreement", "confidence_drop", "output_cosine")
MOST_PANELS = 4


def ablation_parts(ablations: "Sequence[Ablation]", folder: Path) -> list[dict[str, Any]]:
    """For the template, one per ablation; the figures go into `folder` too."""
    found = []
    titles = distinct_names(
        [ablation.model for ablation in ablations],
        [ablation.description.checkpoint.source for ablation in ablations],
        [ablation.path.absolute().name for ablation in ablations],
    )
    for number, (ablation, title) in enumerate(zip(ablations, titles, strict=True)):
        table = ablation.table
        score = next((name for name in SCORES if table[name].notna().any()), SCORES[-1])
        name = f"ablation-{number}"
        with styled():
            figure = ablation_figure(table, score)
            figure.savefig(folder / f"{name}.png")
            svg = inline_svg(figure, name, f"{title_of(score)} when tokens are removed, {title}")
        found.append(
            {
                "name": title,
                "sentences": ablation.sentences,
                "figure": svg,
                "figure_name": name,
                "table_name": f"{name}-table",
                "columns": [str(column).replace("_", " ") for column in table.columns],
                "rows": table.astype(object).where(table.notna(), None).to_numpy().tolist(),
            }
        )
    return found


def ablation_figure(table: pd.DataFrame, score: str) -> PlainFigure:
    """One panel per version of the images: the score against the share of tokens removed."""
    variants = [
        Variant(str(name), int(severity)) for name, severity in table[["corruption", "severity"]].drop_duplicates().to_numpy()
    ]
    shown = variants[:MOST_PANELS]
    figure = PlainFigure(figsize=(2.7 * len(shown) + 0.3, 2.5), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for panel, variant in zip(axes, shown, strict=True):
        of_variant = table[(table["corruption"] == variant.corruption) & (table["severity"] == variant.severity)]
        for choice, (colour, dash) in CHOICES.items():
            rows = of_variant[of_variant["choice"] == choice].sort_values("fraction")
            if rows.empty:
                continue
            middle = rows[score].to_numpy("float64")
            ends = [middle - rows[f"{score}_low"].to_numpy("float64"), rows[f"{score}_high"].to_numpy("float64") - middle]
            panel.errorbar(
                100 * rows["fraction"], middle, yerr=np.nan_to_num(np.clip(ends, 0, None)), color=colour, linestyle=dash,
                marker="o", markersize=3, linewidth=1.3, elinewidth=0.8, capsize=2, label=CHOICE_WORDS[choice],
            )  # fmt: skip
        panel.set_xlabel(f"% of tokens removed, {variant.label}", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(axis="y")
    axes[0].set_ylabel(title_of(score).lower(), fontsize=8)
    axes[0].legend(fontsize=8, frameon=False)
    return figure
