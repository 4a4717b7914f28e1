"""The measuring itself: from where a run stopped to its end."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from overfocus.analysis.folder import RunFolder
from overfocus.analysis.groups import Group, GroupDataset, GroupLoader
from overfocus.analysis.measuring import METRIC_NAMES, Measurer
from overfocus.analysis.packs import PackMeasurer
from overfocus.analysis.parts import Tables
from overfocus.analysis.progress import progress_bar
from overfocus.analysis.recorder import PartRecorder
from overfocus.analysis.settings import Settings
from overfocus.analysis.stopwatch import Stopwatch
from overfocus.analysis.variants import list_variants, pack_variants
from overfocus.errors import ImageError, RunError
from overfocus.images.sources import ImageSource

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel


def continue_run(
    folder: RunFolder,
    info: dict[str, Any],
    loaded: "LoadedModel",
    sources: Sequence[ImageSource],
    settings: Settings,
    class_ids: dict[str, int],
    *,
    progress: bool | None,
) -> None:
    """Measure the images of a run that are not done yet, and mark it complete.

    Ctrl-C writes what is measured before it ends the run; the run can be continued.

    Raises:
        CaptureError, ImageError, RunError: as `analyze` says.
    """
    variants = list_variants(settings.corruptions, settings.severities)
    packing = pack_variants(len(variants), settings.batch_size)
    stopwatch = Stopwatch(info["timing"])
    tables = Tables(info["images"], variants, info["layers"], METRIC_NAMES, settings.per_head, info["class_names"], class_ids)
    recorder = PartRecorder(folder, info, tables, stopwatch)
    dataset = GroupDataset(sources, variants, loaded.preprocess, settings.seed, settings.max_pixels)
    measurer = Measurer(
        loaded.model,
        [layer["layer"] for layer in info["layers"]],
        loaded.num_classes,
        stopwatch,
        device=torch.device(settings.device),
        top_fraction=settings.top_fraction,
        per_head=settings.per_head,
        amp=settings.amp,
    )
    packs = PackMeasurer(measurer, loaded.preprocess, packing, info["displayed"])
    with (
        GroupLoader(dataset, recorder.done, workers=settings.workers, together=packing.images) as groups,
        measurer,
        progress_bar(len(sources), recorder.done, show=progress) as show,
    ):
        try:
            while True:
                with stopwatch.on("waiting"):
                    pack = list(islice(groups, packing.images))
                if not pack:
                    break
                readable = [group for group in pack if group.pictures is not None]
                unreadable = [group for group in pack if group.pictures is None]
                if settings.strict and unreadable:
                    raise ImageError(str(unreadable[0].reason))
                recorder.add(packs.measure(readable) if readable else [], [_skip(group, sources) for group in unreadable])
                show(recorder.done)
            recorder.write(status="complete")
        except KeyboardInterrupt:
            recorder.write()
            raise
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"{settings.device} is out of memory ({reason}); try a smaller batch_size than {settings.batch_size}"
            ) from error


def _skip(group: Group, sources: Sequence[ImageSource]) -> dict[str, Any]:
    return {"image": group.image, "name": sources[group.image].name, "reason": group.reason}
