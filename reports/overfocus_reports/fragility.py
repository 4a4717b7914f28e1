"""Whether metrics tell which predictions flip: sentences, a reliability-style plot and the numbers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from overfocus.figures.style import PlainFigure, styled
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.statistics.fragility import CLEAN_CONFIDENCE, CORRUPTION_ALONE, POOLED
from overfocus.statistics.panel import EVERY, OUTPUT
from overfocus.statistics.wording import measure_title
from overfocus_reports.svg import inline_svg

if TYPE_CHECKING:
    from overfocus.results.comparison import Comparison

PLOTTED = ("top_share", "effective_tokens", "token_cosine", "js_divergence", "received_shift", "attention_cosine")
"""Metrics that are plotted; the table has all."""
ROW = ("model", "metric", "layers", "corruption", "severity")


def fragility_part(comparison: "Comparison", colours: Mapping[str, str], folder: Path) -> dict[str, Any] | None:
    """For the template; None where no model predicts classes. The plot goes into `folder` too."""
    table = comparison.fragility
    rows = headline(table)
    if rows.empty:
        return None
    reliability = comparison.reliability
    with styled():
        figure = reliability_figure(reliability[reliability["layers"] == "all"], colours)
        figure.savefig(folder / "reliability.png")
        svg = inline_svg(figure, "reliability", "share of flipped predictions against metrics, for each model")
    pooled = table[table["corruption"] == POOLED].set_index(["model", "metric", "layers"])["auroc"]
    beside = pooled.reindex(pd.MultiIndex.from_frame(rows[["model", "metric", "layers"]])).to_numpy()
    kept = rows.assign(title=rows["metric"].map(measure_title), pooled=beside).to_dict("records")
    return {
        "rows": kept,
        "sentences": [
            sentence_of(model, rows[rows["model"] == model], table[table["model"] == model])
            for model in colours
            if (rows["model"] == model).any()
        ],
        "figure": svg,
        "table": [list(reliability.columns), *reliability.astype(object).where(reliability.notna(), None).to_numpy().tolist()],
    }


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over all layers within corruption × severity, and the plain guesses."""
    within = table["layers"].isin(["all", OUTPUT]) & (table["corruption"] == EVERY)
    return table[within | (table["metric"] == CORRUPTION_ALONE)]


def sentence_of(model: str, rows: pd.DataFrame, table: pd.DataFrame) -> str:
    """Which metric tells flips apart best within a corruption and severity; what is known without it; or that none does."""
    metrics = rows[rows["layers"] != OUTPUT]
    flipped, count = int(metrics["flipped"].max()), int(metrics["count"].max())
    seen = f"{model}: {flipped:,} of {count:,} predictions flip under corruption"
    if not flipped or flipped == count:
        return f"{seen}, so nothing can be said about which ones."
    guesses = plain_guesses(table)
    sure = metrics[(metrics["auroc_low"] > 0.5) | (metrics["auroc_high"] < 0.5)]
    if sure.empty:
        return (
            f"{seen}; within a corruption and severity no metric tells which ones with an interval that excludes 0.5. {guesses}"
        )
    best = sure.iloc[int((sure["auroc"] - 0.5).abs().to_numpy().argmax())]
    way = "higher" if best["auroc"] > 0.5 else "lower"
    ends = f"{best['auroc_low']:.2f}–{best['auroc_high']:.2f}"
    pooled = auroc_of(table, str(best["metric"]), str(best["layers"]), POOLED)
    title = title_of(str(best["metric"]))
    return (
        f"{seen}. Within a corruption and severity, {title} tells them best: {way} where predictions flip, AUROC "
        f"{best['auroc']:.2f} (95 % interval {ends}; pooled over corruptions {pooled:.2f}); {len(sure)} of {len(metrics)} "
        f"metrics exclude 0.5. {guesses}"
    )


def plain_guesses(table: pd.DataFrame) -> str:
    """What tells flips apart without attention."""
    corruption = auroc_of(table, CORRUPTION_ALONE, OUTPUT, POOLED)
    confidence = auroc_of(table, CLEAN_CONFIDENCE, OUTPUT, EVERY)
    found = f"To know which corruption it is, alone, has AUROC {corruption:.2f} pooled"
    if not math.isnan(confidence):
        found += f"; the confidence on the clean image has {confidence:.2f} within a corruption and severity"
    return found + "."


def auroc_of(table: pd.DataFrame, metric: str, layers: str, corruption: str) -> float:
    """The AUROC of one row; NaN where there is none."""
    rows = table[(table["metric"] == metric) & (table["layers"] == layers) & (table["corruption"] == corruption)]
    return float(rows["auroc"].iloc[0]) if len(rows) else math.nan


def reliability_figure(table: pd.DataFrame, colours: Mapping[str, str]) -> PlainFigure:
    """One panel per metric: flip rate with its interval against the mean value of each group of images."""
    metrics = [metric for metric in PLOTTED if (table["metric"] == metric).any()]
    across = min(3, max(1, len(metrics)))
    down = -(-len(metrics) // across) or 1
    figure = PlainFigure(figsize=(2.9 * across, 2.2 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    for place in range(down * across):
        panel = axes[divmod(place, across)]
        if place >= len(metrics):
            panel.set_axis_off()
            continue
        for model, colour in colours.items():
            rows = table[(table["metric"] == metrics[place]) & (table["model"] == model)]
            rate = rows["flip_rate"].to_numpy("float64")
            ends = np.abs(np.stack([rate - rows["low"].to_numpy("float64"), rows["high"].to_numpy("float64") - rate]))
            panel.errorbar(
                rows["value"], rate, yerr=np.nan_to_num(ends), color=colour, marker="o", markersize=3, linewidth=1.3,
                elinewidth=0.8, capsize=2,
            )  # fmt: skip
        panel.set_xlabel(f"{title_of(metrics[place])} ({CATALOGUE[metrics[place]].unit})", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.set_ylim(-0.03, 1.03)
        panel.grid(axis="y")
        if place % across == 0:
            panel.set_ylabel("flipped predictions", fontsize=8)
    return figure
