"""What single sections of the page show: differences, fragility, ablations, how to read a metric, where a run came from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.layout_engine import ConstrainedLayoutEngine

from overfocus.figures.ablation import ablation_figure, usual_score
from overfocus.figures.stability import Scale, shows_retained
from overfocus.figures.style import PlainFigure, save_figure, styled
from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus.run import distinct_names
from overfocus.runs.description import RunDescription
from overfocus.statistics.fragility import CLEAN_CONFIDENCE, CORRUPTION_ALONE, POOLED
from overfocus.statistics.panel import EVERY, OUTPUT, LayerStatistics, mean_of_known
from overfocus.statistics.retained import RETAINED, distances, undefined_control
from overfocus.statistics.verdicts import MILD, STRONG, counted, measure_title, within_sentence
from overfocus.variants import CLEAN, OTHER_IMAGE
from overfocus_reports.displayed import numbers
from overfocus_reports.figures import Table, Values, heat_map, inline_svg
from overfocus_reports.sentences import listed, percent, spans

if TYPE_CHECKING:
    from overfocus.results.ablation import Ablation
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


def checkpoint_rows(run: RunDescription) -> list[tuple[str, str]]:
    """The checkpoint: what it is, how it was recognised, what of it did not fit."""
    known = run.checkpoint
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


def settings_rows(run: RunDescription) -> list[tuple[str, str]]:
    """What was asked for."""
    rows = {name.replace("_", " "): value for name, value in asdict(run.settings).items() if value is not None}
    return [(name, in_words(value) or NOTHING) for name, value in rows.items()]


def version_rows(run: RunDescription) -> list[tuple[str, str]]:
    """What it ran with, when, and how long it took."""
    rows: dict[str, Any] = {"overfocus": run.overfocus, "started": run.created} | run.versions
    for name, value in run.timing.items():
        title, seconds = name.replace("_", " "), not name.endswith("_per_second")
        rows["total" if name == "seconds" else title] = f"{in_words(value)} s" if seconds else value
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
            columns[name] = numbers(table[name].to_numpy("float64", na_value=np.nan))
    return {
        "order": [str(name) for name in table.columns],
        "columns": columns,
        "names": names,
        "titles": [measure_title(metric) for metric in names["metric"]],
        "directions": [direction_of(metric) for metric in names["metric"]],
        "colours": [colours[model] for model in names["model"]],
    }


def direction_of(metric: str) -> str:
    """Which values of a row's metric are worse: "high", "low" or "neither", as those of raw stability, which needs a control."""
    if metric.startswith(RETAINED):
        return "low"
    known = CATALOGUE.get(metric)
    return "neither" if known is None or known.group == "stability" else known.overfocused


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
    drawn = reliability[reliability["layers"] == "all"]
    with styled():
        wide, narrow = reliability_figure(drawn, colours), reliability_figure(drawn, colours, across=1)
        save_figure(wide, folder / "reliability.png")
        figure = in_both_widths(wide, narrow, "reliability", "share of flipped predictions against metrics, for each model")
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
        "figure": figure,
        "table": [list(reliability.columns), *reliability.astype(object).where(reliability.notna(), None).to_numpy().tolist()],
    }


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over all layers within corruption × severity, and the plain guesses."""
    within = table["layers"].isin(["all", OUTPUT]) & (table["corruption"] == EVERY)
    return table[within | (table["metric"] == CORRUPTION_ALONE)]


def sentence_of(model: str, rows: pd.DataFrame, table: pd.DataFrame) -> str:
    """Which metric predicts flips best within a corruption and severity; what is known without it; or that none does."""
    metrics = rows[rows["layers"] != OUTPUT]
    flipped, count = int(metrics["flipped"].max()), int(metrics["count"].max())
    seen = f"{model}: {flipped:,} of {count:,} predictions flip under corruption"
    if not flipped or flipped == count:
        return f"{seen}, so nothing can be said about which ones."
    guesses = plain_guesses(table)
    sure = metrics[(metrics["auroc_low"] > 0.5) | (metrics["auroc_high"] < 0.5)]
    if sure.empty:
        return f"{seen}; within a corruption and severity no metric predicts which, with an interval that excludes 0.5. {guesses}"
    best = sure.iloc[int((sure["auroc"] - 0.5).abs().to_numpy().argmax())]
    way = "higher" if best["auroc"] > 0.5 else "lower"
    ends = f"{best['auroc_low']:.2f}–{best['auroc_high']:.2f}"
    pooled = auroc_of(table, str(best["metric"]), str(best["layers"]), POOLED)
    title = within_sentence(title_of(str(best["metric"])))
    return (
        f"{seen}. Within a corruption and severity, {title} predicts them best: {way} where predictions flip, AUROC "
        f"{best['auroc']:.2f} (95 % interval {ends}; pooled over corruptions {pooled:.2f}); it is the most extreme of "
        f"{len(metrics)} metrics, of which {len(sure)} have an interval that excludes 0.5. {guesses}"
    )


def plain_guesses(table: pd.DataFrame) -> str:
    """What predicts flips without attention."""
    corruption = auroc_of(table, CORRUPTION_ALONE, OUTPUT, POOLED)
    confidence = auroc_of(table, CLEAN_CONFIDENCE, OUTPUT, EVERY)
    found = []
    if not math.isnan(corruption):
        found.append(f"knowing only the corruption and severity gives {corruption:.2f} pooled")
    if not math.isnan(confidence):
        found.append(f"the confidence on the clean image gives {confidence:.2f} within a corruption and severity")
    return f"Without attention, {'; '.join(found)}." if found else ""


def auroc_of(table: pd.DataFrame, metric: str, layers: str, corruption: str) -> float:
    """The AUROC of one row; NaN if there is none."""
    rows = table[(table["metric"] == metric) & (table["layers"] == layers) & (table["corruption"] == corruption)]
    return float(rows["auroc"].iloc[0]) if len(rows) else math.nan


def reliability_figure(table: pd.DataFrame, colours: Mapping[str, str], across: int = 3) -> PlainFigure:
    """One panel per metric: flip rate with its interval against the mean value of each group of images; `across` panels a row."""
    metrics = [metric for metric in PLOTTED if (table["metric"] == metric).any()]
    across = min(across, max(1, len(metrics)))
    down = -(-len(metrics) // across) or 1
    size = (2.9 * across, 2.2 * down) if across > 1 else (NARROW, 1.8 * down)
    figure = PlainFigure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.08))
    axes = figure.subplots(down, across, squeeze=False, sharey=True)
    for place in range(down * across):
        panel = axes[divmod(place, across)]
        if place >= len(metrics):
            panel.set_axis_off()
            continue
        for model, colour in colours.items():
            rows = table[(table["metric"] == metrics[place]) & (table["model"] == model)]
            rate = rows["flip_rate"].to_numpy("float64", na_value=np.nan)
            ends = np.abs(
                np.stack(
                    [
                        rate - rows["low"].to_numpy("float64", na_value=np.nan),
                        rows["high"].to_numpy("float64", na_value=np.nan) - rate,
                    ]
                )
            )
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


NARROW = 3.5
"""Inches of a figure that a small screen shows in place of the usual one."""


def in_both_widths(wide: PlainFigure, narrow: PlainFigure, name: str, description: str) -> dict[str, str]:
    """A figure for the page, for large screens and small ones."""
    return {"wide": inline_svg(wide, name, description), "narrow": inline_svg(narrow, f"{name}-narrow", description)}


HEADS = ("effective_tokens", "js_divergence")
"""What the maps of layers by heads show: concentration on clean images, and what is retained under corruption."""
SIDE_BY_SIDE = 12
"""Heads up to which the two maps fit side by side in legible size."""


@dataclass(frozen=True)
class HeadValues:
    """Means over images as (layers, heads); NaN where a layer has fewer heads or nothing was measured."""

    layers: list[int]
    effective: Values
    """Effective tokens of clean images."""
    retained: Values | None
    """Of Jensen–Shannon divergence over all corruptions, against the control; None where that was not measured."""


def head_values(run: "Run") -> HeadValues | None:
    """The values of single heads; None where the run kept none."""
    table, (concentration, stability) = run.table, HEADS
    if "head" not in table or concentration not in table:
        return None
    by = ["layer", "head"]
    clean = table[table["corruption"] == CLEAN].groupby(by)[concentration].mean().unstack()
    retained = None
    corrupted = table[~table["corruption"].isin([CLEAN, OTHER_IMAGE])]
    control = table[table["corruption"] == OTHER_IMAGE]
    if stability in table and len(corrupted) and len(control):
        of_images = [
            rows.groupby(["image", *by])[stability].mean().unstack(by).reindex(columns=clean.stack().index)
            for rows in (corrupted, control)
        ]
        both = of_images[0].index.intersection(of_images[1].index)
        found, against = (distances(stability, part.loc[both].to_numpy("float64", na_value=np.nan)) for part in of_images)
        share = 1 - mean_of_known(found, 0) / mean_of_known(against, 0)
        share = np.where(undefined_control(against, np.nan), np.nan, share)
        retained = pd.Series(share, of_images[0].columns).unstack().reindex_like(clean).to_numpy("float64", na_value=np.nan)
    return HeadValues([int(layer) for layer in clean.index], clean.to_numpy("float64", na_value=np.nan), retained)


def heads_part(run: "Run", number: int) -> dict[str, Any] | None:
    """Maps of layers by heads, and in words which heads overfocus; None where the run kept no heads. `number` is the model's."""
    found = head_values(run)
    if found is None:
        return None
    rows, columns = [str(layer) for layer in found.layers], [str(head) for head in range(found.effective.shape[1])]
    shown = [("heads-concentration", found.effective, title_of(HEADS[0]), "share of the patches; uniform attention: 1")]
    if found.retained is not None:
        shown.append(
            ("heads-retained", found.retained, measure_title(RETAINED + HEADS[1]), "1: as if not corrupted, 0: another image")
        )
    maps = []
    for base, values, title, note in shown:
        known = values[np.isfinite(values)]
        if not len(known):
            continue
        name = f"{base}-{number}" if number else base
        low, high = float(known.min()), float(known.max())
        scale = Scale(low, high if high > low else low + 1e-6, reverse=True)
        table = Table(values, [f"layer {layer}" for layer in rows], columns, "head")
        svg = heat_map(
            table, "effective tokens" if base == "heads-concentration" else "retained", scale, name, f"{title}, layer by head"
        )
        numbers = [["layer", *(f"head {head}" for head in columns)]]
        numbers += [
            [row, *line]
            for row, line in zip(
                rows, pd.DataFrame(values).astype(object).where(np.isfinite(values), None).to_numpy().tolist(), strict=True
            )
        ]
        maps.append({"name": name, "title": title, "note": note, "svg": svg, "table": numbers})
    if not maps:
        return None
    return {"number": number, "sentences": head_sentences(found), "maps": maps, "even": len(columns) <= SIDE_BY_SIDE}


def head_sentences(found: HeadValues) -> list[str]:
    """Which heads overfocus by the rule for layers, which is most concentrated, and which retains least."""
    known = np.isfinite(found.effective)
    strong = np.argwhere(known & (found.effective < STRONG))
    mild = int((known & (found.effective >= STRONG) & (found.effective < MILD)).sum())
    heads = {layer: [str(head) for place, head in strong if place == layer] for layer in dict.fromkeys(strong[:, 0])}
    whole = [layer for layer, numbers in heads.items() if len(numbers) == known[layer].sum()]
    total = counted(int(known.sum()), "head")
    below = f"effective tokens below {percent(STRONG)}"
    if heads:
        named = [f"every head of {spans([found.layers[layer] for layer in whole])}"] if whole else []
        named += [
            f"head{'s' if len(numbers) > 1 else ''} {listed(numbers)} of layer {found.layers[layer]}"
            for layer, numbers in heads.items()
            if layer not in whole
        ]
        many = len(strong)
        first = f"{many} of {total} overfocus{'es' if many == 1 else ''} strongly ({below}) and {mild} mildly. "
        first += f"Strongly: {'; '.join(named)}."
    else:
        first = f"No head of {total} overfocuses strongly ({below}); {mild} do{'es' if mild == 1 else ''} mildly."
    place = np.unravel_index(int(np.nanargmin(found.effective)), found.effective.shape)
    second = f"The most concentrated is head {place[1]} of layer {found.layers[place[0]]}: "
    second += f"{percent(float(found.effective[place]))} of the patches are effectively in use"
    if found.retained is not None and np.isfinite(found.retained).any():
        least = np.unravel_index(int(np.nanargmin(found.retained)), found.retained.shape)
        kept = percent(float(found.retained[least])).replace("-", "−")
        second += f"; head {least[1]} of layer {found.layers[least[0]]} retains least under corruption, {kept}"
    return [first, second + "."]


def ablation_parts(ablations: "Sequence[Ablation]", folder: Path) -> list[dict[str, Any]]:
    """For the template, one per ablation; ablation-<number>.png of each goes into `folder` too."""
    titles = distinct_names(
        [ablation.model for ablation in ablations],
        [ablation.description.checkpoint.source for ablation in ablations],
        [ablation.path.absolute().name for ablation in ablations],
    )
    return [
        _ablation_part(ablation, title, f"ablation-{number}", folder)
        for number, (ablation, title) in enumerate(zip(ablations, titles, strict=True))
    ]


def ablation_tables(parts: Sequence[dict[str, Any]]) -> dict[str, list[list[Any]]]:
    """The numbers behind each figure of ablations, for the page's script."""
    return {part["name"]: [part["tables"][0]["columns"], *part["tables"][0]["rows"]] for part in parts}


def _ablation_part(ablation: "Ablation", title: str, name: str, folder: Path) -> dict[str, Any]:
    done = "removed" if ablation.how == "remove" else "corrupted"
    description = ablation.description
    with styled():
        wide, narrow = (
            ablation_figure(ablation.table, ablation.differences, ablation.how, width=width) for width in (None, NARROW)
        )
        save_figure(wide, folder / f"{name}.png")
        score = title_of(usual_score(ablation.table))
        figure = in_both_widths(wide, narrow, name, f"{score} when patches are {done}, {title}")
    return {
        "name": name,
        "title": title,
        "images": ablation.images,
        "answers": ablation.answers,
        "removed": ablation.how == "remove",
        "lenient": description.checkpoint.lenient,
        "notes": [*description.checkpoint.notes, *description.notes],
        "skipped": description.skipped,
        "figure": figure,
        "tables": [
            _frame_table(f"{name}-table", "Means over images", ablation.table),
            _frame_table(f"{name}-differences", "The most attended patches minus each other choice", ablation.differences),
        ],
        "about": {
            "Checkpoint": checkpoint_rows(description),
            "Settings": settings_rows(description),
            "Versions and time": version_rows(description),
        },
    }


def _frame_table(name: str, title: str, table: pd.DataFrame) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "columns": [str(column).replace("_", " ") for column in table.columns],
        "rows": table.astype(object).where(table.notna(), None).to_numpy().tolist(),
    }
