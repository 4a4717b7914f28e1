"""Several models that take turns with the same pictures, each writing a run of its own."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from overfocus.analysis.folder import RunFolder
from overfocus.analysis.groups import Group
from overfocus.analysis.measuring import METRIC_NAMES, Measurer
from overfocus.analysis.packs import PackMeasurer
from overfocus.analysis.parts import Tables
from overfocus.analysis.recorder import PartRecorder
from overfocus.analysis.settings import Settings
from overfocus.analysis.stopwatch import Stopwatch
from overfocus.analysis.variants import list_variants, pack_variants

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel


@dataclass(frozen=True, eq=False)
class ModelRun:
    """The run of one model: where it is written, what it is, how far it got."""

    folder: RunFolder
    info: dict[str, Any]
    """The content of run.json."""
    loaded: "LoadedModel"
    class_ids: dict[str, int]
    """Class of each label that means one."""


class Turn:
    """What one model does with the images, and where it is written."""

    def __init__(self, run: ModelRun, settings: Settings) -> None:
        info, loaded = run.info, run.loaded
        variants = list_variants(settings.corruptions, settings.severities)
        self.stopwatch = Stopwatch(info["timing"])
        tables = Tables(
            info["images"], variants, info["layers"], METRIC_NAMES, settings.per_head, info["class_names"], run.class_ids
        )
        self.recorder = PartRecorder(run.folder, info, tables, self.stopwatch)
        self.measurer = Measurer(
            loaded.model,
            [layer["layer"] for layer in info["layers"]],
            loaded.num_classes,
            self.stopwatch,
            device=torch.device(settings.device),
            top_fraction=settings.top_fraction,
            per_head=settings.per_head,
            amp=settings.amp,
        )
        packing = pack_variants(len(variants), settings.batch_size)
        self._packs = PackMeasurer(self.measurer, loaded.preprocess, packing, info["displayed"])

    def measure(self, pack: Sequence[Group]) -> None:
        """Measure the images of one pack, unless that was done before an interruption."""
        if pack[0].image < self.recorder.done:
            return
        readable = [group for group in pack if group.pictures]
        skipped = [self._skip(group) for group in pack if not group.pictures]
        self.recorder.add(self._packs.measure(readable) if readable else [], skipped)

    def _skip(self, group: Group) -> dict[str, Any]:
        return {"image": group.image, "name": self.recorder.info["images"][group.image]["name"], "reason": group.reason}


class Turns:
    """Lets one model after the other capture, never two at once: torch runs some attention otherwise under a foreign mode."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.turns = list(turns)
        self._current: Turn | None = None

    def __iter__(self) -> Iterator[Turn]:
        for turn in self.turns:
            self._leave_to(turn)
            began = time.perf_counter()
            yield turn
            self.leave_out(time.perf_counter() - began, [other for other in self.turns if other is not turn])

    def waited(self, seconds: float) -> None:
        """Share the time that all have waited for pictures."""
        share = seconds / len(self.turns)
        for turn in self.turns:
            turn.stopwatch.add("waiting", share)
        self.leave_out(seconds - share, self.turns)

    @staticmethod
    def leave_out(seconds: float, turns: Sequence[Turn]) -> None:
        """Take time in which they were not at work off the total of some."""
        for turn in turns:
            turn.stopwatch.leave_out(seconds)

    def _leave_to(self, turn: Turn | None) -> None:
        if turn is self._current:
            return
        if self._current is not None:
            self._current.measurer.__exit__()
        self._current = None
        if turn is not None:
            turn.measurer.__enter__()
            self._current = turn

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, *error: object) -> None:
        self._leave_to(None)
