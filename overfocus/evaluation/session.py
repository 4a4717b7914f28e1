"""The evaluating itself: every picture through every model of one input geometry, shared by the processes."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from overfocus.analysis.measuring import output_tensor, precision
from overfocus.analysis.progress import progress_bar
from overfocus.analysis.variants import CLEAN, Variant
from overfocus.analysis.workers import one_opencv_thread, start_worker, unchanged
from overfocus.corruptions import prepare_corruptions
from overfocus.evaluation.layouts import EvaluationData
from overfocus.evaluation.pictures import Item, PictureDataset, Pictures
from overfocus.evaluation.plan import EvaluationSettings, ModelUnderTest
from overfocus.evaluation.recorder import PredictionRecorder
from overfocus.evaluation.scoring import Array, require_classifier, score
from overfocus.evaluation.sequences import FilmFolders, flip_rate

if TYPE_CHECKING:
    from accelerate import Accelerator

FRAMES = 30
"""Frames that a film has about."""
BATCHES_PER_ROUND = 4
"""Batches that each process sends through the models before the results are brought together."""


def evaluate_models(
    models: Sequence[ModelUnderTest],
    data: EvaluationData,
    items: Sequence[Item],
    variants: Sequence[Variant],
    settings: EvaluationSettings,
    accelerator: "Accelerator",
    *,
    progress: bool | None,
) -> None:
    """Evaluate models whose inputs are resized alike; each picture is read and corrupted once for all.

    `variants` are made of each item; a single ("clean", 0) where the portions say what the pictures are. What was done before
    is not done again. Ctrl-C writes what there is.

    Raises:
        RunError: a model is no classifier, or a file cannot be written.
    """
    from accelerate.utils import gather_object

    together = max(1, settings.batch_size // (FRAMES if data.layout == "ImageNet-P" else len(variants)))
    block = together * BATCHES_PER_ROUND * accelerator.num_processes
    # whole rounds, so that a continued evaluation has the same batches; what is done in the first is left out when recorded
    start = min(model.done for model in models) // block * block
    dataset = PictureDataset(data.portions, items, variants, models[0].loaded.preprocess, settings.seed)
    prepare_corruptions([name for name, severity in variants if severity])
    recorders = [PredictionRecorder(model, data, items, variants) for model in models if accelerator.is_main_process]
    began = time.perf_counter()
    shown = progress if accelerator.is_main_process else False
    with torch.no_grad(), precision(accelerator.device, amp=settings.amp), progress_bar(len(items), start, show=shown) as show:
        try:
            for chunk in _rounds(dataset, len(items), start, together, block, settings.workers, accelerator):
                results = [[_predict(model, pictures, variants, data, settings) for pictures in chunk] for model in models]
                for number, parts in enumerate(results):
                    rows = [row for part in (gather_object(parts) if accelerator.num_processes > 1 else parts) for row in part]
                    if accelerator.is_main_process:
                        recorders[number].add(sorted(rows, key=lambda row: row[0]), time.perf_counter() - began)
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
    together: int,
    block: int,
    workers: int,
    accelerator: "Accelerator",
) -> Iterator[list[list[Pictures]]]:
    """Batches of this process, a few at a time; every process gets equally many rounds, the last ones perhaps empty.

    A round of all processes is a block of consecutive items, so that what is done is known by one number.
    """
    batches: list[list[int]] = []
    sizes = []
    for first in range(start, count, block):
        mine = range(first + accelerator.process_index, min(first + block, count), accelerator.num_processes)
        parts = [list(mine[place : place + together]) for place in range(0, len(mine), together)]
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
                prefetch_factor=4 if workers else None,
                worker_init_fn=start_worker,
                collate_fn=unchanged,
            )
        )
    for size in sizes:
        yield [next(loader) for _ in range(size)]


def _predict(
    model: ModelUnderTest,
    pictures: Sequence[Pictures],
    variants: Sequence[Variant],
    data: EvaluationData,
    settings: EvaluationSettings,
) -> list[tuple[int, dict[str, Array] | None, str | None]]:
    """(item, columns by variant, None) of each picture, or (item, None, reason) of those that could not be read."""
    readable = [picture for picture in pictures if picture.pixels is not None]
    rows: list[tuple[int, dict[str, Array] | None, str | None]] = [
        (picture.item.number, None, picture.reason) for picture in pictures if picture.pixels is None
    ]
    if not readable:
        return rows
    inputs = [pixels for picture in readable if picture.pixels is not None for pixels in picture.pixels]
    starts = range(0, len(inputs), settings.batch_size)
    logits = torch.cat([_logits(model, inputs[start : start + settings.batch_size]) for start in starts])
    require_classifier(logits, model.loaded.num_classes, model.loaded.source)
    sizes = torch.tensor([len(picture.pixels) for picture in readable if picture.pixels is not None], device=logits.device)
    targets = torch.tensor([_target(model, picture.item, data) for picture in readable], device=logits.device)
    starts_of = sizes.cumsum(0) - sizes
    reference = starts_of.repeat_interleave(sizes) if CLEAN in variants and len(variants) > 1 else None
    columns = score(logits, targets.repeat_interleave(sizes), reference, model.allowed)
    for picture, start, size in zip(readable, starts_of.tolist(), sizes.tolist(), strict=True):
        cells = {name: values[start : start + size] for name, values in columns.items()}
        portion = data.portions[picture.item.portion]
        if isinstance(portion.images, FilmFolders):
            cells = _as_film(cells, noisy="noise" in portion.corruption)
        rows.append((picture.item.number, cells, None))
    return rows


def _logits(model: ModelUnderTest, inputs: Sequence[Array]) -> Tensor:
    device = next(model.loaded.model.parameters()).device
    return output_tensor(model.loaded.model(model.loaded.preprocess.normalize_batch(inputs, device)))


def _as_film(cells: dict[str, Array], *, noisy: bool) -> dict[str, Array]:
    """The row of a film: its first frame, and as agreement the share of the others that do not flip."""
    first = {name: values[:1] for name, values in cells.items()}
    return first | {"agreement": np.array([1 - flip_rate(cells["predicted"].astype(int), noisy=noisy)])}


def _target(model: ModelUnderTest, item: Item, data: EvaluationData) -> int:
    images = data.portions[item.portion].images
    return model.class_ids.get(images.class_names[int(images.labels[item.index])], -1)
