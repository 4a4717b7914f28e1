"""Several runs of the same images, the first of them the baseline: differences, verdicts and what explains fragility."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.comparison.alignment import Alignment, align
from overfocus.comparison.names import display_names
from overfocus.comparison.verdicts import RULE, Verdict, judge
from overfocus.errors import RunError
from overfocus.figures.notebook_methods import NotebookMethods
from overfocus.files import atomic_file

if TYPE_CHECKING:
    import pandas as pd

    from overfocus.run import Run

FORMAT = 1
"""Version of comparison.json."""


class Comparison(NotebookMethods):
    """What `compare` found.

        comparison = overfocus.compare(["run-a/", "run-b/"])
        comparison.verdicts[0].sentence

    The statistics are computed when they are first asked for; the same runs always give the same numbers.

    Raises:
        RunError: there are fewer than two runs, or they do not compare: other images, other corrupted pixels, other settings.
    """

    runs: tuple["Run", ...]
    names: tuple[str, ...]
    """A name per run that tells them apart, the baseline first."""
    path: Path | None
    """Folder that the comparison is written into."""

    def __init__(
        self,
        runs: Sequence["Run"],
        names: Sequence[str] | None = None,
        *,
        corruptions: Sequence[str] | None = None,
        severities: Sequence[int] | None = None,
        resamples: int = 10_000,
        path: str | Path | None = None,
    ) -> None:
        if len(runs) < 2:
            raise RunError(f"expected at least two runs to compare, a baseline and another, got {len(runs)}")
        if resamples < 1:
            raise RunError(f"resamples must be at least 1, got {resamples}; 10000 is usual")
        self.runs = tuple(runs)
        self.names = display_names(runs) if names is None else tuple(names)
        self.path = None if path is None else Path(path)
        self.resamples = resamples
        self._alignment: Alignment = align(self.runs, self.names, corruptions, severities)

    def __repr__(self) -> str:
        return f"Comparison({', '.join(self.names)}; {len(self._alignment.images)} images)"

    def _shown_runs(self) -> "tuple[Sequence[Run], Sequence[str]]":
        return self.runs, self.names

    def _repr_html_(self) -> str:
        from overfocus.figures.notebook import comparison_html

        return comparison_html(self)

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
        """What a reader should know: images left out, other input sizes, rescaled metrics."""
        return tuple(self._alignment.notes)

    @property
    def rule(self) -> str:
        """The rule in words by which verdicts follow from intervals."""
        return RULE

    @cached_property
    def table(self) -> "pd.DataFrame":
        """One row per metric × layers × corruption × severity × model other than the baseline.

        Columns: metric; layers ("all", "early", "middle", "late" thirds of relative depth, or "output"); corruption ("clean",
        a corruption, or "all" for the mean over corruptions and severities) and severity (0 for these two); model; mean and
        baseline_mean over the images where both have a value; difference with the ends low and high of its 95 % bootstrap
        interval, paired over images; p_value (Wilcoxon signed-rank test), p_adjusted (Holm, over the rows of a metric);
        effect_size (Cohen's d_z); count of images; chance level of top_overlap.
        """
        from overfocus.comparison.differences import tabulate_differences

        return tabulate_differences(self._alignment, self.names, resamples=self.resamples)

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Does it overfocus less, is its attention more stable, do its predictions survive: for each model but the baseline."""
        return judge(self.table, self.baseline, self.names[1:])

    @cached_property
    def fragility(self) -> "pd.DataFrame":
        """Whether a metric tells which predictions flip: per model × metric × layers × corruption × severity.

        Columns: model, metric, layers, corruption ("all" for all corrupted pictures together), severity; spearman,
        spearman_low, spearman_high (rank correlation of metric and flip); auroc, auroc_low, auroc_high (chance that a flipped
        picture has the higher value); flipped and count of pictures. Metrics of one map are those of the clean image.
        """
        from overfocus.comparison.fragility import tabulate_fragility

        return tabulate_fragility(self._alignment, self.names)

    @cached_property
    def reliability(self) -> "pd.DataFrame":
        """Share of flipped predictions in groups of corrupted pictures with rising value of a metric.

        Columns: model, metric, layers, bin, value (mean of the metric), flip_rate with low and high (95 %), flipped, count.
        """
        from overfocus.comparison.fragility import tabulate_reliability

        return tabulate_reliability(self._alignment, self.names)

    def write(self, folder: str | Path) -> Path:
        """Write comparison and fragility, each as .csv and .parquet, and all as comparison.json into a folder, and return it.

        Raises:
            RunError: a file cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, table in (("comparison", self.table), ("fragility", self.fragility)):
                with atomic_file(folder / f"{name}.csv") as file:
                    table.to_csv(file, index=False)
                with atomic_file(folder / f"{name}.parquet") as file:
                    table.to_parquet(file, index=False)
            text = json.dumps(self.as_dict(), indent=1, ensure_ascii=False, allow_nan=False)
            with atomic_file(folder / "comparison.json") as file:
                file.write(text.encode())
        except OSError as error:
            raise RunError(
                f"{folder}: the comparison cannot be written ({error.strerror or error}); choose another output"
            ) from error
        return folder

    def overview(self) -> "pd.DataFrame":
        """The rows of `table` that fit on a page: all layers, clean images and all corruptions together."""
        from overfocus.comparison.overview import choose_overview

        return choose_overview(self.table)

    def to_markdown(self, rows: "pd.DataFrame | None" = None) -> str:
        """Rows of `table` (the overview where none are given) as a Markdown table."""
        from overfocus.comparison.overview import markdown

        return markdown(self.overview() if rows is None else rows)

    def to_latex(self, rows: "pd.DataFrame | None" = None) -> str:
        """Rows of `table` (the overview where none are given) as a LaTeX table; it needs the package booktabs."""
        from overfocus.comparison.overview import latex

        return latex(self.overview() if rows is None else rows)

    def as_dict(self) -> dict[str, Any]:
        """The comparison as plain values for JSON; NaN as None."""
        from overfocus.version import __version__

        return {
            "format": FORMAT,
            "kind": "comparison",
            "overfocus": __version__,
            "baseline": self.baseline,
            "models": [{"name": name, "run": str(run.path)} for name, run in zip(self.names, self.runs, strict=True)],
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


def _records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Rows as dictionaries; NaN as None."""
    records: list[dict[str, Any]] = json.loads(table.to_json(orient="records", double_precision=15))
    return records
