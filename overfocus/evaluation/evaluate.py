"""`evaluate`: accuracy, calibration and corruption errors of checkpoints on labelled pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overfocus.analysis.settings import choose_device, choose_workers
from overfocus.analysis.variants import CLEAN, list_variants
from overfocus.checkpoints.source_name import source_name
from overfocus.corruptions import GROUPS, check_severity, resolve_corruptions
from overfocus.errors import RunError
from overfocus.evaluation.evaluation import Evaluation
from overfocus.evaluation.layouts import choose_portions, open_evaluation_data
from overfocus.evaluation.summary import write_summary
from overfocus.training.extra import require_extra
from overfocus.training.memory import memory_told

if TYPE_CHECKING:
    from overfocus.analysis.variants import Variant
    from overfocus.evaluation.layouts import EvaluationData
    from overfocus.evaluation.plan import EvaluationSettings, ModelUnderTest

ALL_SEVERITIES = (1, 2, 3, 4, 5)


def evaluate(
    checkpoints: str | Path | Sequence[str | Path],
    data: str | Path,
    output: str | Path = "overfocus-evaluation",
    *,
    corruptions: str | Sequence[str] | None = None,
    severities: int | Sequence[int] | None = None,
    baseline: str | Path | None = None,
    model: str | None = None,
    use_ema: bool = True,
    image_size: int | None = None,
    device: str | None = None,
    batch_size: int = 64,
    amp: bool = False,
    workers: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> list[Evaluation]:
    """Evaluate classifiers; each gets a run folder in `output` that `compare` reads.

    Corruptions are made on the fly from clean pictures, or lie in a tree of ImageNet-C's layout; which of the two it was stands
    in the results. Pictures whose label means no class of a model do not count. Started by `accelerate launch`, the processes
    share the pictures. Interrupted, the same call goes on.

    Args:
        checkpoints: files, folders or timm names.
        data: a data set as for `train` (its validation split if it has one), ImageNet-A or -R (told by the folder's name),
            or a tree corruption/severity/class/picture.
        output: a folder; with several checkpoints each has its run in a folder of it.
        corruptions: names or groups to make on the fly (None: none), or to take of a tree (None: all).
        severities: from 1 to 5; None takes all.
        baseline: a finished evaluation's folder, or a checkpoint, whose errors those of the others are divided by for mCE, where
            AlexNet's published ones do not fit; None takes the first of several checkpoints.
        model: architecture, where the checkpoints do not say it.
        use_ema: take weights averaged over training where a checkpoint holds them.
        image_size: side of the model's input in pixels, instead of the checkpoint's.
        device: "cpu", "cuda"; None takes a CUDA device where there is one.
        batch_size: pictures in one forward.
        amp: mixed precision.
        workers: processes that read and corrupt; None: by the number of cores; 0 does it in this one.
        seed: of the corruptions.
        limit: take only so many pictures, spread evenly.
        overwrite: replace what lies in the run folders.
        progress: show a progress bar; None shows it on a terminal.

    Raises:
        TrainingError: the extra `train` is not installed.
        CheckpointError: a checkpoint cannot be loaded.
        CorruptionError: a corruption or severity does not exist.
        ImageError: the data cannot be read.
        RunError: a setting is out of range, labels fit no class, or a folder holds something else or cannot be written.
    """
    require_extra()
    from overfocus.evaluation.plan import EvaluationSettings

    sources = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    if not sources:
        raise RunError("expected at least one checkpoint to evaluate, got none")
    levels = sorted({severities} if isinstance(severities, int) else set(severities or ALL_SEVERITIES))
    for level in levels:
        check_severity(level)
    opened = open_evaluation_data(data)
    names = None if corruptions is None else _names(corruptions, tree=opened.corrupted)
    if opened.corrupted:
        opened = choose_portions(opened, names, levels if severities is not None else None)
        names = list(dict.fromkeys(portion.corruption for portion in opened.portions))
        levels = sorted({portion.severity for portion in opened.portions})
    made = opened.layout if opened.corrupted else "on-the-fly" if names else "none"
    settings = EvaluationSettings(
        images=str(Path(data).absolute()),
        corruptions=names or [],
        severities=levels if names else [],
        made=made,
        seed=int(seed),
        batch_size=int(batch_size),
        limit=limit,
        amp=bool(amp),
        device=str(choose_device(device)),
        workers=choose_workers(workers),
        image_size=image_size,
    )
    divisor = None if baseline is None or not _is_run(baseline) else Evaluation(baseline)
    if baseline is not None and divisor is None:
        sources = [baseline, *(source for source in sources if str(source) != str(baseline))]
    folders = _folders(Path(output), sources)
    variants = [CLEAN] if opened.corrupted else list_variants(settings.corruptions, settings.severities)
    _run_all(sources, folders, opened, variants, settings, model=model, use_ema=use_ema, overwrite=overwrite, progress=progress)
    found = [Evaluation(folder) for folder in folders]
    if divisor is None and len(found) > 1:
        divisor = found[0]
    if _is_main():
        for evaluation in found:
            write_summary(evaluation, divisor)
    return found


def _names(corruptions: str | Sequence[str], *, tree: bool) -> list[str]:
    """Names of corruptions, groups resolved; those of a tree may be any."""
    given = [corruptions] if isinstance(corruptions, str) else list(corruptions)
    if not tree:
        return resolve_corruptions(given)
    return [name for entry in given for name in GROUPS.get(entry, (entry,))]


def _is_main() -> bool:
    from accelerate.state import PartialState

    return bool(PartialState().is_main_process)


def _is_run(path: str | Path) -> bool:
    return (Path(path) / "run.json").is_file()


def _folders(output: Path, sources: Sequence[str | Path]) -> list[Path]:
    """The folder of each checkpoint's run: `output`, or for several a folder in it with a name of its own."""
    if len(sources) == 1:
        return [output]
    names: list[str] = []
    for source in sources:
        name = source_name(source)
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return [output / name for name in names]


def _run_all(
    sources: Sequence[str | Path],
    folders: Sequence[Path],
    data: "EvaluationData",
    variants: "Sequence[Variant]",
    settings: "EvaluationSettings",
    *,
    model: str | None,
    use_ema: bool,
    overwrite: bool,
    progress: bool | None,
) -> None:
    """Evaluate all models, those with the same input geometry together."""
    import accelerate
    import torch

    from overfocus.checkpoints.load import load_model
    from overfocus.evaluation.pictures import list_items
    from overfocus.evaluation.plan import open_model
    from overfocus.evaluation.session import evaluate_models

    accelerator = accelerate.Accelerator(cpu=torch.device(settings.device).type == "cpu")
    where = str(accelerator.device) if accelerator.num_processes > 1 else settings.device
    items, images = list_items(data.portions, settings.limit)
    models = []
    for source, folder in zip(sources, folders, strict=True):
        loaded = load_model(source, model=model, use_ema=use_ema, image_size=settings.image_size, device=where)
        models.append(open_model(loaded, folder, data, images, settings, overwrite=overwrite, main=accelerator.is_main_process))
    if accelerator.num_processes > 1:
        done = accelerate.utils.broadcast_object_list([[entry.done for entry in models], [entry.complete for entry in models]])
        for entry, number, complete in zip(models, *done, strict=True):
            entry.info |= {"done": number, "status": "complete" if complete else "running"}
    groups: dict[tuple[object, ...], list[ModelUnderTest]] = {}
    for entry in models:
        preprocess = entry.loaded.preprocess
        geometry = (preprocess.input_size[1:], preprocess.interpolation, preprocess.crop_pct, preprocess.crop_mode)
        if not entry.complete:
            groups.setdefault(geometry, []).append(entry)
    for group in groups.values():
        with memory_told(f"try a smaller batch_size than {settings.batch_size}", RunError):
            evaluate_models(group, data, items, variants, settings, accelerator, progress=progress)
    accelerator.wait_for_everyone()
