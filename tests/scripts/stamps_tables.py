"""Tables of the segmentation experiment: each variant against the baseline, with intervals over seeds and images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from experiment_tables import BASELINE, MAIN, change, row, runs_of
from jaxtyping import Float, Int

from overfocus.run import Run

SEEDS = (0, 1, 2)
SEVERITIES = [1, 3, 5]
ALL = -1
"""Stands for the mean over the severities."""


def write_tables(work: Path, results: Path) -> None:
    """Write predictions.csv, objects.csv and results.md of the seeds that are finished so far."""
    runs = {name: runs_of(work / "runs", name) for name in MAIN}
    seeds = [seed for seed in runs[BASELINE] if all(seed in runs[name] for name in MAIN)]
    if not seeds:
        print("no seed has all four variants yet; no tables written")
        return
    results.mkdir(parents=True, exist_ok=True)
    predictions, objects = prediction_table(runs, seeds), object_table(runs, seeds)
    predictions.to_csv(results / "predictions.csv", index=False, float_format="%.5f")
    objects.to_csv(results / "objects.csv", index=False, float_format="%.5f")
    (results / "results.md").write_text(as_markdown(predictions, objects, len(seeds)), encoding="utf-8")
    print(f"{results}: tables of {len(seeds)} seeds")


def linearised_iou(
    intersections: Int[np.ndarray, "images classes"], unions: Int[np.ndarray, "images classes"]
) -> Float[np.ndarray, " images"]:
    """A value for each image whose mean is the mIoU of the set, and whose spread is that of the mIoU over sets of images.

    The mIoU of accumulated pixels is no mean over images; to first order it moves with image i by these values (delta method:
    Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 21). Classes without a pixel do not count.
    """
    known = unions.sum(0) > 0
    intersections, unions = intersections[:, known], unions[:, known]
    iou = intersections.sum(0) / unions.sum(0)
    moves: Float[np.ndarray, " images"] = ((intersections - iou * unions) * len(unions) / unions.sum(0)).mean(1)
    return iou.mean() + moves


def scores(run: Run, score: str, severity: int) -> pd.Series:
    """By image: mean over the corruptions of a severity (0: clean) of "mIoU" (linearised) or "pixel accuracy"."""
    if severity == ALL:
        return sum(scores(run, score, level) for level in SEVERITIES) / len(SEVERITIES)
    table = run.predictions[run.predictions["severity"] == severity].sort_values("image")
    if score == "pixel accuracy":
        return table.groupby("name")["correct"].mean()
    parts = []
    for _, part in table.groupby("corruption"):
        counts = (np.stack(part[column].to_list()) for column in ("intersections", "unions"))
        parts.append(pd.Series(linearised_iou(*counts), index=part["name"]))
    return sum(parts) / len(parts)


def prediction_table(runs: dict[str, dict[int, Run]], seeds: Sequence[int]) -> pd.DataFrame:
    """mIoU of the set and pixel accuracy, clean, at each severity and over all three."""
    rows = []
    for score in ("mIoU", "pixel accuracy"):
        for severity in (0, *SEVERITIES, ALL):
            values = {name: [scores(runs[name][seed], score, severity) for seed in seeds] for name in runs}
            rows += [row(values, name, score=score, severity=severity) for name in runs]
    return pd.DataFrame(rows)


def object_table(runs: dict[str, dict[int, Run]], seeds: Sequence[int]) -> pd.DataFrame:
    """Share of the received attention on objects, anything but background, by layer, beside their share of the area."""
    rows = []
    shares = {name: [object_shares(runs[name][seed]) for seed in seeds] for name in runs}
    for layer in shares[BASELINE][0].index.get_level_values("layer").unique():
        for severity in (0, *SEVERITIES):
            for column in ("received_share", "area_share"):
                values = {name: [table[column].loc[layer, severity] for table in tables] for name, tables in shares.items()}
                rows += [row(values, name, share=column, layer=layer, severity=severity) for name in runs]
    return pd.DataFrame(rows)


def object_shares(run: Run) -> pd.DataFrame:
    """received_share and area_share of all objects of an image, by (layer, severity, name); means over the corruptions."""
    table = run.attention_by_class
    objects = table[table["class"] != 0]
    by_version = objects.groupby(["layer", "severity", "name", "corruption"])[["received_share", "area_share"]].sum()
    return by_version.groupby(["layer", "severity", "name"]).mean()


def as_markdown(predictions: pd.DataFrame, objects: pd.DataFrame, seeds: int) -> str:
    """The main results as tables for the README."""
    lines = ["| variant | clean | severity 1 | severity 3 | severity 5 | all corrupted | pixels right, clean |", "|---" * 7 + "|"]
    columns = [("mIoU", severity) for severity in (0, *SEVERITIES, ALL)] + [("pixel accuracy", 0)]
    for variant in MAIN:
        cells = []
        for score, severity in columns:
            chosen = _one(predictions, variant=variant, score=score, severity=severity)
            cells.append(f"{chosen['mean']:.1%}" + ("" if variant == BASELINE else f" ({change(chosen, 100, 1)})"))
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    layers = sorted(objects["layer"].unique())
    lines += ["", f"mIoU, mean of {seeds} seeds; in brackets the difference to the baseline in points, 95 % interval.", ""]
    lines += ["| variant | " + " | ".join(f"layer {layer}" for layer in layers) + " |", "|---" * (len(layers) + 1) + "|"]
    for variant in MAIN:
        cells = []
        for layer in layers:
            chosen = _one(objects, variant=variant, share="received_share", layer=layer, severity=0)
            cells.append(f"{chosen['mean']:.3f}" + ("" if variant == BASELINE else f" ({change(chosen, 1, 3)})"))
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    area = _one(objects, variant=BASELINE, share="area_share", layer=layers[0], severity=0)["mean"]
    lines += ["", f"Share of the received attention on objects, clean images; they cover {area:.3f} of the area."]
    return "\n".join(lines) + "\n"


def _one(table: pd.DataFrame, **wanted: object) -> pd.Series:
    """The row of a table with these values."""
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table.iloc[0]
