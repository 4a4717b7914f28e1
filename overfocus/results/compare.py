"""`compare`: several checkpoints on the same corrupted images, or several saved runs, the first being the baseline."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from overfocus.analysis import analyze_models, run_settings
from overfocus.checkpoints.load import resolve_model
from overfocus.corruptions.custom import named_corruptions
from overfocus.errors import RunError
from overfocus.processes import is_main_process, join_processes
from overfocus.results.comparison import Comparison, open_folder, replace_comparison
from overfocus.run import Run, display_names, distinct_names, folder_names
from overfocus.settings import takes
from overfocus.sweep.settings import CompareSettings
from overfocus.sweep.sweep import place_of
from overfocus.text import model_title

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel


@takes(CompareSettings)
def compare(settings: CompareSettings) -> Comparison:
    """Compare models with the first one, image by image, and write the comparison into a folder.

    Of checkpoints, every model is measured on the same images with the same corrupted pixels: each image is resized, cropped
    and corrupted once, as for the baseline, and only resized for a model with another input size. Each writes a run folder of
    its own into `output`/runs. Interrupted at any moment, the same call continues where it stopped. Of saved runs, nothing is
    measured: what they have in common is compared.

    Raises:
        RunError: fewer than two sources, runs and checkpoints mixed, runs that do not compare, or a folder that cannot be
            written.
        CheckpointError, CorruptionError, ImageError, CaptureError: as `analyze` says.
    """
    sources: Sequence[Any] | None = settings.sources
    folder = Path(settings.output)
    if settings.groups is not None:
        if sources is not None:
            raise RunError("expected runs or groups of runs to compare, got both")
        groups = settings.groups
        return _compare_saved({name: [_opened(run) for run in group] for name, group in groups.items()}, settings)
    if sources is None:
        from overfocus.samples import sample_checkpoints

        sources = sample_checkpoints()
    if len(sources) < 2:
        got = "one" if sources else "none"
        raise RunError(f"expected at least two checkpoints or run folders, a baseline and another; got {got}")
    saved = [source for source in sources if _is_run(source)]
    if saved:
        if len(saved) < len(sources):
            raise RunError(
                f"expected checkpoints only or run folders only, got both; {_describe(saved[0])} is a run: "
                "give its checkpoint, or analyze the others first"
            )
        runs = [_opened(source) for source in saved]
        return _compare_saved({name: [run] for name, run in zip(display_names(runs), runs, strict=True)}, settings)
    open_folder(folder, overwrite=settings.overwrite)
    corruptions, custom = settings.chosen_corruptions()
    wanted = run_settings(settings, corruptions)
    processes = join_processes(place_of(sources[0], settings.device))
    checkpoints = _load(sources, processes.device, settings)
    names = distinct_names(
        [model_title(loaded.name, loaded.source) for loaded in checkpoints], [loaded.source for loaded in checkpoints]
    )
    folders = [folder / "runs" / name for name in folder_names(names)]
    asked = {"resamples": settings.resamples}
    written = {name: [path] for name, path in zip(names, folders, strict=True)}
    if not settings.overwrite:
        replace_comparison(folder, written, asked, overwrite=False)
    runs = analyze_models(checkpoints, folders, wanted, settings, processes, custom)
    comparison = Comparison(
        {name: [run] for name, run in zip(names, runs, strict=True)}, resamples=settings.resamples, path=folder
    )
    if processes.main:
        replace_comparison(folder, written, asked, overwrite=settings.overwrite)
        comparison.write(folder)
    processes.wait()
    return comparison


def _compare_saved(groups: Mapping[str, Sequence[Run]], settings: CompareSettings) -> Comparison:
    if settings.images is not None:
        raise RunError("images are measured for checkpoints; saved runs are compared on the images that they have")
    folder = Path(settings.output)
    open_folder(folder, overwrite=settings.overwrite)
    corruptions = None if settings.corruptions is None else named_corruptions(settings.corruptions)
    severities = None if settings.severities is None else settings.chosen_severities()
    paths = {name: [run.path for run in group] for name, group in groups.items()}
    asked = {"resamples": settings.resamples, "corruptions": corruptions, "severities": severities}
    if not settings.overwrite:
        replace_comparison(folder, paths, asked, overwrite=False)
    comparison = Comparison(groups, corruptions=corruptions, severities=severities, resamples=settings.resamples, path=folder)
    if is_main_process():
        replace_comparison(folder, paths, asked, overwrite=settings.overwrite)
        comparison.write(folder)
    return comparison


def _opened(source: object) -> Run:
    return source if isinstance(source, Run) else Run(str(source))


def _load(
    sources: "Sequence[str | Path | Run | LoadedModel]",
    device: torch.device,
    settings: CompareSettings,
) -> "list[LoadedModel]":
    model = settings.model
    architectures = [model] * len(sources) if model is None or isinstance(model, str) else list(model)
    if len(architectures) != len(sources):
        raise RunError(
            f"expected one architecture for all checkpoints or one for each of {len(sources)}, got {len(architectures)}"
        )
    return [
        resolve_model(source, device=device, **settings.loading() | {"model": architecture})
        for source, architecture in zip(sources, architectures, strict=True)
        if not isinstance(source, Run)
    ]


def _is_run(source: object) -> bool:
    return isinstance(source, Run) or (isinstance(source, str | Path) and (Path(source) / "run.json").is_file())


def _describe(source: object) -> str:
    return str(source.path if isinstance(source, Run) else source)
