"""What single sections of the page show: differences, fragility, ablations, how to read a metric, where a run came from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from overfocus.figures.stability import shows_retained
from overfocus.figures.style import INK, OKABE_ITO, PlainFigure, save_figure, styled
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.runs.names import distinct_names
from overfocus.statistics.ablation import CHOICE_WORDS
from overfocus.statistics.fragility import CLEAN_CONFIDENCE, CORRUPTION_ALONE, POOLED
from overfocus.statistics.layers import LayerStatistics
from overfocus.statistics.panel import EVERY, OUTPUT
from overfocus.statistics.retained import RETAINED
from overfocus.statistics.wording import measure_title
from overfocus.variants import Variant
from overfocus_reports.encoding import numbers
from overfocus_reports.figures import inline_svg

if TYPE_CHECKING:
    from collections.abc import Mapping

    from overfocus.ablation.ablation import Ablation
    from overfocus.results.comparison import Comparison
    from overfocus.run import Run


@dataclass(frozen=True)
class Reading:
    """How one metric is read."""

    metric: str
    title: str
    unit: str
    formula: str
    range: str
    high: str
    uniform: str
    control: str
    """Between two different clean images, over layers; empty where there is no control."""
    retained: bool
    """Whether its maps show what is retained against the control."""
    skipped: str
    """How many values were undefined, in words; empty where none was."""


def reading_of(statistics: LayerStatistics, metric: str) -> Reading:
    """How `metric` is read in this run: expectations in symbols and as the number that they come to here."""
    known = CATALOGUE[metric]
    return Reading(
        metric=metric,
        title=title_of(metric),
        unit=CATALOGUE[metric].unit,
        formula=known.formula,
        range=f"{known.lowest} … {known.highest}",
        high=known.high,
        uniform=with_numbers(known.uniform, statistics.uniform(metric)),
        control=span_of(statistics.another_image(metric)) if known.group == "stability" else "",
        retained=known.group == "stability" and shows_retained([statistics], metric),
        skipped=skipped_values(statistics, metric),
    )


def with_numbers(symbols: str, values: list[float]) -> str:
    """An expectation in symbols and, where those hide a number, that number: "k/N = 0.051"."""
    numbers = span_of(values)
    return symbols if not numbers or symbols.replace("−", "-").lstrip("-").isdigit() else f"{symbols} = {numbers}"


def span_of(values: list[float]) -> str:
    """Smallest and largest value over layers, "0.051" or "0.02 … 0.06, by layer"; empty for none."""
    known = sorted(value for value in values if math.isfinite(value))
    if not known:
        return ""
    low, high = f"{known[0]:.3g}", f"{known[-1]:.3g}"
    return low if low == high else f"{low} … {high}, by layer"


def skipped_values(statistics: LayerStatistics, metric: str) -> str:
    """The count of values left out of the means; layers in which a metric has no value at all do not count."""
    parts = statistics.values[metric]
    measured = parts["count"][0] > 0
    skipped = int(parts["skipped"][0][measured].sum())
    total = skipped + int(parts["count"][0][measured].sum())
    return f"{skipped} of {total} values are undefined (NaN) and left out of the means." if skipped else ""


NOTHING = "–"
MOST_ITEMS = 8
"""Of a list, such as missing keys, before the rest is only counted."""


def checkpoint_rows(run: "Run") -> list[tuple[str, str]]:
    """The checkpoint: what it is, how it was recognised, what of it did not fit."""
    known = run.description.checkpoint
    size = known.input_size
    rows = {
        "architecture": known.name,
        "found by": known.found_by,
        "source": known.source,
        "SHA-256": known.sha256,
        "weights": known.weights_entry,
        "parameters": f"{known.parameters:,}" if known.parameters is not None else None,
        "input": f"{size[1]} × {size[2]} pixels, {size[0]} channel{'s' if size[0] != 1 else ''}" if size else None,
        "classes": known.num_classes,
        "mean, standard deviation": f"{in_words(known.mean)}; {in_words(known.std)}",
        "missing keys": in_words(known.missing_keys) or "none",
        "unexpected keys": in_words(known.unexpected_keys) or "none",
        "notes": "; ".join(known.notes),
    }
    return [(name, in_words(value) or NOTHING) for name, value in rows.items()]


def settings_rows(run: "Run") -> list[tuple[str, str]]:
    """What was asked for."""
    rows = {name.replace("_", " "): value for name, value in asdict(run.description.settings).items() if value is not None}
    return [(name, in_words(value) or NOTHING) for name, value in rows.items()]


def version_rows(run: "Run") -> list[tuple[str, str]]:
    """What it ran with, when, and how long it took."""
    known = run.description
    rows: dict[str, Any] = {"overfocus": known.overfocus, "started": known.created} | known.versions
    rows |= {name.replace("_", " "): value for name, value in known.timing.items()}
    return [(name, in_words(value) or NOTHING) for name, value in rows.items()]


def in_words(value: Any) -> str:
    """A value of run.json as text; long lists are cut and counted."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {in_words(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(in_words(part) for part in value[:MOST_ITEMS])
        return shown + (f" and {len(value) - MOST_ITEMS} more" if len(value) > MOST_ITEMS else "")
    return str(value)


NAMES = ("metric", "layers", "corruption", "model", "family")
"""Columns of text, which travel as numbers into the list of their values."""


def differences_payload(table: pd.DataFrame, colours: "Mapping[str, str]") -> dict[str, Any]:
    """Columns, the values of text columns, titles and directions of the metrics, and colours of the models."""
    columns: dict[str, Any] = {}
    names: dict[str, list[str]] = {}
    for name in table.columns:
        if name in NAMES:
            codes, values = pd.factorize(table[name])
            columns[name], names[name] = codes.tolist(), [str(value) for value in values]
        elif pd.api.types.is_integer_dtype(table[name].dtype):
            columns[name] = table[name].tolist()
        else:
            columns[name] = numbers(table[name].to_numpy("float64"))
    return {
        "order": [str(name) for name in table.columns],
        "columns": columns,
        "names": names,
        "titles": [measure_title(metric) for metric in names["metric"]],
        "directions": [
            "low" if metric.startswith(RETAINED) else CATALOGUE[metric].overfocused if metric in CATALOGUE else "neither"
            for metric in names["metric"]
        ],
        "colours": [colours[model] for model in names["model"]],
    }


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
        save_figure(figure, folder / "reliability.png")
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


CHOICES = {"top": (OKABE_ITO[0], "-"), "random": (INK, "--"), "bottom": (OKABE_ITO[1], ":"), "mass": (OKABE_ITO[2], "-.")}
"""Colour and dash of the curves of each choice of patches."""
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
            done = "removed" if ablation.how == "remove" else "corrupted"
            figure = ablation_figure(table, score, done)
            save_figure(figure, folder / f"{name}.png")
            svg = inline_svg(figure, name, f"{title_of(score)} when patches are {done}, {title}")
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


def ablation_figure(table: pd.DataFrame, score: str, done: str) -> PlainFigure:
    """One panel per version of the images: the score against the share of patches `done`, "removed" or "corrupted"."""
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
        panel.set_xlabel(f"% of patches {done}, {variant.label}", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(axis="y")
    axes[0].set_ylabel(title_of(score).lower(), fontsize=8)
    axes[0].legend(fontsize=8, frameon=False)
    return figure
