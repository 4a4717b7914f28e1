"""The table of a comparison: every metric × layer group × variant × model against the baseline, paired over images.

Each side is a panel per run: one, or several of different seeds. With several, values are averaged over runs image by image, and
the interval takes both in: the images' differences as with one run, and beside them the spread of each side's run means, with the
degrees of freedom of both (B. L. Welch, "The generalization of 'Student's' problem", Biometrika 34, 1947).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from overfocus.metrics.catalogue import CATALOGUE
from overfocus.segmentation import mean_iou
from overfocus.statistics.intervals import (
    holm,
    is_rate,
    mcnemar_test,
    mean_and_error,
    mean_interval,
    rate_difference_interval,
    ratio_difference_interval,
    ratio_swap_test,
    resample_counts,
    sign_flip_test,
    student_p,
    student_reach,
    widened_quantiles,
)
from overfocus.statistics.panel import EVERY, LAYER_GROUPS, OUTPUT, Panel, masked_jointly, mean_of_known, over_layers, with_every
from overfocus.statistics.retained import RETAINED, distances, mean_noise, means_over_layers, stable_metrics, undefined_control
from overfocus.variants import CLEAN

Array = np.ndarray[Any, Any]
MEAN_IOU = "mean_iou"
"""What the mIoU of a whole set is called in tables."""
_ROUNDING = 1e-12
"""What double precision leaves of a difference that is exactly zero, relative to the values."""
OVERVIEW = "overview"
"""Family of the tests that are read together first: all layers, on clean images and over all corruptions."""
COLUMNS = (
    "metric", "layers", "corruption", "severity", "model", "mean", "baseline_mean", "control", "baseline_control", "retained",
    "baseline_retained", "difference", "low", "high", "p_value", "p_adjusted", "family", "effect_size", "count",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Differences:
    """How a model differs from the baseline; one entry per column, over the images where both have a value."""

    mean: Float[np.ndarray, "columns"]
    baseline_mean: Float[np.ndarray, "columns"]
    difference: Float[np.ndarray, "columns"]
    low: Float[np.ndarray, "columns"]
    """Lower end of the 95 % interval of the difference; NaN for fewer than two images."""
    high: Float[np.ndarray, "columns"]
    p_value: Float[np.ndarray, "columns"]
    effect_size: Float[np.ndarray, "columns"]
    """Cohen's d_z: mean difference over the standard deviation of the differences; NaN where that is 0."""
    count: Int[np.ndarray, "columns"]
    """Images where both have a value."""


def tabulate_differences(
    sides: Sequence[Sequence[Panel]], names: Sequence[str], *, resamples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """One row per metric × layers × corruption × severity × model other than the first; rows without a value are left out.

    Args:
        sides: the runs of each model, the baseline first; all with the same images and variants.
        names: of the models.
        resamples: of the bootstrap behind intervals of ratios and of mIoU.
        seed: of the bootstrap.

    Rows named "retained.METRIC" hold what is retained of a metric of stability against the control; the columns `control` and
    `retained` show the same beside the metric itself. Of segmentation models, "mean_iou" is the mIoU of all images as one set,
    without a test. `p_adjusted` is Holm's within `family`: "overview" where all layers, clean images and all corruptions
    together are looked at, else the rows of one metric.
    """
    frames = []
    baseline = sides[0]
    variants = [*baseline[0].variants, (EVERY, 0)]
    names_of, severities = [name for name, _ in variants], [severity for _, severity in variants]
    for model, side in zip(names[1:], sides[1:], strict=True):
        for metric, layers, found, beside in _compare(side, baseline, resamples, seed):
            numbers = {item.name: getattr(found, item.name) for item in fields(found)} | beside
            identity = {"metric": metric, "layers": layers, "corruption": names_of, "severity": severities, "model": model}
            frame = pd.DataFrame(identity | numbers)
            frames.append(frame[found.count > 0])
    table = pd.concat(frames, ignore_index=True).reindex(columns=list(COLUMNS))
    return _sorted(adjust(table), list(names[1:]))


def adjust(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the family of each test and its p-value after Holm."""
    main = table["layers"].isin([LAYER_GROUPS[0], OUTPUT]) & table["corruption"].isin([CLEAN, EVERY])
    table = table.assign(family=np.where(main, OVERVIEW, table["metric"]))
    adjusted = np.full(len(table), np.nan)
    for members in table.groupby("family").indices.values():
        adjusted[members] = holm(table["p_value"].to_numpy("float64", na_value=np.nan)[members])
    return table.assign(p_adjusted=adjusted)


def paired_differences(
    ours: Float[np.ndarray, "runs images columns"],
    theirs: Float[np.ndarray, "runs images columns"],
    *,
    rates: bool = False,
    trials: Int[np.ndarray, "images columns"] | None = None,
) -> Differences:
    """Differences of means, image by image; NaN in any run leaves the image out of that column.

    `rates` says that the values are outcomes 0 or 1, or shares of `trials` such outcomes of an image.
    """
    *_, first, second = _masked(ours, theirs)
    differences = _rounded(first - second, first)
    mean, error, count = mean_and_error(differences)
    whole = np.ones(differences.shape, np.int64) if trials is None else trials
    if rates:
        low, high = rate_difference_interval(first, second, whole * max(len(ours), len(theirs)))
        single = len(ours) == len(theirs) == 1 and bool((whole <= 1).all())
        p_value = mcnemar_test(first, second) if single else sign_flip_test(differences)
        if not single and len(ours) == len(theirs) == 1:
            plain = (whole <= 1).all(0)
            p_value = np.where(plain, mcnemar_test(first, second), p_value)
    else:
        low, high = mean_interval(differences)
        p_value = sign_flip_test(differences)
    with np.errstate(invalid="ignore", divide="ignore"):
        effect_size = np.where(error > 0, mean / (error * np.sqrt(count)), np.nan)
    means = [mean_of_known(part, 0) for part in (first, second)]
    over_runs = [np.stack([mean_of_known(run, 0) for run in part]) for part in _masked(ours, theirs)[:2]]
    low, high, p_value = _with_runs(mean, error, count, low, high, p_value, over_runs)
    return Differences(means[0], means[1], mean, low, high, p_value, effect_size, count)


def retained_differences(
    ours: tuple[Float[np.ndarray, "runs images columns"], Float[np.ndarray, "runs images columns"]],
    theirs: tuple[Float[np.ndarray, "runs images columns"], Float[np.ndarray, "runs images columns"]],
    *,
    resamples: int,
    seed: int = 0,
) -> Differences:
    """Differences of what is retained; each side gives the distances under corruption and those of the control.

    With one run on each side the interval is the bootstrap's and the test swaps the models image by image. With several, both
    are Student's, of what each image does to the mean of the runs' ratios, and of the spread of these. All but the count is NaN
    where the mean control of a run is 0.
    """
    joined = np.stack(masked_jointly([*ours[0], *ours[1], *theirs[0], *theirs[1]]))
    known = (~np.isnan(joined[0])).sum(0)
    sizes = np.cumsum([len(ours[0]), len(ours[1]), len(theirs[0])])
    distance, control, other_distance, other_control = np.split(joined, sizes)
    joined[:, :, (np.nansum(np.concatenate([control, other_control]), 1) == 0).any(0)] = np.nan  # the parts are views of it
    influence, over_runs = [], []
    for top, bottom in ((distance, control), (other_distance, other_control)):
        with np.errstate(invalid="ignore", divide="ignore"):
            below = mean_of_known(bottom, 1)
            ratio = mean_of_known(top, 1) / below
            moved = (top - ratio[:, None] * bottom) / below[:, None]
        over_runs.append(1 - ratio)
        influence.append(1 - ratio.mean(0) - moved.mean(0))
    differences = _rounded(influence[0] - influence[1], influence[0])
    mean, error, count = mean_and_error(differences)
    if len(distance) == len(other_distance) == 1:
        parts = other_distance[0], other_control[0], distance[0], control[0]
        low, high = ratio_difference_interval(*parts, resamples=resamples, seed=seed)
        p_value = ratio_swap_test(*parts, seed=seed)
    else:
        low, high = mean_interval(differences)
        with np.errstate(invalid="ignore", divide="ignore"):
            student = student_p(mean / error, count - 1)
        p_value = np.where(error > 0, student, np.where(count > 1, 1.0, np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        effect_size = np.where(error > 0, mean / (error * np.sqrt(count)), np.nan)
    low, high, p_value = _with_runs(mean, error, count, low, high, p_value, over_runs)
    means = [part.mean(0) for part in over_runs]
    return Differences(means[0], means[1], means[0] - means[1], low, high, p_value, effect_size, known)


def set_differences(
    model: Int[np.ndarray, "2 images variants classes"],
    baseline: Int[np.ndarray, "2 images variants classes"],
    every: Sequence[int],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Differences:
    """MIoU of a whole set: one entry per variant, and a last one for the mean of the mIoU over the variants in `every`.

    It is no mean over images: intersections and unions are added up first. So the bootstrap draws images, adds up what it drew
    and takes the mIoU of that, for both models from the same draw. Images without a mask, or that one of the two was not
    evaluated on, count for neither in a variant. There is no paired test of a number that has no value per image: p_value and
    effect_size are NaN.
    """
    known = (model[1].sum(-1) > 0) & (baseline[1].sum(-1) > 0)
    ours, theirs = (np.where(known[None, ..., None], part, 0) for part in (model, baseline))
    places = list(every)

    def with_mean(values: Array) -> Array:
        return np.append(values, values[places].mean() if places else np.nan)

    mean, baseline_mean = (with_mean(mean_iou(*part.sum(1))) for part in (ours, theirs))
    images, variants = known.shape
    drawn = np.empty((variants, resamples), np.float32)
    done = 0
    for counts in resample_counts(images, resamples, seed):
        block = slice(done, done + len(counts))
        for variant in range(variants):
            found = [mean_iou(*(counts @ part[:, :, variant].astype(np.float32))) for part in (ours, theirs)]
            drawn[variant, block] = found[0] - found[1]
        done = block.stop
    count = known.sum(0)
    counted = np.append(count, min(count[places], default=0))
    spread = [*drawn, drawn[places].mean(0) if places else np.full(resamples, np.nan)]
    ends = np.array(
        [np.ravel(widened_quantiles(values[None], int(units))) for values, units in zip(spread, counted, strict=True)]
    )
    ends[np.abs(ends) < 1e-6] = 0  # what single precision leaves of a difference that is exactly zero
    undefined = np.full(variants + 1, np.nan)
    return Differences(mean, baseline_mean, mean - baseline_mean, ends[:, 0], ends[:, 1], undefined, undefined, counted)


def _compare(
    side: Sequence[Panel], baseline: Sequence[Panel], resamples: int, seed: int
) -> Iterator[tuple[str, str, Differences, dict[str, Array]]]:
    """(metric, layers, differences by variant and over all corruptions, columns beside them), in the order of the catalogue."""
    panels = [*side, *baseline]
    corrupted = panels[0].corrupted
    stable = stable_metrics(panels)
    groups = [group for group in LAYER_GROUPS if all(panel.layer_group(group) for panel in panels)]
    for metric in CATALOGUE:
        if not all(metric in panel.values for panel in panels):
            continue
        arrays = [panel.values[metric] for panel in panels]
        for group in groups:
            values, _ = with_every(over_layers(panels, arrays, group), corrupted)
            found = paired_differences(*_sides(values, len(side)))
            if metric not in stable:
                yield metric, group, found, {}
                continue
            kept, controls = _retained(panels, metric, group, len(side), resamples, seed)
            beside = {"control": controls[0], "baseline_control": controls[1]}
            beside |= {"retained": kept.mean, "baseline_retained": kept.baseline_mean}
            yield metric, group, found, beside
            yield f"{RETAINED}{metric}", group, kept, {}
    for metric in panels[0].output:
        if not all(metric in panel.output for panel in panels):
            continue
        arrays = [panel.output[metric] for panel in panels]
        rates = all(is_rate(metric, array) for array in arrays)
        values, trials = with_every(arrays, corrupted)
        yield metric, OUTPUT, paired_differences(*_sides(values, len(side)), rates=rates, trials=trials), {}
    pixels = [panel.pixels for panel in (side[0], baseline[0])]
    if pixels[0] is not None and pixels[1] is not None:
        yield MEAN_IOU, OUTPUT, set_differences(pixels[0], pixels[1], corrupted, resamples=resamples, seed=seed), {}


def _retained(
    panels: Sequence[Panel], metric: str, group: str, ours: int, resamples: int, seed: int
) -> tuple[Differences, tuple[Array, Array]]:
    """What is retained of a metric by layer group, and the mean controls of both sides."""
    corrupted = panels[0].corrupted
    known, _ = with_every(means_over_layers(panels, metric, group), corrupted)
    shown = _sides([mean_of_known(part, 0)[None] for part in known[len(panels) :]], ours)
    apart = [distances(metric, part) for part in known]
    distance, control = _sides(apart[: len(panels)], ours), _sides(apart[len(panels) :], ours)
    found = retained_differences((distance[0], control[0]), (distance[1], control[1]), resamples=resamples, seed=seed)
    missing = np.zeros(len(found.mean), bool)
    for panel, part in zip(panels, apart[len(panels) :], strict=True):
        missing |= undefined_control(part, mean_noise(panel, metric, group))
    blank = {item.name: np.where(missing, np.nan, getattr(found, item.name)) for item in fields(found) if item.name != "count"}
    return Differences(**blank, count=found.count), (shown[0].mean((0, 1)), shown[1].mean((0, 1)))


def _sides(arrays: Sequence[Array], ours: int) -> tuple[Array, Array]:
    return np.stack(arrays[:ours]), np.stack(arrays[ours:])


def _rounded(differences: Array, values: Array) -> Array:
    """Differences with 0 for what is only rounding of means of equal values."""
    return np.where(np.abs(differences) <= _ROUNDING * np.maximum(np.abs(values), 1), 0.0, differences)


def _masked(ours: Array, theirs: Array) -> tuple[Array, Array, Array, Array]:
    """Both sides with NaN where any run has NaN, run by run, and their means over runs."""
    first, second = np.split(np.stack(masked_jointly([*ours, *theirs])), [len(ours)])
    return first, second, first.mean(0), second.mean(0)


def _with_runs(
    mean: Array, error: Array, count: Array, low: Array, high: Array, p_value: Array, over_runs: Sequence[Array]
) -> tuple[Array, Array, Array]:
    """Interval and test that take in the spread of the means of several runs, (runs, columns) on each side; else as they are."""
    several = [part for part in over_runs if len(part) > 1]
    if not several:
        return low, high, p_value
    with np.errstate(invalid="ignore", divide="ignore"):
        variances = [part.var(0, ddof=1) / len(part) for part in several]
        seeds = np.sum(variances, axis=0)
        freedom = seeds**2 / np.sum([v**2 / (len(p) - 1) for v, p in zip(variances, several, strict=True)], axis=0)
        arm = np.where(seeds > 0, student_reach(freedom) * np.sqrt(seeds), 0)
        terms = [error**4 / np.maximum(count - 1, 1)] + [v**2 / (len(p) - 1) for v, p in zip(variances, several, strict=True)]
        total = error**2 + seeds
        student = student_p(mean / np.sqrt(total), total**2 / np.sum(terms, axis=0))
        below, above = np.hypot(mean - low, arm), np.hypot(high - mean, arm)
    return mean - below, mean + above, np.where(total > 0, student, p_value)


def _sorted(table: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    """Models side by side within each metric × layers × variant."""
    places = table.groupby(["metric", "layers", "corruption", "severity"], sort=False).ngroup()
    order = np.lexsort([table["model"].map(models.index), places])
    return table.iloc[order].reset_index(drop=True)
