"""The commands that draw: `overfocus report`, `figure` and `heatmap`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from overfocus.settings import Settings, setting, shown
from overfocus.sweep.settings import HeatMapSettings
from overfocus_cli.from_settings import from_settings, require_checkpoint, require_run
from overfocus_cli.output import Ablations, AsJson, print_json, say

Format = Literal["pdf", "svg", "png"]


def _inches(text: str) -> float:
    from overfocus.figures.style import inches

    return inches(text)


@dataclass(frozen=True)
class ReportSettings(Settings):
    """What `overfocus report` takes."""

    folders: Sequence[Path] = setting(
        help="What `overfocus analyze` or `overfocus compare` wrote.", argument=True, metavar="FOLDER…"
    )


@dataclass(frozen=True)
class FigureSettings(Settings):
    """What `overfocus figure` takes.

    Raises:
        RunError: a value is unknown, or the file's ending is that of no format or of another one.
    """

    kind: Literal["columns", "stability", "layers", "matrix"] = setting(
        help="columns: attention matrices, clean and corrupted; stability: metrics against severity; layers: metrics over "
        "depth; matrix: layer × corruption.",
        argument=True,
        metavar="KIND",
    )
    runs: Sequence[Path] = setting(help="Run folders; several are drawn on shared scales.", argument=True, metavar="RUN…")
    format: Format | None = setting(None, "Format of the file.", none="by the ending of --output, else pdf")
    width: float = setting(
        3.3, "Width on paper: 3.3in, 8.4cm, 84mm or 240pt; a bare number is in inches.", metavar="SIZE", parse=_inches
    )
    output: Path | None = setting(None, "File to write.", none="KIND.FORMAT here", metavar="FILE")
    metrics: Sequence[str] | None = setting(
        None,
        "Metrics to draw (`overfocus list metrics`).",
        none="those that suit the figure",
        spelling=("--metrics", "--metric"),
        commas=True,
        metavar="NAME,NAME…",
    )
    corruptions: Sequence[str] | None = setting(None, "One of the run's.", none="all that fit", metavar="NAME")
    severity: int | None = setting(None, "One of the run's.", none="the middle one", metavar="N")
    layer: int | None = setting(
        None, "Of columns: layer of the first run, from the end where negative.", none="the most overfocused", metavar="N"
    )
    image: int | str | None = setting(None, "Of columns: a displayed image.", none="the first", metavar="NAME|N")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None and not self.output.name:
            self.refuse("output", f"must name a file such as {self.kind}.pdf, got {shown(str(self.output))}")
        formats = [self.format] if self.format else get_args(Format)
        ending = self.path.suffix.lstrip(".").lower()
        if ending not in formats:
            self.refuse("output", f"must end in {' or '.join(f'.{known}' for known in formats)}, got .{ending}")

    @property
    def path(self) -> Path:
        """The file to write."""
        ending = f".{self.format or 'pdf'}"
        if self.output is None:
            return Path(self.kind + ending)
        return self.output if self.output.suffix else self.output.with_name(self.output.name + ending)


@from_settings(ReportSettings)
def report(settings: ReportSettings, *, ablation: Ablations = None, as_json: AsJson = False) -> None:
    """Draw the report of saved runs and comparisons again.

    Writes figures and report.html into each folder; neither the models nor the images are needed.

    Example: overfocus report overfocus-run/*
    """
    for folder in settings.folders:
        require_run(folder)

    from overfocus.ablation.ablation import Ablation
    from overfocus.results.comparison import is_comparison, read_comparison
    from overfocus.run import Run
    from overfocus_reports import draw_comparison, draw_report

    ablations = [Ablation(path) for path in ablation or []]
    pages = [
        draw_comparison(read_comparison(folder), ablations) if is_comparison(folder) else draw_report(Run(folder))
        for folder in settings.folders
    ]
    _print_paths(pages, as_json)


@from_settings(FigureSettings)
def figure(settings: FigureSettings, *, as_json: AsJson = False) -> None:
    """Draw a figure for a paper.

    Fonts are embedded, labels are words, there is no title; the runs share scales.

    Example: overfocus figure layers overfocus-run/* --metric gini --width 3.3in --output gini.pdf
    """
    from overfocus.figures.publication import draw
    from overfocus.figures.style import paper, save_figure
    from overfocus.run import Run
    from overfocus.runs.names import display_names

    for folder in settings.runs:
        require_run(folder)
    runs = [Run(folder) for folder in settings.runs]
    about: dict[str, Any] = {
        name: getattr(settings, name) for name in ("width", "metrics", "corruptions", "severity", "layer", "image")
    }
    with paper():
        _print_paths([save_figure(draw(settings.kind, runs, display_names(runs), **about), settings.path)], as_json)


@from_settings(HeatMapSettings)
def heatmap(settings: HeatMapSettings, *, as_json: AsJson = False) -> None:
    """Draw attention over images.

    Colours are multiples of uniform attention (for a class: of the mean relevance); windows (Swin) are put back where they lie.

    Example: overfocus heatmap checkpoint.pth cat.jpg --method row --query class --layer -1
    """
    require_checkpoint(settings.checkpoint, settings.images, command="heatmap")

    from overfocus.heatmaps import draw_heat_maps

    _print_paths(draw_heat_maps(settings), as_json)


def _print_paths(paths: Sequence[Path], as_json: bool) -> None:
    """What was written, a file a line."""
    if as_json:
        print_json([str(path) for path in paths])
    else:
        say("\n".join(map(str, paths)))
