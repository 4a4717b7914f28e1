"""A comparison on the terminal: the verdicts in words, then the numbers."""

from typing import TYPE_CHECKING

from overfocus.text import LONGEST_LINE
from overfocus_cli.output import cell, new_table

if TYPE_CHECKING:
    import pandas as pd

    from overfocus.results.comparison import Comparison

_ANSWERS = {"yes": "green", "no": "red", "mixed": "yellow", "can't tell": "yellow"}
_METRICS_PER_MODEL = 5


def print_comparison(comparison: "Comparison", metrics: list[str] | None = None) -> None:
    """Print the verdicts, the overview of differences (of all metrics or of some), and which metrics predict flips best."""
    from rich.console import Console

    from overfocus.results.comparison import cells
    from overfocus.statistics.differences import OVERVIEW
    from overfocus.statistics.fragility import CLEAN_CONFIDENCE, CORRUPTION_ALONE, POOLED
    from overfocus.statistics.panel import EVERY
    from overfocus.statistics.retained import NOT_MEASURED
    from overfocus.statistics.verdicts import decimal, interval_text, measure_title
    from overfocus_reports.sentences import verdict_line

    console = Console(highlight=False)
    models = ", ".join(comparison.names[1:])
    console.print(
        f"\n[bold]{cell(models)}[/bold] against [bold]{cell(comparison.baseline)}[/bold], {len(comparison.images)} images\n"
    )
    for model in comparison.identical:
        console.print(cell(verdict_line(model, (), comparison.baseline, identical=True), LONGEST_LINE))
    for verdict in comparison.verdicts:
        if verdict.model in comparison.identical:
            continue
        colour, answer = _ANSWERS[verdict.answer], verdict.answer.capitalize()
        said = cell(verdict.sentence, LONGEST_LINE)
        console.print(f"[bold]{verdict.asked}[/bold] [{colour}]{answer}[/{colour}]. {said}")
    for note in comparison.notes:
        console.print(f"note: {cell(note, LONGEST_LINE)}")

    rows = comparison.overview(metrics)
    for model in comparison.names[1:]:
        for title, clean in (("on clean images", True), ("over all corruptions", False)):
            chosen = rows[(rows["model"] == model) & ((rows["corruption"] == "clean") == clean)]
            if not len(chosen):
                continue
            beside = [] if clean else ["control"]
            numbers = ["mean", "baseline", *beside, "difference", "95 % interval", "p"]
            table = new_table(f"{cell(model)}, {title}", ["metric"], numbers)
            for metric, _, _, _, mean, other, control, difference, interval, p_value, _, _ in cells(chosen):
                own = [] if clean else [control.partition(" / ")[0]]
                table.add_row(cell(metric), mean, other, *own, difference, interval, p_value)
            console.print()
            console.print(table)
    overview = comparison.table[comparison.table["family"] == OVERVIEW]
    tests = int(overview["p_value"].notna().sum())
    control = "the same metric between two different clean images" if comparison.controlled else NOT_MEASURED
    console.print(f"p after Holm over {tests} tests, every metric over all layers, clean and corrupted; control: {control}")

    found = comparison.fragility.dropna(subset=["auroc"])
    within = found[(found["layers"] == "all") & (found["corruption"] == EVERY)]
    within = within.assign(strength=(within["auroc"] - 0.5).abs()).sort_values("strength", ascending=False, kind="stable")
    others = found[
        (found["metric"] == CORRUPTION_ALONE) | ((found["metric"] == CLEAN_CONFIDENCE) & (found["corruption"] == EVERY))
    ]
    pooled = found[found["corruption"] == POOLED].set_index(["model", "metric", "layers"])["auroc"]
    for name in comparison.names:
        told = new_table(
            f"Metrics that predict flips of {cell(name)} ({flips_of(within, name)}), within a corruption and severity",
            ["metric"],
            ["AUROC", "95 % interval", "pooled", "Spearman", "95 % interval"],
        )
        listed = within[within["model"] == name].head(_METRICS_PER_MODEL).to_dict("records")
        for row in listed + others[others["model"] == name].to_dict("records") if listed else []:
            alone = row["metric"] == CORRUPTION_ALONE
            area, rank = (
                ["–", "–"] if alone else [
                    decimal(row[score], sign=score == "spearman", places=2),
                    interval_text(row[f"{score}_low"], row[f"{score}_high"], sign=score == "spearman", places=2),
                ]
                for score in ("auroc", "spearman")
            )  # fmt: skip
            together = decimal(pooled.get((name, row["metric"], row["layers"]), float("nan")), places=2)
            told.add_row(measure_title(row["metric"]), *area, together, *rank)
        if told.row_count:
            console.print()
            console.print(told)
    if len(within):
        console.print("of each model, the metrics farthest from 0.5 are shown; intervals are not adjusted for that choice")


def flips_of(found: "pd.DataFrame", name: str) -> str:
    """How many predictions of a model flip, in words."""
    rows = found[found["model"] == name]
    return f"{rows['flipped'].max():,} of {rows['count'].max():,}" if len(rows) else "none"
