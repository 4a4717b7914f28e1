"""`evaluate`: how well checkpoints predict labels or masks, and what corruptions leave of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.analysis.settings import choose_device, choose_workers
from overfocus.analysis.variants import CLEAN, list_variants
from overfocus.corruptions import GROUPS, check_severity, resolve_corruptions
from overfocus.errors import RunError
from overfocus.evaluation.evaluation import Evaluation
from overfocus.evaluation.layouts import add_clean_pictures, choose_portions, open_evaluation_data, open_segmented_data
from overfocus.evaluation.models import require_task, run_folders, task_of
from overfocus.evaluation.segmented_summary import write_segmented_summary
from overfocus.evaluation.summary import write_summary
from overfocus.training.memory import memory_told
from overfocus.training.train import require_extra

if TYPE_CHECKING:
    from accelerate import Accelerator

    from overfocus.checkpoints.loaded import LoadedModel
    from overfocus.evaluation.layouts import EvaluationData
    from overfocus.evaluation.pictures import Item
    from overfocus.evaluation.plan import EvaluationSettings, ModelUnderTest
    from overfocus.evaluation.task import Task
    from overfocus.segmentation.settings import InferenceSettings

ALL_SEVERITIES = (1, 2, 3, 4, 5)
USUAL_BATCH = 64
"""Pictures of a classifier in one forward."""


def evaluate(
    checkpoints: str | Path | Sequence[str | Path],
    data: str | Path,
    output: str | Path = "overfocus-evaluation",
    *,
    task: str | None = None,
    corruptions: str | Sequence[str] | None = None,
    severities: int | Sequence[int] | None = None,
    clean: str | Path | None = None,
    baseline: str | Path | None = None,
    model: str | None = None,
    use_ema: bool = True,
    image_size: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    whole: bool = False,
    flip: bool = False,
    scales: float | Sequence[float] | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    amp: bool = False,
    workers: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> list[Evaluation]:
    """Evaluate classifiers or segmentation models; each gets a run folder in `output` that `compare` reads.

    Corruptions are made on the fly from clean pictures, or lie in a tree of ImageNet-C's or Cityscapes-C's layout; which of the
    two it was stands in the results. Pictures whose label means no class of a model do not count. Started by
    `accelerate launch`, the processes share the pictures. Interrupted, the same call goes on.

    Segmentation models see pictures at their own size, in sliding windows where one is larger than the window, and are scored
    at the size of the masks.

    Args:
        checkpoints: files, folders or timm names.
        data: a data set as for `train` (its validation split if it has one), ImageNet-A or -R (told by the folder's name),
            or a tree corruption/severity/class/picture; for segmentation Cityscapes, Cityscapes-C, ACDC, or images/ and masks/.
        output: a folder; with several checkpoints each has its run in a folder of it.
        task: "classification" or "segmentation"; None takes what the checkpoints are for.
        corruptions: names or groups to make on the fly (None: none), or to take of a tree (None: all).
        severities: from 1 to 5; None takes all.
        clean: the data set that a tree of corruptions was made from, for accuracy without corruption and relative mCE. Not for
            segmentation.
        baseline: a finished evaluation's folder, or a checkpoint, whose errors those of the others are divided by for mCE, where
            AlexNet's published ones do not fit; None takes the first of several checkpoints. Not for segmentation.
        model: architecture, where the checkpoints do not say it.
        use_ema: take weights averaged over training where a checkpoint holds them.
        image_size: side of the model's input in pixels, instead of the checkpoint's.
        window: of segmentation: side of the sliding windows in pixels; None takes the model's input size.
        stride: from one window to the next in pixels; None takes three quarters of the window.
        whole: take pictures in one forward, whatever their size, instead of windows.
        flip: average with the prediction of the mirrored picture.
        scales: sizes at which each picture is seen, relative to its own, and their predictions averaged; None: 1 alone.
        device: "cpu", "cuda"; None takes a CUDA device where there is one.
        batch_size: pictures in one forward, or windows of pictures; None takes 64 pictures, or windows of as many pixels together
            as four of 1024×1024.
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
        RunError: a setting is out of range, labels or masks do not fit the classes, checkpoints and data are for different tasks,
            or a folder holds something else or cannot be written.
    """
    require_extra()
    import accelerate
    import torch

    from overfocus.checkpoints.load import load_model
    from overfocus.evaluation.baseline import is_run, require_comparable
    from overfocus.evaluation.pictures import list_items
    from overfocus.evaluation.plan import EvaluationSettings
    from overfocus.segmentation.settings import InferenceSettings, usual_batch

    sources = [checkpoints] if isinstance(checkpoints, str | Path) else list(checkpoints)
    if not sources:
        raise RunError("expected at least one checkpoint to evaluate, got none")
    levels = sorted({severities} if isinstance(severities, int) else set(severities or ALL_SEVERITIES))
    for level in levels:
        check_severity(level)
    require_task(task, Path(data))
    sizes = [1.0] if scales is None else [scales] if isinstance(scales, int | float) else list(scales)
    inference = InferenceSettings(window, stride, bool(whole), bool(flip), [float(size) for size in sizes])
    divisor = None if baseline is None or not is_run(baseline) else Evaluation(baseline)
    if baseline is not None and divisor is None:
        sources = [baseline, *(source for source in sources if str(source) != str(baseline))]

    place = str(choose_device(device))
    accelerator = accelerate.Accelerator(cpu=torch.device(place).type == "cpu")
    where = str(accelerator.device) if accelerator.num_processes > 1 else place
    loaded = [load_model(source, model=model, use_ema=use_ema, image_size=image_size, device=where) for source in sources]
    segmentation = task_of(loaded, task, Path(data)) == "segmentation"
    _require_options(inference, baseline, clean, segmentation=segmentation)
    opened: EvaluationData[Any] = open_segmented_data(data, loaded[0]) if segmentation else open_evaluation_data(data)
    names = None if corruptions is None else _names(corruptions, tree=opened.corrupted)
    if opened.corrupted:
        opened = choose_portions(opened, names, levels if severities is not None else None)
        names = list(dict.fromkeys(portion.corruption for portion in opened.portions if portion.severity))
        levels = sorted({portion.severity for portion in opened.portions if portion.severity})
    elif severities is not None and not names:
        raise RunError("severities are those of corruptions, but none is to be made; name one or a group, such as common")
    elif names and opened.layout == "ACDC":
        raise RunError(f"{data}: the pictures of ACDC show real fog, night, rain and snow; corruptions are made from clean ones")
    if clean is not None:
        opened = add_clean_pictures(opened, clean)
    usual = usual_batch(loaded[0], window) if segmentation else USUAL_BATCH
    settings = EvaluationSettings(
        images=str(Path(data).absolute()),
        corruptions=names or [],
        severities=levels if names else [],
        made=opened.layout if opened.corrupted else "on-the-fly" if names else "none",
        seed=int(seed),
        batch_size=usual if batch_size is None else int(batch_size),
        limit=limit,
        amp=bool(amp),
        device=place,
        workers=choose_workers(workers),
        image_size=image_size,
        clean=None if clean is None else str(Path(clean).absolute()),
        inference=inference if segmentation else None,
    )
    work = list_items(opened.portions, limit)
    if divisor is not None:
        require_comparable(divisor, work[1], settings)
    folders = run_folders(Path(output), sources)
    _run_all(loaded, folders, opened, work, settings, accelerator, overwrite=overwrite, progress=progress)
    found = [Evaluation(folder) for folder in folders]
    if divisor is None and len(found) > 1:
        divisor = found[0]
    if accelerator.is_main_process:
        for evaluation in found:
            if segmentation:
                write_segmented_summary(evaluation)
            else:
                write_summary(evaluation, divisor)
    return found


def _names(corruptions: str | Sequence[str], *, tree: bool) -> list[str]:
    """Names of corruptions, groups resolved; those of a tree may be any."""
    given = [corruptions] if isinstance(corruptions, str) else list(corruptions)
    if not tree:
        return resolve_corruptions(given)
    return [name for entry in given for name in GROUPS.get(entry, (entry,))]


def _require_options(
    inference: "InferenceSettings", baseline: str | Path | None, clean: str | Path | None, *, segmentation: bool
) -> None:
    """Raise a `RunError` for options of the other task."""
    from overfocus.segmentation.settings import InferenceSettings

    if segmentation and baseline is not None:
        raise RunError("a baseline is what mCE is divided by, which segmentation does not have; compare the runs instead")
    if segmentation and clean is not None:
        raise RunError("clean pictures beside a tree are for relative mCE, which segmentation does not have; evaluate them alone")
    if not segmentation and inference != InferenceSettings():
        raise RunError("window, stride, whole, flip and scales are for segmentation models, but the checkpoint is a classifier")


def _run_all(
    loaded: "Sequence[LoadedModel]",
    folders: Sequence[Path],
    data: "EvaluationData[Any]",
    work: "tuple[list[Item], list[tuple[str, str | None]]]",
    settings: "EvaluationSettings",
    accelerator: "Accelerator",
    *,
    overwrite: bool,
    progress: bool | None,
) -> None:
    """Evaluate all models, those that take the same pictures together."""
    import accelerate

    from overfocus.evaluation.classification import Classification
    from overfocus.evaluation.plan import open_model
    from overfocus.evaluation.segmentation import Segmentation
    from overfocus.evaluation.session import evaluate_models

    variants = [CLEAN] if data.corrupted else list_variants(settings.corruptions, settings.severities)
    items, images = work
    labels = list(dict.fromkeys(label for _, label in images if label is not None))
    segmentation = settings.inference is not None
    task: Task = Segmentation(data, variants, settings) if segmentation else Classification(data, labels, variants, settings)
    main = accelerator.is_main_process
    models = [
        open_model(one, folder, task, images, settings, overwrite=overwrite, main=main)
        for one, folder in zip(loaded, folders, strict=True)
    ]
    if accelerator.num_processes > 1:
        done = accelerate.utils.broadcast_object_list([[entry.done for entry in models], [entry.complete for entry in models]])
        for entry, number, complete in zip(models, *done, strict=True):
            entry.info |= {"done": number, "status": "complete" if complete else "running"}
    groups: dict[object, list[ModelUnderTest]] = {}
    for entry in models:
        if not entry.complete:
            groups.setdefault(task.geometry(entry.loaded), []).append(entry)
    for group in groups.values():
        with memory_told(f"try a smaller batch_size than {settings.batch_size}", RunError):
            evaluate_models(group, task, items, settings, accelerator, progress=progress)
    accelerator.wait_for_everyone()
