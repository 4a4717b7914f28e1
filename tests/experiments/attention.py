"""How the attention of trained models behaves: how concentrated it is, what is retained under corruption, what predicts flips,
and whether the most attended patches are those that predictions depend on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from common import Job, run_jobs
from PIL import Image

from overfocus import ablate, analyze
from overfocus.results.ablation import Ablation
from overfocus.run import Run
from overfocus.statistics.fragility import auroc
from overfocus.statistics.intervals import mean_interval
from overfocus.statistics.panel import Panel, over_layers, read_panel
from overfocus.statistics.retained import retained_interval

SEVERITY = 3
STABILITY = "attention_cosine"
"""The metric of stability that is reported."""
ABLATED, SHARE = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression"), 0.1
"""One corruption of each group, and the share of the patches that get it."""


def write_images(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """The images, uint8 RGB, as files in class folders."""
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def measure(
    jobs: Sequence[Job],
    output: Path,
    pixels: np.ndarray,
    labels: np.ndarray,
    device: str,
    processes: int,
    minutes: float | None,
) -> bool:
    """Measure the trained models on these images, and write results/attention.csv and results/ablations.csv once all are done."""
    write_images(output / "attention" / "images", pixels, labels)
    whole = run_jobs(measure_one, jobs, processes, minutes, output, device)
    if whole:
        (output / "results").mkdir(exist_ok=True)
        for name, make in (("attention", tabulate), ("ablations", tabulate_ablations)):
            make(output, jobs).to_csv(output / "results" / f"{name}.csv", index=False, float_format="%.4f")
    return whole


def measure_one(job: Job, output: Path, device: str) -> None:
    """Measure one model on the images under the 15 common corruptions, then corrupt single patches; resumable."""
    checkpoint, images = output / "trainings" / job.name / "model.safetensors", output / "attention" / "images"
    ablate(
        checkpoint,
        images,
        ABLATED,
        SEVERITY,
        output / "attention" / "ablations" / job.name,
        how="corrupt",
        draws=3,
        fractions=[SHARE],
        batch_size=64,
        workers=0,
        device=device,
        progress=False,
    )
    analyze(
        checkpoint,
        images,
        "common",
        SEVERITY,
        output / "attention" / "runs" / job.name,
        batch_size=64,
        workers=0,
        displayed=0,
        device=device,
        progress=False,
    )


def tabulate(output: Path, jobs: Sequence[Job]) -> pd.DataFrame:
    """One row for each model, then one for each arm, its seeds together (seed −1).

    Columns: top_share, of the patches that receive most attention, clean, mean over layers, with its interval over images;
    retained of `STABILITY` over all corruptions, 1 as if not corrupted, 0 as another image; auroc of the same metric for flipped
    predictions within corruption × seed, above 0.5 where steadier attention goes with kept predictions; flipped of count.
    """
    panels = [(job, read_panel(Run(output / "attention" / "runs" / job.name))) for job in jobs]
    of_arm = {arm: [panel for job, panel in panels if job.arm == arm] for arm in dict.fromkeys(job.arm for job in jobs)}
    models = [{"arm": job.arm, "seed": job.seed, **_describe([panel])} for job, panel in panels]
    return pd.DataFrame([*models, *({"arm": arm, "seed": -1, **_describe(found)} for arm, found in of_arm.items())])


def _describe(panels: Sequence[Panel]) -> dict[str, float]:
    corrupted = panels[0].corrupted
    clean = panels[0].variants.index(("clean", 0))
    share = np.mean([panel.values["top_share"][:, clean].mean(1) for panel in panels], axis=0)[:, None]
    low, high = mean_interval(share)
    variants = [panels[0].variants[place] for place in corrupted]
    retained = [retained_interval(panel, STABILITY, variants) for panel in panels]
    steadiness = np.stack(over_layers(panels, [panel.values[STABILITY] for panel in panels], "all"))[:, :, corrupted]
    flipped = np.stack([1 - panel.output["agreement"][:, corrupted] for panel in panels]) > 0
    seeds, images, places = np.indices(steadiness.shape)
    area = auroc(-steadiness.ravel(), flipped.ravel(), images.ravel(), (seeds * len(corrupted) + places).ravel())
    return {
        "top_share": float(share.mean()),
        "top_share_low": float(low[0]),
        "top_share_high": float(high[0]),
        "retained": float(np.mean([part.mean for part in retained])),
        **({"retained_low": retained[0].low, "retained_high": retained[0].high} if len(panels) == 1 else {}),
        "auroc": area.value,
        "auroc_low": area.low,
        "auroc_high": area.high,
        "flipped": int(flipped.sum()),
        "count": flipped.size,
    }


def tabulate_ablations(output: Path, jobs: Sequence[Job]) -> pd.DataFrame:
    """One row for each model, corruption and choice of patches that the most attended ones are compared with.

    Columns: arm, seed, and those of `Ablation.differences` for agreement: below 0 where corrupting the most attended tenth of
    the patches changes more predictions than corrupting as many random ones, the least attended, or random ones that receive
    as much attention together ("mass").
    """
    tables = []
    for job in jobs:
        table = Ablation(output / "attention" / "ablations" / job.name).differences
        tables.append(table[table["quantity"] == "agreement"].assign(arm=job.arm, seed=job.seed))
    return pd.concat(tables)[["arm", "seed", "corruption", "against", "k", "difference", "low", "high", "p_value", "count"]]


def ablations_as_markdown(table: pd.DataFrame) -> str:
    """For the README: by arm, the mean difference of agreement over corruptions in points, with that of each seed."""
    lines = [
        "| arm | against random patches, by seed | against the least attended | against random ones of equal mass |",
        "|---|---|---|---|",
    ]
    for arm, rows in table.groupby("arm", sort=False):
        cells = []
        for against in ("random", "bottom", "mass"):
            by_seed = 100 * rows[rows["against"] == against].groupby("seed")["difference"].mean()
            cells.append(f"{by_seed.mean():+.1f} ({', '.join(f'{value:+.1f}' for value in by_seed)})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
