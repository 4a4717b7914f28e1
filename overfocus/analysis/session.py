"""The measuring itself: from where runs stopped to their end, each picture made once for all models."""

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch

from overfocus.analysis.groups import Group, GroupDataset, GroupLoader
from overfocus.analysis.pixels import InputSize
from overfocus.analysis.progress import progress_bar
from overfocus.analysis.settings import Settings
from overfocus.analysis.turns import ModelRun, Turn, Turns
from overfocus.analysis.variants import list_variants, pack_variants
from overfocus.errors import ImageError, RunError
from overfocus.images.sources import ImageSource

if TYPE_CHECKING:
    from overfocus.preprocessing import Preprocess

PACKS_PER_TURN = 4
"""Where several models take turns, each measures so many packs at a time: a turn costs some milliseconds. In the first turns
it is one, so that the models do not wait long for the first pictures."""


def continue_runs(
    runs: Sequence[ModelRun],
    sources: Sequence[ImageSource],
    settings: Settings,
    preprocess: "Preprocess",
    *,
    progress: bool | None,
) -> None:
    """Measure the images of runs that are not done yet, and mark them complete; all models see the same corrupted pictures.

    `preprocess` says how images are resized and cropped before they are corrupted. Ctrl-C writes what is measured before it
    ends the runs; they can be continued, each from where it stopped.

    Raises:
        CaptureError, ImageError, RunError: as `analyze` says.
    """
    variants = list_variants(settings.corruptions, settings.severities)
    packing = pack_variants(len(variants), settings.batch_size)
    most = packing.images * (PACKS_PER_TURN if len(runs) > 1 else 1)
    sizes = dict.fromkeys(InputSize.of(run.loaded.preprocess) for run in runs)
    sizes.pop(InputSize.of(preprocess), None)
    dataset = GroupDataset(sources, variants, preprocess, settings.seed, settings.max_pixels, sizes)
    turns = Turns([Turn(run, settings) for run in runs])
    start = min(turn.recorder.done for turn in turns.turns)
    with (
        GroupLoader(dataset, start, workers=settings.workers, together=most) as groups,
        turns,
        progress_bar(len(sources), start, show=progress) as show,
    ):
        try:
            for chunk in _chunks(groups, packing.images, most, turns):
                unreadable = [group for group in chunk if not group.pictures]
                if settings.strict and unreadable:
                    raise ImageError(str(unreadable[0].reason))
                for turn in turns:
                    for first in range(0, len(chunk), packing.images):
                        turn.measure(chunk[first : first + packing.images])
                show(chunk[-1].image + 1)
            for turn in turns.turns:
                turn.recorder.write(status="complete")
        except KeyboardInterrupt:
            for turn in turns.turns:
                turn.recorder.write()
            raise
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"{settings.device} is out of memory ({reason}); try a smaller batch_size than {settings.batch_size}"
            ) from error


def _chunks(groups: GroupLoader, size: int, most: int, turns: Turns) -> Iterator[list[Group]]:
    """The groups in lists of `size`, later of twice as many up to `most`; the time to wait for them is shared by the runs."""
    while True:
        began = time.perf_counter()
        chunk = list(islice(groups, size))
        turns.waited(time.perf_counter() - began)
        if not chunk:
            return
        yield chunk
        size = min(2 * size, most)
