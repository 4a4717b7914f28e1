"""The checkpoints of an evaluation: what they are, and where the run of each goes."""

from collections.abc import Sequence
from pathlib import Path

from overfocus.checkpoints.loaded import LoadedModel
from overfocus.checkpoints.source_name import source_name
from overfocus.datasets.segmented import is_segmented
from overfocus.errors import ImageError, RunError
from overfocus.results.names import folder_names
from overfocus.segmentation.prediction import is_segmentation

TASKS = ("classification", "segmentation")


def require_task(task: str | None, data: Path) -> None:
    """Find out before any model is loaded whether the task exists and the data can be for it.

    Raises:
        RunError: there is no such task, or the data are for the other one.
        ImageError: there is no such folder.
    """
    if task is not None and task not in TASKS:
        raise RunError(f"unknown task {task!r}; valid tasks: {', '.join(TASKS)}")
    if not data.is_dir():
        problem = "it is a file" if data.exists() else "there is no such folder"
        raise ImageError(f"{data}: expected a folder of labelled pictures, or of pictures and masks, but {problem}")
    if task == "classification" and is_segmented(data):
        raise RunError(f"{data}: holds pictures with masks, which classification has no use for; try --task segmentation")


def task_of(models: Sequence[LoadedModel], task: str | None, data: Path) -> str:
    """What the checkpoints are for: "segmentation" or "classification".

    Raises:
        RunError: they are not what was asked for, not all of one kind, or classifiers with pictures and masks.
    """
    kinds = [TASKS[is_segmentation(loaded.model)] for loaded in models]
    wanted = task or kinds[0]
    for loaded, kind in zip(models, kinds, strict=True):
        if kind != wanted:
            asked = f"--task {wanted}" if task else f"{models[0].source} is for {wanted}"
            what = "a segmentation model" if kind == "segmentation" else "no segmentation model"
            raise RunError(
                f"{loaded.source}: {what} ({loaded.name}), but {asked}; evaluate checkpoints of one kind with their task"
            )
    if wanted == "classification" and is_segmented(data):
        raise RunError(
            f"{models[0].source}: {models[0].name} is no segmentation model, but {data} holds pictures with masks; "
            "give labelled pictures, or a segmentation checkpoint"
        )
    return wanted


def run_folders(output: Path, sources: Sequence[str | Path]) -> list[Path]:
    """The folder of each checkpoint's run: `output`, or for several a folder in it with a name of its own."""
    if len(sources) == 1:
        return [output]
    return [output / name for name in folder_names([source_name(source) for source in sources])]
