"""The evaluating itself: every picture through every model that takes the same ones, shared by the processes."""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader

from overfocus.analysis.measuring import precision
from overfocus.analysis.progress import progress_bar
from overfocus.analysis.workers import one_opencv_thread, start_worker, unchanged
from overfocus.corruptions import prepare_corruptions
from overfocus.errors import ImageError
from overfocus.evaluation.pictures import Batch, Item, PictureDataset, Pictures
from overfocus.evaluation.plan import EvaluationSettings, ModelUnderTest
from overfocus.evaluation.recorder import PredictionRecorder
from overfocus.evaluation.task import Batching, Row, Task

if TYPE_CHECKING:
    from accelerate import Accelerator

BATCHES_PER_ROUND = 4
"""Batches that each process sends through the models before the results are brought together; pictures that come in pieces
take long enough to be brought together one by one."""


def evaluate_models(
    models: Sequence[ModelUnderTest],
    task: Task,
    items: Sequence[Item],
    settings: EvaluationSettings,
    accelerator: "Accelerator",
    *,
    progress: bool | None,
) -> None:
    """Evaluate models that take the same pictures; each is read and corrupted once for all.

    What was done before is not done again. Ctrl-C writes what there is.

    Raises:
        RunError: a model does not fit the task, or a file cannot be written.
        ImageError: the data set is wrong, not only one of its pictures.
    """
    from accelerate.utils import gather_object

    batching = task.batching()
    batches = BATCHES_PER_ROUND if len(batching.pieces) == 1 else 1
    block = batching.items * batches * accelerator.num_processes
    # whole rounds, so that a continued evaluation has the same batches; what is done in the first is left out when recorded
    start = min(model.done for model in models) // block * block
    dataset = PictureDataset(items, task.reader(models[0].loaded))
    prepare_corruptions([name for name, severity in task.variants if severity])
    predictors = [task.predictor(model.loaded) for model in models]
    recorders = [PredictionRecorder(model, task, items) for model in models if accelerator.is_main_process]
    began = time.perf_counter()
    shown = progress if accelerator.is_main_process else False
    with torch.no_grad(), precision(accelerator.device, amp=settings.amp), progress_bar(len(items), start, show=shown) as show:
        try:
            for pictures_of_round in _rounds(dataset, len(items), start, batching, block, settings.workers, accelerator):
                results: list[list[Row]] = [[] for _ in models]
                for pictures in pictures_of_round:
                    _require_sound(pictures)
                    for predictor, rows in zip(predictors, results, strict=True):
                        rows += predictor(pictures)
                for number, rows in enumerate(results):
                    gathered = gather_object(rows) if accelerator.num_processes > 1 else rows
                    if accelerator.is_main_process:
                        recorders[number].add(_whole(gathered), time.perf_counter() - began)
                if recorders:
                    show(recorders[0].reached)
            for recorder in recorders:
                recorder.write(time.perf_counter() - began, status="complete")
        except KeyboardInterrupt:
            for recorder in recorders:
                recorder.write(time.perf_counter() - began)
            raise


def _rounds(
    dataset: PictureDataset,
    count: int,
    start: int,
    batching: Batching,
    block: int,
    workers: int,
    accelerator: "Accelerator",
) -> Iterator[Iterator[list[Pictures]]]:
    """Batches of this process, a few at a time; every process gets equally many rounds, the last ones perhaps empty.

    A round of all processes is a block of consecutive items, so that what is done is known by one number.
    """
    batches: list[Batch] = []
    sizes = []
    for first in range(start, count, block):
        mine = range(first + accelerator.process_index, min(first + block, count), accelerator.num_processes)
        together = [tuple(mine[place : place + batching.items]) for place in range(0, len(mine), batching.items)]
        parts = [(numbers, piece) for numbers in together for piece in batching.pieces]
        batches += parts
        sizes.append(len(parts))
    workers = min(workers, len(batches))
    with one_opencv_thread():
        loader = iter(
            DataLoader(
                dataset,
                sampler=batches,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=batching.prefetched if workers else None,
                worker_init_fn=start_worker,
                collate_fn=unchanged,
            )
        )
    for size in sizes:
        yield (next(loader) for _ in range(size))


def _require_sound(pictures: Sequence[Pictures]) -> None:
    """Raise what is wrong with the data set."""
    for picture in pictures:
        if picture.fatal:
            raise ImageError(str(picture.reason))


def _whole(rows: Sequence[Row]) -> list[Row]:
    """Rows in the order of their items, the variants of one put together where they came in pieces."""
    whole: list[Row] = []
    for number, pieces in groupby(sorted(rows, key=lambda row: row[0]), key=lambda row: row[0]):
        parts = list(pieces)
        columns = [part for _, part, _ in parts if part is not None]
        if len(parts) == 1 or len(columns) < len(parts):
            whole.append(next((part for part in parts if part[1] is None), parts[0]))
        else:
            whole.append((number, {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}, None))
    return whole
