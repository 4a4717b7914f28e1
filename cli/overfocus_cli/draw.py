"""The commands that draw: `overfocus report`, `figure`, `heatmap` and `curves`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from overfocus.settings import Settings, setting, shown
from overfocus.sweep.settings import HeatMapSettings
from overfocus_cli.from_settings import from_settings, require_checkpoint, require_run
from overfocus_cli.output import Ablations, AsJson, print_json, say

if TYPE_CHECKING:
    from overfocus.figures.style import PlainFigure

Format = Literal["pdf", "svg", "png"]
_WITHOUT = {
    "columns": ("metrics", "layers"),
    "stability": ("layer", "layers", "image"),
    "layers": ("layer", "image"),
    "matrix": ("layer", "image"),
    "ablation": ("corruptions", "severity", "layer", "layers", "label", "image"),
}
"""Options that do not apply to a kind of figure."""


def _inches(text: str) -> float:
    from overfocus.figures.style import inches

    return inches(text)


@dataclass(frozen=True)
class ReportSettings(Settings):
    """What `overfocus report` takes."""

    folders: Sequence[Path] = setting(
        help="Folders that `overfocus analyze`, `compare` or `ablate` wrote.", argument=True, metavar="FOLDER"
    )


@dataclass(frozen=True)
class FigureSettings(Settings):
    """What `overfocus figure` takes.

    Raises:
        RunError: a value is unknown, or the file's ending is that of no format or of another one.
    """

    kind: Literal["columns", "stability", "layers", "matrix", "ablation"] = setting(
        help="columns: attention matrices, clean and corrupted; stability: metrics against severity; layers: metrics over "
        "depth; matrix: layer × corruption; ablation: what `overfocus ablate` measured.",
        argument=True,
        metavar="KIND",
    )
    runs: Sequence[Path] = setting(help="Run folders; several are drawn on shared scales.", argument=True, metavar="RUN")
    format: Format | None = setting(None, "Format of the file.", none="from the ending of --output, else pdf")
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
        None,
        "For columns: layer of the first run; negative numbers count from the end.",
        none="the most overfocused",
        metavar="N",
    )
    layers: str | None = setting(None, "For layers and matrix: the layers to show, such as 0,3-5.", none="all", metavar="N,N-N,…")
    label: Sequence[str] | None = setting(None, "Name of a run in the legend.", none="the names of the runs", metavar="NAME=TEXT")
    image: int | str | None = setting(
        None, "For columns: one of the displayed images, by number or name.", none="the first", metavar="NAME|N"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None and not self.output.name:
            self.refuse("output", f"must name a file such as {self.kind}.pdf, got {shown(str(self.output))}")
        formats = [self.format] if self.format else get_args(Format)
        if self.kind == "ablation" and (len(self.runs) > 1 or len(self.metrics or ()) > 1):
            self.refuse("runs", "must be one ablation, drawn with one metric; draw one figure for each")
        ending = self.path.suffix.lstrip(".").lower()
        if ending not in formats:
            self.refuse("output", f"must end in {' or '.join(f'.{known}' for known in formats)}, got .{ending}")

        for name in _WITHOUT[self.kind]:
            if getattr(self, name) is not None:
                kinds = [kind for kind, without in _WITHOUT.items() if name not in without]
                self.refuse(name, f"does not apply to {self.kind}, only to {' and '.join(kinds)}; leave it out")
        if self.layers is not None and not self.numbers:
            self.refuse("layers", f"must be layer numbers such as 0,3-5, at most 1000, got {shown(self.layers)}")

    @property
    def numbers(self) -> list[int] | None:
        """The layers to show, empty where the text names none; None: all."""
        if self.layers is None:
            return None
        parts = [re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", part.strip()) for part in self.layers.split(",")]
        found = [number for part in parts if part for number in range(int(part[1]), int(part[2] or part[1]) + 1)]
        return list(dict.fromkeys(found)) if all(parts) and len(found) <= 1000 else []

    @property
    def path(self) -> Path:
        """The file to write."""
        ending = f".{self.format or 'pdf'}"
        if self.output is None:
            return Path(self.kind + ending)
        return self.output if self.output.suffix else self.output.with_name(self.output.name + ending)


@from_settings(ReportSettings)
def report(settings: ReportSettings, *, ablation: Ablations = None, as_json: AsJson = False) -> None:
    """Draw the report of saved runs, comparisons and ablations again.

    Writes figures and report.html into each folder; neither the models nor the images are needed.

    Example: overfocus report overfocus-run/*
    """
    for folder in settings.folders:
        require_run(folder)

    from overfocus.results.ablation import Ablation
    from overfocus.results.comparison import is_comparison, read_comparison
    from overfocus.run import Run
    from overfocus_reports import draw_ablation, draw_comparison, draw_report

    ablations = [Ablation(path) for path in ablation or []]

    def page(folder: Path) -> Path:
        if is_comparison(folder):
            return draw_comparison(read_comparison(folder), ablations)
        run = Run(folder)
        return draw_ablation(Ablation(folder)) if run.description.kind == "ablation" else draw_report(run)

    _print_paths([page(folder) for folder in settings.folders], as_json)


@from_settings(FigureSettings)
def figure(settings: FigureSettings, *, as_json: AsJson = False) -> None:
    """Draw a figure for a paper.

    Fonts are embedded, labels are words, there is no title; the runs share scales.

    Example: overfocus figure layers overfocus-run/* --metrics gini --width 3.3in --output gini.pdf
    """
    from overfocus.figures.draw import draw
    from overfocus.figures.style import paper, save_figure
    from overfocus.run import Run, display_names

    if settings.kind == "ablation":
        with paper():
            _print_paths([save_figure(_ablation(settings), settings.path)], as_json)
        return
    for folder in settings.runs:
        require_run(folder)
    runs = [Run(folder) for folder in settings.runs]
    about: dict[str, Any] = {
        name: getattr(settings, name) for name in ("width", "metrics", "corruptions", "severity", "layer", "image")
    } | {"layers": settings.numbers}
    names = _labelled(display_names(runs), settings)
    with paper():
        _print_paths([save_figure(draw(settings.kind, runs, names, **about), settings.path)], as_json)


def _labelled(names: Sequence[str], settings: FigureSettings) -> list[str]:
    """The names of the runs, with those of --label: NAME is a run's name or its folder.

    Raises:
        RunError: a label has no text, or names no run.
    """
    found = list(names)
    for given in settings.label or ():
        name, equals, text = given.partition("=")
        places = [place for place, folder in enumerate(settings.runs) if name in (names[place], str(folder), folder.name)]
        if not equals or not text or not places:
            settings.refuse("label", f"must be NAME=TEXT, NAME one of {', '.join(names)}, got {shown(given)}")
        for place in places:
            found[place] = text
    return found


def _ablation(settings: FigureSettings) -> "PlainFigure":
    """The figure of one ablation; call inside `paper()`."""
    from overfocus.figures.ablation import ablation_figure
    from overfocus.results.ablation import Ablation

    found = Ablation(settings.runs[0])
    score = settings.metrics[0] if settings.metrics else None
    return ablation_figure(found.table, found.differences, found.how, score=score, width=settings.width)


@from_settings(HeatMapSettings)
def heatmap(settings: HeatMapSettings, *, as_json: AsJson = False) -> None:
    """Draw attention over images.

    Colours are multiples of uniform attention (for a class: of the mean relevance); windows (Swin) are put back in their places.

    Example: overfocus heatmap checkpoint.pth cat.jpg --method row --query class --layer -1
    """
    require_checkpoint(settings.checkpoint, settings.images, command="heatmap")

    from overfocus.heatmaps import draw_heat_maps

    _print_paths(draw_heat_maps(settings), as_json)


@dataclass(frozen=True)
class CurvesSettings(Settings):
    """What `overfocus curves` takes.

    Raises:
        RunError: the page or image to write has another ending.
    """

    log: Path = setting(
        help="log.csv of `overfocus train` or of `overfocus.monitor`, or the folder of a training.", argument=True, metavar="LOG"
    )
    output: Path | None = setting(None, "Page (.html) or image (.png).", none="curves.html there", metavar="FILE")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None and self.output.suffix.lower() not in (".html", ".png"):
            self.refuse("output", f"must end in .html or .png, got {shown(self.output.name)}")


@from_settings(CurvesSettings)
def curves(settings: CurvesSettings, *, as_json: AsJson = False) -> None:
    """Draw the curves of a training, also while it runs.

    Example: overfocus curves attention.csv --output attention.html
    """
    from overfocus.curves import write_curves

    log = settings.log / "log.csv" if settings.log.is_dir() else settings.log
    _print_paths([write_curves(log, settings.output or log.with_name("curves.html"))], as_json)


def _print_paths(paths: Sequence[Path], as_json: bool) -> None:
    """What was written, a file a line."""
    if as_json:
        print_json([str(path) for path in paths])
    else:
        say("\n".join(map(str, paths)))
