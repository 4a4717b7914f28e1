"""Tables of the experiment: each variant against the baseline, with intervals over seeds and images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from experiment_intervals import crossed_interval

from overfocus.metrics.catalogue import CATALOGUE
from overfocus.run import Run

BASELINE = "baseline"
MAIN = (BASELINE, "TAP", "ADL", "TAP+ADL")
SEVERITIES = (0, 1, 3, 5)
METRICS = [name for name, metric in CATALOGUE.items() if metric.group != "prediction"]


def write_tables(work: Path, results: Path) -> None:
    """Write accuracy.csv, corruptions.csv, attention.csv and results.md of the seeds that are finished so far."""
    results.mkdir(parents=True, exist_ok=True)
    runs = {name: runs_of(work / "runs", name) for name in MAIN}
    clean = {name: runs_of(work / "evaluations", name) for name in MAIN}
    seeds = [seed for seed in runs[BASELINE] if all(seed in runs[name] and seed in clean[name] for name in MAIN)]
    if not seeds:
        print("no seed has all four variants yet; no tables written")
        return
    accuracy = accuracy_table(runs, clean, seeds)
    by_corruption = corruption_table(runs, seeds)
    attention = attention_table(runs, seeds)
    for name, table in (("accuracy", accuracy), ("corruptions", by_corruption), ("attention", attention)):
        table.to_csv(results / f"{name}.csv", index=False, float_format="%.5f")
    (results / "results.md").write_text(as_markdown(accuracy, attention, len(seeds)), encoding="utf-8")
    print(f"{results}: tables of {len(seeds)} seeds")


def runs_of(folder: Path, variant: str) -> dict[int, Run]:
    """Finished runs of a variant by seed."""
    found = {}
    for path in sorted(folder.glob(f"{variant} seed *")):
        if (path / "run.json").is_file() and (run := Run(path)).complete:
            found[int(path.name.rpartition(" ")[2])] = run
    return found


def right(run: Run, severity: int, corruption: str | None = None) -> pd.Series:
    """By image: share of the corruptions at a severity under which it is classified right."""
    table = run.predictions
    chosen = table[(table["severity"] == severity) & (True if corruption is None else table["corruption"] == corruption)]
    return chosen.groupby("name")["correct"].mean()


def row(values: dict[str, list[pd.Series]], variant: str, **identity: object) -> dict[str, object]:
    """Mean of a variant and its difference to the baseline; `values` are by variant and seed, each a series over images."""
    table = pd.concat([pd.concat(values[name], axis=1) for name in (variant, BASELINE)], axis=1, keys=("own", "base")).dropna()
    own, base = (table[key].to_numpy().T for key in ("own", "base"))
    low, high = crossed_interval(own - base) if variant != BASELINE else (np.nan, np.nan)
    return {
        "variant": variant,
        **identity,
        "mean": own.mean() if own.size else np.nan,
        "difference": (own - base).mean() if variant != BASELINE and own.size else np.nan,
        "low": low,
        "high": high,
        "seeds": own.shape[0],
        "images": own.shape[1],
    }


def accuracy_table(runs: dict[str, dict[int, Run]], clean: dict[str, dict[int, Run]], seeds: Sequence[int]) -> pd.DataFrame:
    """Accuracy on all clean test images, and under the corruptions at each severity and over all three."""
    rows = []
    values = {name: [right(clean[name][seed], 0) for seed in seeds] for name in runs}
    rows += [row(values, name, images_are="clean", severity=0) for name in runs]
    parts = {
        severity: {name: [right(runs[name][seed], severity) for seed in seeds] for name in runs} for severity in SEVERITIES[1:]
    }
    for severity, by_variant in parts.items():
        rows += [row(by_variant, name, images_are="corrupted", severity=severity) for name in runs]
    means = {
        name: [sum(parts[severity][name][place] for severity in parts) / len(parts) for place in range(len(seeds))]
        for name in runs
    }
    rows += [row(means, name, images_are="corrupted, all", severity=-1) for name in runs]
    return pd.DataFrame(rows)


def corruption_table(runs: dict[str, dict[int, Run]], seeds: Sequence[int]) -> pd.DataFrame:
    """Accuracy by corruption and severity."""
    rows = []
    names = [name for name in runs[BASELINE][seeds[0]].predictions["corruption"].unique() if name != "clean"]
    for corruption in names:
        for severity in SEVERITIES[1:]:
            values = {name: [right(runs[name][seed], severity, corruption) for seed in seeds] for name in runs}
            rows += [row(values, name, corruption=corruption, severity=severity) for name in runs]
    return pd.DataFrame(rows)


def attention_table(runs: dict[str, dict[int, Run]], seeds: Sequence[int]) -> pd.DataFrame:
    """Every metric of attention by layer and severity (0: clean), means over the corruptions."""
    means = {
        name: [runs[name][seed].table.groupby(["layer", "severity", "name"])[METRICS].mean() for seed in seeds] for name in runs
    }
    rows = []
    layers = means[BASELINE][0].index.get_level_values("layer").unique()
    for metric in METRICS:
        for layer in layers:
            for severity in SEVERITIES:
                values = {name: [table[metric].loc[layer, severity] for table in tables] for name, tables in means.items()}
                found = [row(values, name, metric=metric, layer=layer, severity=severity) for name in runs]
                rows += [entry for entry in found if entry["images"]]
    return pd.DataFrame(rows)


def as_markdown(accuracy: pd.DataFrame, attention: pd.DataFrame, seeds: int) -> str:
    """The main results as tables for the README."""
    kinds = [("clean", 0), ("corrupted", 1), ("corrupted", 3), ("corrupted", 5), ("corrupted, all", -1)]
    heads = ["clean", "severity 1", "severity 3", "severity 5", "all corrupted"]
    lines = ["| variant | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for variant in MAIN:
        cells = []
        for kind, severity in kinds:
            chosen = accuracy[
                (accuracy["variant"] == variant) & (accuracy["images_are"] == kind) & (accuracy["severity"] == severity)
            ].iloc[0]
            cells.append(f"{chosen['mean']:.1%}" + ("" if variant == BASELINE else f" ({change(chosen, 100, 1)})"))
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Accuracy, mean of {seeds} seeds; in brackets the difference to the baseline in percentage points, 95 % interval.",
    ]
    for metric, severity, words in (
        ("top_share", 0, "Share of the attention on the top 5 % of the patches, clean images"),
        ("attention_cosine", 3, "Cosine of each patch's attention, clean and under corruption of severity 3"),
    ):
        part = attention[(attention["metric"] == metric) & (attention["severity"] == severity)]
        layers = sorted(part["layer"].unique())
        lines += ["", "| variant | " + " | ".join(f"layer {layer}" for layer in layers) + " |", "|---" * (len(layers) + 1) + "|"]
        for variant in MAIN:
            cells = []
            for layer in layers:
                chosen = part[(part["variant"] == variant) & (part["layer"] == layer)].iloc[0]
                cells.append(f"{chosen['mean']:.3f}" + ("" if variant == BASELINE else f" ({change(chosen, 1, 3)})"))
            lines.append(f"| {variant} | " + " | ".join(cells) + " |")
        lines += ["", f"{words}; in brackets the difference to the baseline, 95 % interval."]
    return "\n".join(lines) + "\n"


def change(chosen: pd.Series, factor: float, digits: int) -> str:
    """A difference with its interval in words, times `factor`."""
    low, high, middle = (factor * chosen[name] for name in ("low", "high", "difference"))
    return f"{middle:+.{digits}f}, {low:+.{digits}f} … {high:+.{digits}f}"
