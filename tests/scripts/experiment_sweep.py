"""Table of the sweep: models of one seed, each against the baseline of its depth and length."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from experiment_tables import BASELINE, SEVERITIES, change, right, row, runs_of

from overfocus.run import Run
from overfocus.statistics.association import auroc

METRICS = {"top_share": 0, "diversification": 0, "row_entropy": 0, "attention_cosine": 3, "received_shift": 3}
"""By metric, the severity that it is shown at; 0 is clean."""
HEADS = {
    "top_share": "top share",
    "diversification": "ADL value",
    "row_entropy": "row entropy",
    "attention_cosine": "attention cosine, severity 3",
    "received_shift": "attention moved, severity 3",
    "flipped": "predictions flipped",
    "flip_auroc": "AUROC of attention moved for flips",
}


def write_sweep(work: Path, results: Path, references: Mapping[str, str], seed: int) -> None:
    """Write sweep.csv and sweep.md of the models that are finished so far.

    `references`: by model, in the order of the table, the model that it is compared with.
    """
    table = sweep_table(work, references, seed)
    if len(table):
        results.mkdir(parents=True, exist_ok=True)
        table.to_csv(results / "sweep.csv", index=False, float_format="%.5f")
        (results / "sweep.md").write_text(as_markdown(table), encoding="utf-8")
    print(f"{results}: {len(table)} of {len(references)} models of the sweep")


def sweep_table(work: Path, references: Mapping[str, str], seed: int) -> pd.DataFrame:
    """Accuracy, clean and over all corruptions and severities, and attention, means over all layers.

    Differences are paired over images. Their 95 % intervals are for other images and the same seed.
    """
    rows = []
    for name, reference in references.items():
        if not all(seed in runs_of(work / kind, model) for kind in ("runs", "evaluations") for model in (name, reference)):
            continue
        entry: dict[str, object] = {"model": name, "reference": reference}
        for kind in ("clean", "corrupted"):
            values = {label: [by_image(work, model, seed, kind)] for label, model in ((name, name), (BASELINE, reference))}
            found = row(values, BASELINE if name == reference else name)
            entry |= {kind: found["mean"], **{f"{kind}_{key}": found[key] for key in ("difference", "low", "high")}}
        layers = runs_of(work / "runs", name)[seed].table
        entry |= {metric: layers.loc[layers["severity"] == severity, metric].mean() for metric, severity in METRICS.items()}
        rows.append(entry | flips(runs_of(work / "runs", name)[seed]))
    return pd.DataFrame(rows)


def flips(run: Run) -> dict[str, float]:
    """Share of the corrupted pictures with another class than the clean one, and how well attention that moved tells which."""
    keys = ["name", "corruption", "severity"]
    moved = run.table[run.table["severity"] > 0].groupby(keys)["received_shift"].mean()
    flipped = run.predictions.set_index(keys)["agreement"].loc[moved.index] == 0
    images = pd.factorize(moved.index.get_level_values("name"))[0]
    return {"flipped": flipped.mean(), "flip_auroc": auroc(moved.to_numpy(), flipped.to_numpy(), images).value}


def by_image(work: Path, name: str, seed: int, kind: str) -> pd.Series:
    """By image: whether its class is found when it is clean, or under which share of all corruptions and severities."""
    if kind == "clean":
        return right(runs_of(work / "evaluations", name)[seed], 0)
    run: Run = runs_of(work / "runs", name)[seed]
    return sum(right(run, severity) for severity in SEVERITIES[1:]) / len(SEVERITIES[1:])


def as_markdown(table: pd.DataFrame) -> str:
    """The table for the README."""
    heads = ["one seed", "clean", "all corrupted", *HEADS.values()]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for _, model in table.iterrows():
        cells = [str(model["model"])]
        for kind in ("clean", "corrupted"):
            difference = model[[f"{kind}_{key}" for key in ("difference", "low", "high")]].set_axis(["difference", "low", "high"])
            told = "" if model["model"] == model["reference"] else f" ({change(difference, 100, 1)})"
            cells.append(f"{model[kind]:.1%}{told}")
        lines.append("| " + " | ".join([*cells, *(f"{model[column]:.3f}" for column in HEADS)]) + " |")
    return "\n".join(lines) + "\n"
