"""Evaluations of classifiers and ablations on the terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overfocus.evaluation.results import Evaluation
    from overfocus.results.ablation import Ablation


def describe_evaluation(evaluation: "Evaluation") -> str:
    """An evaluation in some lines."""
    summary = evaluation.summary
    lines = [f"{summary['model']} ({summary['checkpoint']}), {summary['data']['images']:,} images"]
    films = summary["flips"] is not None
    made = "first frames of films" if films else f"corrupted ({summary['data']['corruptions']})"
    width = max(24, len(made))
    for kind, words in (("clean", "clean"), ("corrupted", made)):
        if summary[kind] is not None:
            mean = summary[kind]
            five = f"{mean['top5']:7.2%}" if mean["top5"] is not None else "      –"
            shares = f"top-1 {mean['top1']:7.2%}   top-5 {five}"
            lines.append(f"{words:{width}} {shares}   ECE {mean['ece']:.4f}   NLL {mean['nll']:.4f}")
    table = evaluation.table
    corrupted = table[table["severity"] > 0]
    if len(corrupted):
        levels = sorted({int(level) for level in corrupted["severity"]})
        title = "top-1 of first frames" if films else "top-1 by severity"
        lines.append(f"\n{title:24}" + "".join(f"{level:>9}" for level in levels) + "     mean")
        for name, part in corrupted.groupby("corruption", sort=False):
            by_level = dict(zip(part["severity"], part["top1"], strict=True))
            cells = "".join(f"{by_level[level]:9.2%}" if level in by_level else " " * 9 for level in levels)
            lines.append(f"{str(name).replace('_', ' '):24}{cells}{part['top1'].mean():9.2%}")
    if films:
        rates = "".join(f"\n{name.replace('_', ' '):24}{rate:9.2%}" for name, rate in summary["flips"]["perturbations"].items())
        lines.append(f"\nmean flip rate {summary['flips']['mean_flip_rate']:.2%}: {summary['flips']['note']}{rates}")
    mce = summary["mce"]
    if mce is not None:
        value = f"mCE {mce['mce']:.1f} %" if mce["mce"] is not None else "mCE not defined"
        relative = f", relative mCE {mce['relative_mce']:.1f} %" if mce["relative_mce"] is not None else ""
        lines.append(f"\n{value}{relative}: {mce['note']}" if mce["relative_to"] else f"\n{mce['note']}")
        lines += [mce["relative_note"]] if mce["relative_note"] else []
    lines += [f"note: {note}" for note in summary["notes"]]
    if summary["data"]["skipped"]:
        lines.append(f"note: images left out because they could not be read: {summary['data']['skipped']}")
    return "\n".join([*lines, f"run: {evaluation.path}\n"])


def print_ablation(found: "Ablation") -> None:
    """The answer in words, then a table per version of the images: what is left without k patches of each choice."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from overfocus.statistics.ablation import CHOICES
    from overfocus.statistics.verdicts import decimal, variant_label

    console = Console(highlight=False)
    console.print(f"\n[bold]{escape(found.model)}[/bold], {found.images} images\n")
    for sentence in found.sentences:
        console.print(sentence, markup=False)
    classes = found.table["agreement"].notna().any()
    quantities = {"agreement": "same class"} if classes else {}
    quantities |= {"output_cosine": "output cosine"}
    removed = found.table[found.table["k"] > 0]
    done = "removed" if found.how == "remove" else "corrupted"
    for corruption, severity in dict.fromkeys(zip(removed["corruption"], removed["severity"], strict=True)):
        rows = removed[(removed["corruption"] == corruption) & (removed["severity"] == severity)]
        title = f"{variant_label(str(corruption), int(severity))}, patches {done}"
        table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
        table.add_column("patches", no_wrap=True)
        choices = [choice for choice in CHOICES if choice in set(rows["choice"])]
        for heading in quantities.values():
            for choice in choices:
                table.add_column(f"{heading}: {choice}", justify="right")
        for (count, share), cells in rows.groupby(["k", "fraction"], sort=False):
            by_choice = cells.set_index("choice")
            values = [decimal(float(by_choice[name][choice])) for name in quantities for choice in choices]
            table.add_row(f"{count} ({100 * share:.0f} %)", *values)
        console.print()
        console.print(table)
    if (removed["count"] == 0).any():
        console.print(
            "\nno value: all other patches together receive less than the most attended ones, so none are of equal mass"
        )
