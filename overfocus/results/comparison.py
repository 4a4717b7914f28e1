"""Several models on the same images, the first of them the baseline: differences, verdicts and what tells fragility."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overfocus.errors import RunError
from overfocus.files import atomic_file
from overfocus.results.alignment import Alignment, align
from overfocus.run import Run
from overfocus.runs.description import FORMAT, ComparisonDescription, read_description
from overfocus.runs.names import display_names
from overfocus.runs.notebook import NotebookMethods
from overfocus.runs.tables import write_csv
from overfocus.statistics.panel import EVERY, Panel
from overfocus.statistics.verdicts import RULE, Verdict, judge
from overfocus.text import json_bytes

if TYPE_CHECKING:
    import pandas as pd

DESCRIPTION = "comparison.json"


class Comparison(NotebookMethods):
    """What `compare` found.

        comparison = overfocus.compare(["run-a/", "run-b/"])
        comparison.verdicts[0].sentence

    The statistics are computed when they are first asked for; the same runs always give the same numbers.

    Args:
        runs: at least two runs, the baseline first; or a mapping from the name of a model to its runs of several seeds.
        names: of the runs; unless given, what tells them apart.
        corruptions, severities: take only these; all that the runs share unless given.
        resamples: of the bootstrap behind intervals of ratios and of mIoU.
        path: folder that the comparison is written into.

    Raises:
        RunError: there are fewer than two models, or they do not compare: other images, other corrupted pixels, other settings.
    """

    runs: tuple[Run, ...]
    """A run per model: the first of its group, where groups of runs are compared; figures show this one."""
    names: tuple[str, ...]
    """A name per model that tells them apart, the baseline first."""
    groups: tuple[tuple[Run, ...], ...]
    """Every run of each model: one, or several of different seeds."""
    path: Path | None
    """Folder that the comparison is written into."""

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
            self.names = (display_names(runs) if names is None else tuple(names)) if len(runs) > 1 else ()
        if len(self.groups) < 2:
            raise RunError(f"expected at least two runs to compare, a baseline and another, got {len(self.groups)}")
        if resamples < 1:
            raise RunError(f"resamples must be at least 1, got {resamples}; 10000 is usual")
        self.runs = tuple(group[0] for group in self.groups)
        self.path = None if path is None else Path(path)
        self.resamples = resamples
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
                    f"{name} is {len(group)} runs: intervals take in images and runs; figures of single layers show the first"
                )
        if any(len(group) > 1 for group in self.groups) and any(len(group) == 1 for group in self.groups):
            notes.append("a model of one run says nothing of how runs differ: its intervals take in images alone")
        return tuple(notes)

    @property
    def rule(self) -> str:
        """The rule in words by which verdicts follow from intervals."""
        return RULE

    @property
    def controlled(self) -> bool:
        """Whether every run measured the control, another image."""
        return all(panel.control for side in self._sides for panel in side)

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row per metric × layers × corruption × severity × model other than the baseline.

        Columns: metric ("retained.METRIC" for what is retained of a metric of stability against the control); layers ("all",
        "early", "middle", "late" thirds of relative depth, or "output"); corruption ("clean", a corruption, or "all" for the
        mean over corruptions and severities) and severity (0 for these two); model; mean and baseline_mean over the images
        where both have a value; control and baseline_control, the metric's mean between two different clean images; retained
        and baseline_retained; difference with the ends low and high of its 95 % interval, paired over images; p_value of a test
        of the same difference, p_adjusted (Holm, over the rows of the same family) and family; effect_size (Cohen's d_z); count
        of images.
        """
        from overfocus.statistics.differences import tabulate_differences

        return tabulate_differences(self._sides, self.names, resamples=self.resamples)

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Does it overfocus less, is its attention more stable, do its predictions survive: for each model but the baseline."""
        classes = {
            name: min(_distinct(panel.classes) for panel in side) for name, side in zip(self.names, self._sides, strict=True)
        }
        return judge(self.table, self.baseline, self.names[1:], {name: number for name, number in classes.items() if number})

    @cached_property
    def fragility(self) -> "pd.DataFrame":
        """Whether a metric tells which predictions flip: per model × metric × layers × corruption × severity.

        Columns: model, metric, layers, corruption ("all": the mean within strata of corruption × severity; "pooled": all
        corrupted images as one stratum), severity; spearman, spearman_low, spearman_high (rank correlation of metric and flip);
        auroc, auroc_low, auroc_high (chance that a flipped image has the higher value); flipped and count of images; strata
        that hold both. Metrics of one map are those of the clean image. The rows "corruption alone" and "clean confidence" are
        what is known without looking at attention.
        """
        from overfocus.statistics.fragility import tabulate_fragility

        return tabulate_fragility(self._sides, self.names)

    @cached_property
    def reliability(self) -> "pd.DataFrame":
        """Share of flipped predictions in groups of corrupted images with rising value of a metric within their stratum.

        Columns: model, metric, layers, bin, value (mean of the metric), flip_rate with low and high (95 %), flipped, count.
        """
        from overfocus.statistics.fragility import tabulate_reliability

        return tabulate_reliability(self._sides, self.names)

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

    def overview(self) -> "pd.DataFrame":
        """The rows of `table` that fit on a page: all layers, clean images and all corruptions together."""
        from overfocus.results.overview import choose_overview

        return choose_overview(self.table)

    def to_markdown(self, rows: "pd.DataFrame | None" = None) -> str:
        """Rows of `table` (the overview where none are given) as a Markdown table."""
        from overfocus.results.overview import markdown

        return markdown(self.overview() if rows is None else rows)

    def to_latex(self, rows: "pd.DataFrame | None" = None) -> str:
        """Rows of `table` (the overview where none are given) as a LaTeX table; it needs the package booktabs."""
        from overfocus.results.overview import latex

        return latex(self.overview() if rows is None else rows)

    def as_dict(self) -> dict[str, Any]:
        """The comparison as plain values for JSON; NaN as None."""
        from overfocus.version import __version__

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


def require_same_models(folder: Path, groups: Mapping[str, Sequence[Path]]) -> None:
    """Raise `RunError` where a folder holds a comparison of other models, or of the same with another baseline.

    Runs count as the same where their folders are, wherever both were moved to.
    """
    if not is_comparison(folder):
        return
    description = read_description(folder / DESCRIPTION, ComparisonDescription)
    there = [(model.name, _where(model.run, folder).resolve()) for model in description.models]
    asked = [(name, path.resolve()) for name, group in groups.items() for path in group]
    if there != asked:
        models = " against ".join([", ".join(dict.fromkeys(name for name, _ in there[1:])), description.baseline])
        raise RunError(f"{folder}: holds another comparison ({models}); choose another output, or --overwrite to replace it")


def _where(run: str, folder: Path) -> Path:
    """A run's folder; below the comparison's own where both were moved or the working directory is another."""
    within = folder / "runs" / Path(run).name
    return within if not Path(run).is_dir() and within.is_dir() else Path(run)


def _distinct(classes: np.ndarray[Any, Any]) -> int:
    """How many classes were predicted; 0 where there are none."""
    return len(np.unique(classes[classes >= 0]))


def _records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Rows as dictionaries; NaN as None."""
    records: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return records
