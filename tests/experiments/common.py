"""What the experiments share: trainings side by side, the corrupted test images, predictions, and the analysis.

A job is one model: it is trained and then shown every test image, clean and under 15 corruptions at 5 severities. A finished job
is a file of predictions, so that the same command goes on where it was stopped, and on another machine once these files are
copied there.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import stats

from overfocus.corruptions import GROUPS, SEVERITIES, ConstantSet, corrupt, prepare_corruptions
from overfocus.files import atomic_file

BASELINE = "baseline"
ARMS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "TAP": {"tap": 4},
    "ADL": {"adl": 1.0},
    "TAP+ADL": {"tap": 4, "adl": 1.0},
}
"""Branches of TAP and weight λ of ADL."""
VARIANTS = [("clean", 0), *((name, severity) for name in GROUPS["common"] for severity in SEVERITIES)]
LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Job:
    """One model to train."""

    group: str
    """Which comparison it belongs to; a model is compared with the baseline of its group."""
    arm: str
    seed: int
    recipe: dict[str, Any] = field(default_factory=dict)
    """Changes to the recipe of the experiment."""
    model: dict[str, Any] = field(default_factory=dict)
    """Changes to the arguments of the model."""

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.group}, {self.arm}, seed {self.seed}"

    @property
    def tap(self) -> int | None:
        """Branches of TAP."""
        return ARMS[self.arm].get("tap")

    @property
    def adl(self) -> float:
        """λ."""
        return float(ARMS[self.arm].get("adl", 0.0))


def run_jobs(run: Callable[..., None], jobs: Sequence[Job], processes: int, minutes: float | None, *arguments: Any) -> bool:
    """Call `run(job, *arguments)` in so many processes; whether all jobs were done.

    After `minutes` no further job is begun. A job that fails is reported and does not stop the others.
    """
    began, failed, left = time.monotonic(), 0, 0
    os.environ["OMP_NUM_THREADS"] = "1"  # of each process
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        deadline = None if minutes is None else time.time() + 60 * minutes
        futures = {pool.submit(_run_job, run, job, deadline, arguments): job for job in jobs}
        for number, future in enumerate(as_completed(futures), 1):
            job = futures[future]
            try:
                left += not future.result()
            except Exception:
                failed += 1
                traceback.print_exc()
            print(f"{time.monotonic() - began:6.0f} s  {number}/{len(jobs)}  {job.name}", flush=True)
    print(f"{len(jobs)} models: {len(jobs) - failed - left} done, {failed} failed, {left} not begun", file=sys.stderr)
    return not failed and not left


def _run_job(run: Callable[..., None], job: Job, deadline: float | None, arguments: tuple[Any, ...]) -> bool:
    if deadline is not None and time.time() > deadline:
        return False
    torch.set_num_threads(1)
    run(job, *arguments)
    return True


def write_corrupted(
    folder: Path, images: np.ndarray, *, constants: ConstantSet, channels: int, processes: int, only: Sequence[str] = ()
) -> None:
    """Corrupt uint8 (images, height, width, 3) once for all models: one file for each corruption and severity, and "clean".

    A model with one channel gets the luma of the corrupted RGB image. `only`: these corruptions, to try a script.
    """
    folder.mkdir(parents=True, exist_ok=True)
    todo = [
        variant for variant in VARIANTS if not _file(folder, *variant).is_file() and (not only or variant[0] in (*only, "clean"))
    ]
    if not todo:
        return
    prepare_corruptions(GROUPS["common"])
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(_write_variant, folder, images, variant, constants, channels) for variant in todo]
        for task in tasks:
            task.result()


def _write_variant(folder: Path, images: np.ndarray, variant: tuple[str, int], constants: ConstantSet, channels: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    name, severity = variant
    pixels = images if severity == 0 else np.stack([corrupt(image, name, severity, 0, constants) for image in images])
    if channels == 1:
        pixels = np.stack([np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in pixels])
    with atomic_file(_file(folder, *variant)) as file:
        np.save(file, np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def _file(folder: Path, name: str, severity: int) -> Path:
    return folder / f"{name}-{severity}.npy"


def read_corrupted(folder: Path) -> Iterable[tuple[tuple[str, int], np.ndarray]]:
    """Each variant that was written, and its pixels, uint8 (images, channels, height, width)."""
    for variant in VARIANTS:
        if _file(folder, *variant).is_file():
            yield variant, np.load(_file(folder, *variant))


@torch.inference_mode()
def predict(
    model: torch.nn.Module, folder: Path, mean: Sequence[float], std: Sequence[float], device: str, batch: int = 1000
) -> dict[str, np.ndarray]:
    """Classes by variant ("fog-3"), each uint8 (images,)."""
    model = model.to(device).eval()
    middle, scale = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
    found = {}
    for (name, severity), pixels in read_corrupted(folder):
        classes = []
        for start in range(0, len(pixels), batch):
            images = torch.from_numpy(pixels[start : start + batch]).to(device).float() / 255
            classes.append(model((images - middle) / scale).argmax(-1))
        found[f"{name}-{severity}"] = torch.cat(classes).cpu().numpy().astype(np.uint8)
    return found


def save_predictions(output: Path, job: Job, predictions: dict[str, np.ndarray], **told: float) -> None:
    """Mark a job as done; `told` goes into the table of models."""
    folder = output / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / f"{job.name}.npz") as file:
        np.savez_compressed(file, told=np.array(json.dumps(told)), **predictions)


def is_done(output: Path, job: Job) -> bool:
    """Whether its predictions are there."""
    return (output / "predictions" / f"{job.name}.npz").is_file()


@dataclass(frozen=True)
class Outcome:
    """What one model made of the test images."""

    clean: np.ndarray
    """Whether each clean image is classified wrong, or the share of a unit's images."""
    by_corruption: dict[str, np.ndarray]
    """By corruption, the share of its severities under which each image is classified wrong."""
    told: dict[str, float]

    @property
    def corrupted(self) -> np.ndarray:
        """By image, the share of all corruptions and severities under which it is classified wrong."""
        return np.mean(list(self.by_corruption.values()), axis=0)


def read_outcome(output: Path, job: Job, labels: np.ndarray, units: np.ndarray | None = None) -> Outcome:
    """The errors of a finished job; `units` puts images together that are alike, as many in each."""
    with np.load(output / "predictions" / f"{job.name}.npz", allow_pickle=False) as file:
        told = json.loads(str(file["told"]))
        wrong = {name: file[name] != labels for name in file.files if name != "told"}
    if units is not None:
        wrong = {name: np.bincount(units, values) / np.bincount(units) for name, values in wrong.items()}
    names = [name for name in GROUPS["common"] if f"{name}-1" in wrong]
    shares = {name: np.mean([wrong[f"{name}-{severity}"] for severity in SEVERITIES], axis=0) for name in names}
    return Outcome(wrong["clean-0"], shares, told)


def crossed_interval(differences: np.ndarray, level: float = 1 - LEVEL) -> tuple[float, float]:
    """Interval of the mean of paired differences (seeds, images), for other seeds and other images of the same kind.

    Every seed sees every image: crossed random effects, whose mean has the variance (MS_seeds + MS_images − MS_rest) /
    (seeds · images). The part of the seeds, MS_seeds, is known with seeds − 1 degrees of freedom only, and that of the images,
    MS_images − MS_rest, with images − 1: each gets its own quantile of Student's t, and the two half-widths add up like errors.
    With three seeds it is wide rather than too narrow. With one seed it holds for other images alone.

    Source of the variance: Searle, Casella, McCulloch, "Variance Components", 1992, section 4.6.
    """
    seeds, images = differences.shape
    mean = float(differences.mean())
    by_seed, by_image = differences.mean(1, keepdims=True), differences.mean(0, keepdims=True)
    of_images = seeds * np.sum((by_image - mean) ** 2) / (images - 1)
    squared = stats.t.ppf((1 + level) / 2, images - 1) ** 2 * of_images
    if seeds > 1:
        of_seeds = images * np.sum((by_seed - mean) ** 2) / (seeds - 1)
        rest = np.sum((differences - by_seed - by_image + mean) ** 2) / ((seeds - 1) * (images - 1))
        squared = stats.t.ppf((1 + level) / 2, images - 1) ** 2 * max(of_images - rest, 0.0)
        squared += stats.t.ppf((1 + level) / 2, seeds - 1) ** 2 * of_seeds
    half = float(np.sqrt(squared / differences.size))
    return mean - half, mean + half


def detectable(spread: float, seeds: int) -> float:
    """The true difference that a paired t-test over so many seeds finds with a power of 0.8 at the 5 % level, two-sided.

    `spread` is the standard deviation of the differences between seeds. NaN for fewer than two seeds.
    """
    if seeds < 2:
        return float("nan")
    freedom, critical = seeds - 1, stats.t.ppf(1 - LEVEL / 2, seeds - 1)
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        power = 1 - stats.nct.cdf(critical, freedom, middle)
        low, high = (middle, high) if power < POWER else (low, middle)
    return high * spread / seeds**0.5


def compare(own: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean difference of errors in percentage points; lists of (images,) by seed, the same seeds in both.

    The interval is for other seeds and images; p is that of the paired t-test over seeds.
    """
    differences = 100 * (np.stack(own).astype(float) - np.stack(base).astype(float))
    by_seed = differences.mean(axis=1)
    low, high = crossed_interval(differences)
    spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan")
    p_value = float(stats.ttest_1samp(by_seed, 0).pvalue) if len(by_seed) > 1 and spread > 0 else float("nan")
    return {
        "difference": float(by_seed.mean()),
        "low": low,
        "high": high,
        "p_value": p_value,
        "seeds": len(by_seed),
        "images": differences.shape[1],
        "spread_of_seeds": spread,
        "detectable": detectable(spread, len(by_seed)),
    }


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values corrected for all of them being read together (Holm 1979)."""
    values = np.asarray(p_values, float)
    order = np.argsort(values)
    corrected = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return corrected[np.argsort(order)]


def write_tables(
    output: Path, jobs: Sequence[Job], baselines: dict[str, str], labels: np.ndarray, units: np.ndarray | None = None
) -> None:
    """models.csv, differences.csv, corruptions.csv and results.md in output/results, of the jobs that are done.

    `baselines`: by group, the group whose baseline it is compared with. `units`: as `read_outcome`.
    """
    done = {(job.group, job.arm, job.seed): read_outcome(output, job, labels, units) for job in jobs if is_done(output, job)}
    results = output / "results"
    results.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "group": group, "arm": arm, "seed": seed,
            "clean_error": 100 * outcome.clean.mean(), "corrupted_error": 100 * outcome.corrupted.mean(), **outcome.told,
        }
        for (group, arm, seed), outcome in done.items()
    ]  # fmt: skip
    models = pd.DataFrame(rows)
    models.to_csv(results / "models.csv", index=False, float_format="%.4f")
    differences, by_corruption = [], []
    for group, arm in dict.fromkeys((group, arm) for group, arm, _ in done):
        reference = baselines[group]
        seeds = [seed for (of, kind, seed) in done if (of, kind) == (group, arm) and (reference, BASELINE, seed) in done]
        if not seeds or (group, arm) == (reference, BASELINE):
            continue
        own, base = ([done[(*key, seed)] for seed in seeds] for key in ((group, arm), (reference, BASELINE)))
        for measure in ("corrupted", "clean"):
            values = compare([getattr(item, measure) for item in own], [getattr(item, measure) for item in base])
            differences.append({"group": group, "arm": arm, "error": measure, **values})
        for name in own[0].by_corruption:
            values = compare([item.by_corruption[name] for item in own], [item.by_corruption[name] for item in base])
            by_corruption.append({"group": group, "arm": arm, "corruption": name, **values})
    pd.DataFrame(differences).to_csv(results / "differences.csv", index=False, float_format="%.5g")
    if by_corruption:
        table = pd.DataFrame(by_corruption)
        table["p_holm"] = table.groupby("group")["p_value"].transform(lambda values: holm(values.to_numpy()))
        table.to_csv(results / "corruptions.csv", index=False, float_format="%.5g")
    (results / "results.md").write_text(as_markdown(models, pd.DataFrame(differences)), encoding="utf-8")
    print(f"{results}: tables of {len(done)} of {len(jobs)} models", flush=True)


def as_markdown(models: pd.DataFrame, differences: pd.DataFrame) -> str:
    """Errors and differences of each arm for the README."""
    lines = [
        "| group | arm | seeds | clean error | error over 15 × 5 | difference, 95 % interval | p | detectable |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (group, arm), rows in models.groupby(["group", "arm"], sort=False) if len(models) else ():
        cells = [group, arm, str(len(rows)), f"{rows['clean_error'].mean():.2f} %", f"{rows['corrupted_error'].mean():.2f} %"]
        found = pd.DataFrame()
        if len(differences):
            chosen = (differences["group"] == group) & (differences["arm"] == arm) & (differences["error"] == "corrupted")
            found = differences[chosen]
        if len(found):
            row = found.iloc[0]
            cells += [
                f"{row['difference']:+.2f}, {row['low']:+.2f} … {row['high']:+.2f}",
                f"{row['p_value']:.2g}",
                f"{row['detectable']:.2f}",
            ]
        lines.append("| " + " | ".join([*cells, "", "", ""][:8]) + " |")
    return "\n".join(lines) + "\n"
