"""A comparison on the terminal: the verdicts in words, then the numbers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from overfocus.results.comparison import Comparison

_ANSWERS = {"yes": "green", "no": "red", "can't tell": "yellow"}
_METRICS_PER_MODEL = 5


def print_comparison(comparison: "Comparison") -> None:
    """Print the verdicts, the overview of differences, and which metrics tell best which predictions flip."""
    from rich.console import Console
    from rich.markup import escape

    from overfocus.results.overview import cells, decimal, metric_label

    console = Console(highlight=False)
    models = ", ".join(comparison.names[1:])
    console.print(
        f"\n[bold]{escape(models)}[/bold] against [bold]{escape(comparison.baseline)}[/bold], {len(comparison.images)} images\n"
    )
    for verdict in comparison.verdicts:
        colour = _ANSWERS[verdict.answer]
        console.print(f"[bold]{verdict.asked}[/bold] [{colour}]{verdict.answer}[/{colour}]. {escape(verdict.sentence)}")
    for note in comparison.notes:
        console.print(f"note: {escape(note)}")

    rows = comparison.overview()
    for model in comparison.names[1:]:
        for title, clean in (("on clean images", True), ("over all corruptions", False)):
            chosen = rows[(rows["model"] == model) & ((rows["corruption"] == "clean") == clean)]
            if not len(chosen):
                continue
            table = _table(
                f"{escape(model)}, {title}", ["metric"], ["mean", "baseline", "difference", "95 % interval", "p", "d_z"]
            )
            for metric, _, _, _, *numbers, _ in cells(chosen):
                table.add_row(escape(metric), *numbers)
            console.print()
            console.print(table)
    console.print("p of the Wilcoxon signed-rank test after Holm; d_z: difference in its standard deviations over images")

    found = comparison.fragility
    found = found[(found["layers"] == "all") & (found["corruption"] == "all")].dropna(subset=["auroc"])
    if not len(found):
        return
    found = found.assign(strength=(found["auroc"] - 0.5).abs()).sort_values("strength", ascending=False, kind="stable")
    for name in comparison.names:
        told = _table(
            f"What tells that a prediction of {escape(name)} flips",
            ["metric"],
            ["AUROC", "95 % interval", "Spearman", "95 % interval", "flipped"],
        )
        for row in found[found["model"] == name].head(_METRICS_PER_MODEL).to_dict("records"):
            intervals = (
                [decimal(row[key], sign=key.startswith("s"), places=2) for key in (score, f"{score}_low", f"{score}_high")]
                for score in ("auroc", "spearman")
            )
            numbers = [text for value, low, high in intervals for text in (value, f"{low} … {high}")]
            told.add_row(metric_label(row["metric"], float("nan")), *numbers, f"{row['flipped']:,} of {row['count']:,}")
        if told.row_count:
            console.print()
            console.print(told)


def _table(title: str, words: list[str], numbers: list[str]) -> "Table":
    """An empty table with columns of words, then of numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
    for heading in words:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
