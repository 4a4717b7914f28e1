"""Several models on the same images, the first of them the baseline: differences, verdicts and what predicts fragility.

Runs are brought together first: the same images, the same variants of them, made with the same settings.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from overfocus.errors import RunError
from overfocus.files import atomic_file
from overfocus.metrics.catalogue import CATALOGUE
from overfocus.run import Run, display_names
from overfocus.runs.description import FORMAT, ComparisonDescription, read_description
from overfocus.runs.folder import COMPARISON_FILES, entry_names, own_files, refuse_others, remove_files, write_csv
from overfocus.runs.notebook import NotebookMethods
from overfocus.settings import MOST_RESAMPLES, did_you_mean, typed
from overfocus.statistics.differences import tabulate_differences
from overfocus.statistics.fragility import tabulate_fragility, tabulate_reliability
from overfocus.statistics.panel import EVERY, LAYER_GROUPS, OUTPUT, ImageKey, Panel, read_panel
from overfocus.statistics.retained import RETAINED
from overfocus.statistics.verdicts import (
    RULE,
    Verdict,
    counted,
    decimal,
    interval_text,
    judge,
    measure_title,
    probability,
    variant_label,
)
from overfocus.text import json_bytes, one_line
from overfocus.variants import CLEAN, CLEAN_VARIANT, RESERVED, Variant
from overfocus.version import __version__

GEOMETRY = ("height", "width", "interpolation", "crop_pct", "crop_mode")
"""What decides which pixels are corrupted; as in a run's `pixels`."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """What several runs have in common."""

    panels: list[Panel]
    """One per run, with the same images and variants in the same order."""
    normalised: bool
    """Whether metrics were rescaled because the runs' layers have different numbers of tokens."""
    notes: list[str]
    """What was left out, and what differs."""

    @property
    def images(self) -> list[ImageKey]:
        """The images of every run."""
        return self.panels[0].images

    @property
    def variants(self) -> list[Variant]:
        """The variants of each image, clean first where it is known."""
        return self.panels[0].variants


def align(
    runs: Sequence[Run],
    names: Sequence[str],
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] | None = None,
) -> Alignment:
    """Match the images of runs by name and label, and their corruptions; keep what all have.

    `corruptions` and `severities` take only these.

    Raises:
        RunError: the runs have no image or version in common, or their pixels or top tokens were chosen in different ways.
    """
    measured = [run for run in runs if run.measured]
    _check_settings(runs, names)
    normalised = len({_token_counts(run) for run in measured}) > 1
    notes = _input_notes(runs, names)
    if normalised:
        notes.append("the models have different numbers of tokens: metrics whose range depends on it are rescaled to that range")
    panels = [read_panel(run, normalised=normalised) for run in runs]
    if measured and panels[0].pixels is not None:
        notes.append(
            "a prediction is a class for each pixel: it counts as flipped where more pixels change theirs than in the model's "
            "median corrupted image"
        )
    _require_same_classes(panels, names)
    images, missing = _common_images(panels, names)
    _require_same_pixels(runs, names)
    variants, absent = _common_variants(panels, names, corruptions, severities)
    return Alignment([panel.select(images, variants) for panel in panels], normalised, notes + missing + absent)


def pixel_geometry(run: Run) -> dict[str, Any]:
    """How a run's images were resized and cropped before they were corrupted; as much of it as the run says."""
    pixels = run.description.pixels
    if pixels is not None:
        return {name: getattr(pixels, name) for name in GEOMETRY if getattr(pixels, name) is not None}
    _, height, width = run.description.checkpoint.input_size
    return {"height": height, "width": width}


def _check_settings(runs: Sequence[Run], names: Sequence[str]) -> None:
    first, settings = runs[0], runs[0].description.settings
    for run, name in zip(runs[1:], names[1:], strict=True):
        other = run.description.settings
        which = ["seed", "constants", *(["top_fraction"] if run.measured and first.measured else [])]
        for setting in which:
            here, there = getattr(settings, setting), getattr(other, setting)
            if here != there:
                raise RunError(
                    f"{name} was measured with {setting} {there}, {names[0]} with {here}; "
                    "runs compare with the same settings only: measure one again"
                )
        pixels, others = pixel_geometry(first), pixel_geometry(run)
        different = [key for key in pixels if key in others and pixels[key] != others[key]]
        if different:
            ours, theirs = (", ".join(f"{key} {part[key]}" for key in different) for part in (pixels, others))
            raise RunError(
                f"{name} was measured on other pixels ({theirs}) than {names[0]} ({ours}), which were corrupted otherwise; "
                "give `overfocus compare` the checkpoints, and it shows all models the same"
            )


def _require_same_classes(panels: Sequence[Panel], names: Sequence[str]) -> None:
    """Raise `RunError` where only some models predict pixels, or not the same number of classes."""
    classes = [0 if panel.pixels is None else panel.pixels.shape[-1] for panel in panels]
    for name, count in zip(names[1:], classes[1:], strict=True):
        if count != classes[0]:
            ours, theirs = (
                f"{number} classes of pixels" if number else "one class for an image" for number in (count, classes[0])
            )
            raise RunError(f"{name} predicts {ours}, {names[0]} {theirs}; runs compare only where they answer the same question")


def _input_notes(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    notes = []
    for run, name in zip(runs, names, strict=True):
        geometry, (_, height, width) = pixel_geometry(run), run.description.checkpoint.input_size
        whole = isinstance(geometry["height"], str)  # images at their own size, not at the model's
        if not whole and (geometry["height"], geometry["width"]) != (height, width):
            notes.append(
                f"{name} takes {height}×{width} pixels: images were corrupted at {geometry['height']}×{geometry['width']} "
                "and resized for it"
            )
        if not run.complete:
            notes.append(f"the run of {name} is not finished: what it has is compared")
    return notes


def _token_counts(run: Run) -> tuple[tuple[int, tuple[int, int] | None], ...]:
    return tuple(sorted({(layer.tokens, layer.grid) for layer in run.description.layers}, key=str))


def _common_images(panels: Sequence[Panel], names: Sequence[str]) -> tuple[list[ImageKey], list[str]]:
    held = [set(panel.images) for panel in panels]
    common = set.intersection(*held)
    if not common:
        name, label, _ = panels[0].images[0]
        raise RunError(
            f"the runs have no image in common: images are matched by name and label, such as {name!r} with label {label!r} "
            f"of {names[0]}; measure the same images"
        )
    notes = []
    for name, keys in zip(names, held, strict=True):
        if extra := len(keys) - len(common):
            notes.append(f"{counted(extra)} of {name} left out: not measured for every model")
    return [key for key in panels[0].images if key in common], notes


def _require_same_pixels(runs: Sequence[Run], names: Sequence[str]) -> None:
    """Raise `RunError` where an image that was given in memory has the name and label, but not the pixels, of another run's."""
    first: dict[tuple[str, str | None], set[str | None]] = {}
    for image in runs[0].description.images:
        first.setdefault((image.name, image.label), set()).add(image.sha256)
    for run, name in zip(runs[1:], names[1:], strict=True):
        for image in run.description.images:
            known = first.get((image.name, image.label), {None})
            if image.sha256 and None not in known and image.sha256 not in known:
                raise RunError(
                    f"{image.name} shows other pixels in {name} than in {names[0]}, so the runs measured different images; "
                    "measure the same images, or give them names of their own"
                )


def _common_variants(
    panels: Sequence[Panel], names: Sequence[str], corruptions: Sequence[str] | None, severities: Sequence[int] | None
) -> tuple[list[Variant], list[str]]:
    common = [variant for variant in panels[0].variants if all(variant in panel.variants for panel in panels)]
    notes = []
    for panel, name in zip(panels, names, strict=True):
        if extra := [variant for variant in panel.variants if variant not in common]:
            shown = ", ".join(variant.label for variant in extra[:3])
            notes.append(f"{counted(len(extra), 'variant')} of {name} left out, not measured for every model: {shown}")
    for asked, there, what in (
        (corruptions, [name for name, _ in common], "corruption"),
        (severities, [severity for _, severity in common], "severity"),
    ):
        for value in asked or []:
            if value not in there:
                known = ", ".join(str(one) for one in dict.fromkeys(there) if one not in (*RESERVED, 0)) or "none"
                raise RunError(f"the runs have no {what} {value} in common; they share {known}")
    kept = [
        Variant(name, severity)
        for name, severity in common
        if (name, severity) == CLEAN_VARIANT
        or ((corruptions is None or name in corruptions) and (severities is None or severity in severities))
    ]
    if not kept:
        raise RunError("the runs have no corruption and severity in common; measure the same")
    return kept, notes


DESCRIPTION = "comparison.json"


class Comparison(NotebookMethods):
    """What `compare` found.

        comparison = overfocus.compare(["run-a/", "run-b/"])
        comparison.verdicts[0].sentence

    The statistics are computed when they are first asked for; the same runs always give the same numbers.

    Args:
        runs: at least two runs, the baseline first; or a mapping from the name of a model to its runs of several seeds.
        names: of the runs; unless given, what distinguishes them.
        corruptions, severities: take only these; all that the runs share unless given.
        resamples: of the bootstrap behind intervals of ratios and of mIoU.
        path: folder that the comparison is written into.

    Raises:
        RunError: there are fewer than two models, or they do not compare: other images, other corrupted pixels, other settings.
    """

    runs: tuple[Run, ...]
    """A run per model: the first of its group, where groups of runs are compared; figures show this one."""
    names: tuple[str, ...]
    """A distinct name per model, the baseline first."""
    groups: tuple[tuple[Run, ...], ...]
    """Every run of each model: one, or several of different seeds."""
    path: Path | None
    """Folder that the comparison is written into."""

    @typed(RunError)
    def __init__(
        self,
        runs: Sequence[Run] | Mapping[str, Sequence[Run]],
        names: Sequence[str] | None = None,
        *,
        corruptions: Sequence[str] | None = None,
        severities: Sequence[int] | None = None,
        resamples: int = 10_000,
        path: str | Path | None = None,
    ) -> None:
        if isinstance(runs, Mapping):
            self.groups, self.names = tuple(tuple(group) for group in runs.values()), tuple(runs)
            if empty := [name for name, group in runs.items() if not group]:
                raise RunError(f"expected at least one run in each group, got none in {empty[0]}")
        else:
            self.groups = tuple((run,) for run in runs)
            if names is not None and len(names) != len(runs):
                raise RunError(f"expected a name for each of {len(runs)} runs, got {len(names)}")
            self.names = (display_names(runs) if names is None else tuple(names)) if len(runs) > 1 else ()
        if len(self.groups) < 2:
            raise RunError(f"expected at least two runs to compare, a baseline and another, got {len(self.groups)}")
        if not 1 <= resamples <= MOST_RESAMPLES:
            raise RunError(f"resamples must be at least 1 and at most {MOST_RESAMPLES:,}, got {resamples}; 10000 is usual")
        self.runs = tuple(group[0] for group in self.groups)
        self.path = None if path is None else Path(path)
        self.resamples = resamples
        self.corruptions = None if corruptions is None else list(corruptions)
        self.severities = None if severities is None else list(severities)
        several = [
            [name if len(group) == 1 else f"{name} ({number})" for number in range(1, len(group) + 1)]
            for name, group in zip(self.names, self.groups, strict=True)
        ]
        flat = [run for group in self.groups for run in group]
        self._alignment: Alignment = align(flat, [name for part in several for name in part], corruptions, severities)
        panels = iter(self._alignment.panels)
        self._sides: list[list[Panel]] = [[next(panels) for _ in group] for group in self.groups]

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.names)}; {len(self._alignment.images)} images)"

    def _shown_runs(self) -> tuple[Sequence[Run], Sequence[str]]:
        return self.runs, self.names

    @property
    def baseline(self) -> str:
        """Name of the model that the others are compared with."""
        return self.names[0]

    @property
    def images(self) -> list[str]:
        """Names of the images that every model was measured on."""
        return [name for name, _, _ in self._alignment.images]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know: what was assumed when checkpoints were loaded, images left out, other input sizes, rescaled
        metrics, controls that were not measured.
        """
        notes = list(self._alignment.notes)
        for name, group in zip(self.names, self.groups, strict=True):
            loaded = dict.fromkeys(note for run in group for note in run.description.checkpoint.notes)
            notes += [f"{name}: {note}" for note in loaded]
        for name, group in zip(self.names, self.groups, strict=True):
            if len(group) > 1:
                notes.append(
                    f"{name} is {len(group)} runs: intervals cover images and runs; figures of single layers show the first"
                )
        if any(len(group) > 1 for group in self.groups) and any(len(group) == 1 for group in self.groups):
            notes.append("a model with one run says nothing about how runs differ: its intervals cover images only")
        return tuple(notes)

    @property
    def identical(self) -> tuple[str, ...]:
        """The models that agree with the baseline exactly in every row of `table`: the same network, most likely."""
        same = self.table.assign(same=self.table["difference"].fillna(0) == 0).groupby("model", sort=False)["same"].all()
        return tuple(name for name in self.names[1:] if same.get(name, False))

    @property
    def rule(self) -> str:
        """The rule in words by which verdicts follow from intervals."""
        return RULE

    @property
    def controlled(self) -> bool:
        """Whether every run measured the control, another image."""
        return all(panel.control for side in self._sides for panel in side)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per metric × layers × corruption × severity × model other than the baseline.

        Columns: metric ("retained.METRIC" for what is retained of a metric of stability against the control); layers ("all",
        "early", "middle", "late" thirds of relative depth, or "output"); corruption ("clean", a corruption, or "all" for the
        mean over corruptions and severities) and severity (0 for these two); model; mean and baseline_mean over the images
        where both have a value; control and baseline_control, the metric's mean between two different clean images; retained
        and baseline_retained; difference with the ends low and high of its 95 % interval, paired over images; p_value of a test
        of the same difference, p_adjusted (Holm, over the rows of the same family) and family; effect_size (Cohen's d_z); count
        of images.
        """
        return tabulate_differences(self._sides, self.names, resamples=self.resamples)

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Does it overfocus less, is its attention more stable, do its predictions survive: for each model but the baseline."""
        classes = {name: min(_distinct(panel) for panel in side) for name, side in zip(self.names, self._sides, strict=True)}
        return judge(self.table, self.baseline, self.names[1:], {name: number for name, number in classes.items() if number})

    @cached_property
    def fragility(self) -> pd.DataFrame:
        """Whether a metric predicts which predictions flip: per model × metric × layers × corruption × severity.

        Columns: model, metric, layers, corruption ("all": the mean within strata of corruption × severity; "pooled": all
        corrupted images as one stratum), severity; spearman, spearman_low, spearman_high (rank correlation of metric and flip);
        auroc, auroc_low, auroc_high (chance that a flipped image has the higher value); flipped and count of images; strata
        that hold both. Metrics of one map are those of the clean image. The rows "corruption alone" and "clean confidence" are
        what is known without looking at attention.
        """
        return tabulate_fragility(self._sides, self.names)

    @cached_property
    def reliability(self) -> pd.DataFrame:
        """Share of flipped predictions in groups of corrupted images with rising value of a metric within their stratum.

        Columns: model, metric, layers, bin, value (mean of the metric), flip_rate with low and high (95 %), flipped, count.
        """
        return tabulate_reliability(self._sides, self.names)

    @typed(RunError)
    def write(self, folder: str | Path) -> Path:
        """Write comparison and fragility, each as .csv and .parquet, and all as comparison.json into a folder, and return it.

        Raises:
            RunError: a file cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, table in (("comparison", self.table), ("fragility", self.fragility)):
                write_csv(folder / f"{name}.csv", table)
                with atomic_file(folder / f"{name}.parquet") as file:
                    table.to_parquet(file, index=False)
            with atomic_file(folder / DESCRIPTION) as file:
                file.write(json_bytes(self.as_dict()))
        except OSError as error:
            raise RunError(
                f"{folder}: the comparison cannot be written ({error.strerror or error}); choose another output"
            ) from error
        return folder

    @typed(RunError)
    def overview(self, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows of `table` that fit on a page: all layers, clean images and all corruptions together.

        Raises:
            RunError: one of `metrics`, all by default, is not in the table; the message lists what is.
        """
        rows = choose_overview(self.table)
        known = list(dict.fromkeys(rows["metric"]))
        for name in metrics or ():
            if name not in known:
                raise RunError(f"the comparison has no metric {name!r}; there is {', '.join(known)}{did_you_mean(name, known)}")
        return rows if metrics is None else rows[rows["metric"].isin(metrics)]

    def decisive(self) -> pd.DataFrame:
        """The rows of `overview` whose metrics the verdicts rest on."""
        return self.overview(sorted({str(metric) for verdict in self.verdicts for metric in verdict.rows["metric"]}))

    @typed(RunError)
    def to_markdown(self, rows: pd.DataFrame | None = None) -> str:
        """Rows of `table` (the overview where none are given) as a Markdown table."""
        return markdown(self.overview() if rows is None else rows)

    @typed(RunError)
    def to_latex(self, rows: pd.DataFrame | None = None) -> str:
        """Rows of `table` (where none are given, those that the verdicts rest on) as a LaTeX table for the package booktabs."""
        return latex(self.decisive() if rows is None else rows)

    def as_dict(self) -> dict[str, Any]:
        """The comparison as plain values for JSON; NaN as None."""
        return {
            "format": FORMAT,
            "kind": "comparison",
            "overfocus": __version__,
            "baseline": self.baseline,
            "models": [
                {"name": name, "run": str(run.path)}
                for name, group in zip(self.names, self.groups, strict=True)
                for run in group
            ],
            "images": len(self.images),
            "resamples": self.resamples,
            "corruptions": self.corruptions,
            "severities": self.severities,
            "notes": list(self.notes),
            "rule": self.rule,
            "verdicts": [
                {"question": verdict.question, "asked": verdict.asked, "model": verdict.model, "answer": verdict.answer,
                 "sentence": verdict.sentence}
                for verdict in self.verdicts
            ],
            "table": _records(self.table),
            "fragility": _records(self.fragility),
        }  # fmt: skip


def is_comparison(folder: str | Path) -> bool:
    """Whether a comparison was written into this folder."""
    return (Path(folder) / DESCRIPTION).is_file()


def read_comparison(folder: str | Path) -> Comparison:
    """The comparison in a folder, made again from the runs that it rests on.

    Raises:
        RunError: the folder holds no comparison, one of another format, or its runs are gone.
    """
    folder = Path(folder)
    description = read_description(folder / DESCRIPTION, ComparisonDescription)
    variants = {(str(row["corruption"]), int(row["severity"] or 0)) for row in description.table if row.get("severity")}
    runs: dict[str, list[Run]] = {}
    for model in description.models:
        runs.setdefault(model.name, []).append(Run(_where(model.run, folder)))
    return Comparison(
        runs,
        corruptions=list(dict.fromkeys(name for name, _ in sorted(variants) if name != EVERY)) or None,
        severities=sorted({severity for _, severity in variants}) or None,
        resamples=description.resamples,
        path=folder,
    )


def open_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise `RunError` where a comparison cannot be written into a folder: it is a file, or holds what no comparison wrote."""
    names = entry_names(folder, "comparison")
    if not overwrite:
        known = {"runs", *(path.relative_to(folder).parts[0] for path in own_files(folder, COMPARISON_FILES))}
        refuse_others(folder, [name for name in names if name not in known])


def replace_comparison(folder: Path, groups: Mapping[str, Sequence[Path]], asked: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make room for a comparison: the same settings continue; another is replaced, with `overwrite`, by its own files alone.

    Runs count as the same where their folders are, wherever both were moved to. `asked` are the settings in comparison.json
    that have to be equal.

    Raises:
        RunError: without `overwrite`: the folder holds a comparison of other models, with another baseline or other settings.
    """
    if not is_comparison(folder):
        return
    if overwrite:
        remove_files(folder, own_files(folder, COMPARISON_FILES), "comparison")
        return
    description = read_description(folder / DESCRIPTION, ComparisonDescription)
    for name, value in asked.items():
        before = getattr(description, name)
        if before != value:
            raise RunError(
                f"{folder}: holds another comparison ({name} {before} there, {value} asked for); choose another output, or "
                "--overwrite to replace it"
            )
    there = [(model.name, _where(model.run, folder).resolve()) for model in description.models]
    wanted = [(name, path.resolve()) for name, group in groups.items() for path in group]
    if there != wanted:
        models = " against ".join([", ".join(dict.fromkeys(name for name, _ in there[1:])), description.baseline])
        raise RunError(f"{folder}: holds another comparison ({models}); choose another output, or --overwrite to replace it")


def _where(run: str, folder: Path) -> Path:
    """A run's folder; below the comparison's own where both were moved or the working directory is another."""
    within = folder / "runs" / Path(run).name
    return within if not Path(run).is_dir() and within.is_dir() else Path(run)


def _distinct(panel: Panel) -> int:
    """How many classes were predicted for clean images; 0 of a model without a classifier, or with a class for each pixel."""
    return len(np.unique(panel.classes[panel.classes >= 0])) if panel.pixels is None else 0


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries; NaN as None."""
    records: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return records


HEADINGS = (
    "Metric",
    "Layers",
    "Corruption",
    "Model",
    "Mean",
    "Baseline",
    "Control",
    "Difference",
    "95 % interval",
    "p (Holm)",
    "d_z",
    "Images",
)
TEXT_COLUMNS = 4
"""The first columns hold words, the others numbers."""
_LATEX_SIGNS = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": "$|$", "−": "$-$",
    "…": r"\ldots{}",
}  # fmt: skip


def choose_overview(table: pd.DataFrame) -> pd.DataFrame:
    """All layers only: what speaks of one map and the accuracy on clean images, the rest over all corruptions together.

    What is retained of a metric of stability stands behind the metric. Effective tokens under corruption stand before the
    top-k overlap: where attention is flat, the overlap means little.
    """
    metric = table["metric"].str.removeprefix(RETAINED)
    clean = table["corruption"] == CLEAN
    every = table["corruption"] == EVERY
    paired = metric.map(lambda name: name not in CATALOGUE or CATALOGUE[name].group in ("stability", "prediction"))
    whole = table["layers"].isin([LAYER_GROUPS[0], OUTPUT])
    beside = metric == "effective_tokens"
    chosen = table[whole & (clean | (every & (paired | beside)))]
    place = {name: number for number, name in enumerate(dict.fromkeys(metric))}
    shown = metric.where(~beside | clean, "top_overlap")[chosen.index].map(place)
    return chosen.loc[shown.sort_values(kind="stable").index]


def cells(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """The text of each row under `HEADINGS`.

    Raises:
        RunError: a column is missing.
    """
    needed = (
        "metric", "layers", "corruption", "severity", "model", "mean", "baseline_mean", "control", "baseline_control",
        "difference", "low", "high", "p_adjusted", "effect_size", "count",
    )  # fmt: skip
    if missing := [name for name in needed if name not in rows]:
        raise RunError(f"expected rows of the comparison's table, got some without {', '.join(missing[:3])}")
    return [
        (
            measure_title(str(row["metric"])),
            str(row["layers"]),
            variant_label(str(row["corruption"]), int(row["severity"])),
            str(row["model"]),
            decimal(row["mean"]),
            decimal(row["baseline_mean"]),
            f"{decimal(row['control'])} / {decimal(row['baseline_control'])}" if row["control"] == row["control"] else "",
            decimal(row["difference"], sign=True),
            interval_text(row["low"], row["high"]),
            probability(row["p_adjusted"]),
            decimal(row["effect_size"], sign=True, places=2),
            str(int(row["count"])),
        )
        for row in rows.to_dict("records")
    ]


def markdown(rows: pd.DataFrame) -> str:
    """A table in GitHub's Markdown."""
    ruler = "|" + " --- |" * TEXT_COLUMNS + " ---: |" * (len(HEADINGS) - TEXT_COLUMNS)
    headings, *lines = (
        _joined(line, lambda text: re.sub(r"([\\|*_<>`\[\]$~&])", r"\\\1", text), "| ", " | ", " |")
        for line in (HEADINGS, *cells(rows))
    )
    return "\n".join([headings, ruler, *lines]) + "\n"


def latex(rows: pd.DataFrame) -> str:
    """A table for the package booktabs, without a float around it."""
    columns = "l" * TEXT_COLUMNS + "r" * (len(HEADINGS) - TEXT_COLUMNS)
    headings = _joined(HEADINGS, lambda text: "$d_z$" if text == "d_z" else escape_latex(text), "", " & ", r" \\")
    lines = [_joined(line, escape_latex, "", " & ", r" \\") for line in cells(rows)]
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", headings, r"\midrule", *lines, r"\bottomrule", end]) + "\n"


def escape_latex(text: str) -> str:
    """Text that stands for itself in LaTeX."""
    return "".join(_LATEX_SIGNS.get(sign, sign) for sign in text)


def _joined(line: Sequence[str], escape: Callable[[str], str], begin: str, between: str, end: str) -> str:
    return begin + between.join(escape(one_line(text)) for text in line) + end
