"""The commands that run models over images: `overfocus analyze`, `compare`, `ablate`, `evaluate` and `train`."""

import json
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from overfocus.processes import is_main_process
from overfocus.settings import Settings
from overfocus.sweep.settings import AblateSettings, AnalyzeSettings, CompareSettings, EvaluateSettings
from overfocus.training.settings import TrainSettings
from overfocus_cli.from_settings import from_settings, require_checkpoint
from overfocus_cli.output import (
    Ablations,
    AsJson,
    describe_evaluation,
    print_ablation,
    print_comparison,
    print_json,
    print_segmentation,
    print_summary,
    say,
    summary_as_json,
)

if TYPE_CHECKING:
    from overfocus.run import Run

NoReport = Annotated[bool, typer.Option("--no-report", help="Only measure; `overfocus report` can draw the report later.")]


def _output(root: str, what: str) -> Any:
    help = f"Output folder of the {what}. Default: {root}/NAME-ID, where ID depends on the settings."
    return typer.Option("--output", metavar="FOLDER", help=help, show_default=False)


@from_settings(AnalyzeSettings, without=("output",))
def analyze(
    settings: AnalyzeSettings,
    *,
    output: Annotated[str | None, _output("overfocus-run", "run")] = None,
    no_report: NoReport = False,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint's attention and draw the report.

    Each image is shown to the model clean and corrupted; the run's folder gets tables, figures and report.html. The same
    command continues an interrupted run. With no arguments, the bundled model and images are used. Several GPUs or processes:
    accelerate launch -m overfocus analyze … or torchrun --nproc-per-node N -m overfocus analyze …

    Example: overfocus analyze checkpoint.pth --images photos/ --corruption noise --severity 3
    """
    require_checkpoint(_text(settings.checkpoint), command="analyze")
    folder = output or default_output("overfocus-run", settings, _text(settings.checkpoint))

    import overfocus

    run = overfocus.analyze(**settings.arguments() | {"output": folder})
    if not is_main_process():
        return
    report = None if no_report else _drawn(run)

    from overfocus_reports import summarise

    summary = summarise(run)
    if as_json:
        print_json({"run": str(run.path), "report": str(report) if report else None, **summary_as_json(summary)})
    else:
        print_summary(summary)
        say(f"\nrun: {run.path}" + (f"\nreport: {report}" if report else ""))


class Format(StrEnum):
    """How the table of a comparison is printed."""

    TABLE = "table"
    MARKDOWN = "markdown"
    LATEX = "latex"


@from_settings(CompareSettings, without=("output",))
def compare(
    settings: CompareSettings,
    *,
    output: Annotated[str | None, _output("overfocus-comparison", "comparison")] = None,
    format: Annotated[Format, typer.Option(help="Format of the printed table.")] = Format.TABLE,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,…",
            help="Metrics in the printed table. Default: all; for latex those behind the verdicts.",
            show_default=False,
        ),
    ] = None,
    ablation: Ablations = None,
    no_report: NoReport = False,
    as_json: AsJson = False,
) -> None:
    """Compare checkpoints, or saved runs, with the first of them.

    Every model sees the same images with the same corrupted pixels. The folder gets tables, a run per model and report.html;
    the same command continues an interrupted comparison.

    Example: overfocus compare baseline.pth retrained.pth --images photos/ --corruption noise
    """
    sources = [_text(source) for source in settings.sources or ()]
    for source in sources:
        require_checkpoint(source, command="compare")
    folder = output or default_output("overfocus-comparison", settings, *sources)
    models = settings.model if isinstance(settings.model, tuple) else (settings.model,)
    names = [name or None for name in models]

    import overfocus
    from overfocus.results.ablation import Ablation

    ablations = [Ablation(path) for path in ablation or []]
    asked = {"output": folder, "model": names if len(names) > 1 else names[0]}
    comparison = overfocus.compare(**settings.arguments() | asked)
    if not is_main_process():
        return
    chosen = [name.strip() for name in metrics.split(",")] if metrics else None
    comparison.overview(chosen)  # a wrong name is refused before the report is drawn
    report = None
    if not no_report:
        from overfocus_reports import draw_comparison

        report = draw_comparison(comparison, ablations)
    if as_json:
        print_json({"comparison": str(folder), "report": str(report) if report else None, **comparison.as_dict()})
    elif format is Format.TABLE:
        print_comparison(comparison, chosen)
        say(f"\ncomparison: {folder}" + (f"\nreport: {report}" if report else ""))
    else:
        rows = None if chosen is None else comparison.overview(chosen)
        typer.echo(comparison.to_markdown(rows) if format is Format.MARKDOWN else comparison.to_latex(rows), nl=False)


@from_settings(AblateSettings, without=("output",))
def ablate(
    settings: AblateSettings,
    *,
    output: Annotated[str | None, _output("overfocus-ablation", "ablation")] = None,
    no_report: NoReport = False,
    as_json: AsJson = False,
) -> None:
    """Remove or corrupt the most attended patches.

    For comparison the same is done to as many random patches, as many least attended ones, and random ones of equal received
    mass. The folder gets tables and report.html; the same command continues an interrupted ablation.

    Example: overfocus ablate checkpoint.pth --images photos/ --corruption noise --how corrupt
    """
    require_checkpoint(_text(settings.checkpoint), command="ablate")
    folder = output or default_output("overfocus-ablation", settings, _text(settings.checkpoint))

    import overfocus

    found = overfocus.ablate(**settings.arguments() | {"output": folder})
    if not is_main_process():
        return
    report = None
    if not no_report:
        from overfocus_reports import draw_ablation

        report = draw_ablation(found)
    if as_json:
        tables = {
            name: json.loads(table.to_json(orient="records", double_precision=15))
            for name, table in (("table", found.table), ("differences", found.differences))
        }
        answer = {
            "ablation": str(folder),
            "report": str(report) if report else None,
            "model": found.model,
            "images": found.images,
            "sentences": found.sentences,
        }
        print_json(answer | tables)
    else:
        print_ablation(found)
        say(f"\nablation: {folder}" + (f"\nreport: {report}" if report else ""))


@from_settings(EvaluateSettings)
def evaluate(settings: EvaluateSettings, *, as_json: AsJson = False) -> None:
    """Evaluate classifiers or segmentation models.

    Accuracy, calibration and mCE of classifiers; mIoU and pixel accuracy of segmentation models. The same command continues an
    interrupted evaluation. Several GPUs: accelerate launch -m overfocus evaluate …

    Example: overfocus evaluate baseline.pth robust.pth --data val/ --corruption common
    """
    import overfocus

    found = overfocus.evaluate(**settings.arguments())
    if not is_main_process():
        return
    if as_json:
        print_json([{"run": str(entry.path)} | entry.summary for entry in found])
        return
    for entry in found:
        if entry.summary.get("task") == "segmentation":
            print_segmentation(entry)
        else:
            say(describe_evaluation(entry))


@from_settings(TrainSettings)
def train(settings: TrainSettings, *, as_json: AsJson = False) -> None:
    """Train or fine-tune a classifier or segmentation model.

    Its model.safetensors goes into `overfocus analyze` as it is.

    The same command continues an interrupted training. Several GPUs or machines: accelerate launch -m overfocus train …; several
    processes without GPUs: torchrun --nproc-per-node N -m overfocus train … --device cpu

    Example: overfocus train photos/ --model vit_small_patch16_224 --recipe finetune --init vit.pth --tap 4 --adl 1
    """
    import overfocus

    training = overfocus.train(**settings.arguments() | {"progress": True})
    if not is_main_process():
        return
    last = {str(name): value for name, value in training.log.iloc[-1].dropna().items()}
    if as_json:
        print_json({"checkpoint": str(training.checkpoint), **last})
        return
    for note in training.info.notes:
        say(note)
    from overfocus.training.folder import describe_row

    say(f"{describe_row(last)}\ncheckpoint: {training.checkpoint}\nlog: {training.path / 'log.csv'}")


def _text(checkpoint: object) -> str | None:
    """A checkpoint as it was typed."""
    return None if checkpoint is None else str(checkpoint)


def _drawn(run: "Run") -> Path:
    """The run's report, drawn unless the existing one is newer than the run."""
    from overfocus_reports import draw_report

    page = run.path / "report.html"
    if page.is_file() and page.stat().st_mtime_ns >= (run.path / "run.json").stat().st_mtime_ns:
        return page
    return draw_report(run)


def default_output(root: str, settings: Settings, *checkpoints: str | None) -> Path:
    """ROOT/NAME-ID: the first checkpoint's name, and six digits that differ when what is measured differs.

    So the same command finds its run again, and another command does not touch it.
    """
    from hashlib import sha256

    from overfocus.text import source_name

    named = {"checkpoint", "sources"}
    measured = {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if "setting" in field.metadata and field.metadata["setting"].affects_result and field.name not in named
    }
    where = [str(Path(name).absolute()) if name is not None and Path(name).exists() else name for name in checkpoints]
    text = json.dumps([where, measured], sort_keys=True, default=str)
    path = Path((checkpoints or (None,))[0] or "fashion_mnist_vit")
    return Path(root) / f"{source_name(path)}-{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"
