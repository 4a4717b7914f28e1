"""`capture(model)`: attention maps of everything a model runs inside the block."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from overfocus.attention import AttentionMap
from overfocus.capturing.coverage import Site
from overfocus.capturing.eager import eager
from overfocus.capturing.norms import TokenNorms
from overfocus.capturing.recorder import Recorder


class Captured:
    """What a capture has seen so far."""

    def __init__(
        self, model: nn.Module, reduce: Callable[[AttentionMap], Any] | None, *, gradients: bool, verify: bool, norms: bool
    ) -> None:
        self._maps: list[AttentionMap] = []
        self._reduced: list[Any] = []
        self._reduce = reduce
        self.recorder = Recorder(model, self._keep, gradients=gradients, verify=verify, norms=norms)

    def _keep(self, attention: AttentionMap) -> None:
        if self._reduce is None:
            self._maps.append(attention)
        else:
            self._reduced.append(self._reduce(attention))

    @property
    def maps(self) -> tuple[AttentionMap, ...]:
        """The maps in call order; empty where `reduce` was given."""
        return tuple(self._maps)

    @property
    def reduced(self) -> tuple[Any, ...]:
        """What `reduce` returned for each map, in call order."""
        return tuple(self._reduced)

    @property
    def coverage(self) -> tuple[Site, ...]:
        """One row per attention-like module: module, kind, shape, captured or the reason why not."""
        return self.recorder.sites.rows(self.recorder.stack.called)

    @property
    def norms(self) -> tuple[TokenNorms, ...]:
        """Norms of the tokens that leave each block, in call order; only where `norms=True` was given."""
        return tuple(self.recorder.norms)

    def clear(self) -> None:
        """Drop the maps and values so far, to go on with the next batch; the coverage stays."""
        self._maps.clear()
        self._reduced.clear()
        self.recorder.norms.clear()


@contextmanager
def capture(
    model: nn.Module,
    reduce: Callable[[AttentionMap], Any] | None = None,
    *,
    gradients: bool = False,
    verify: bool = False,
    norms: bool = False,
) -> Iterator[Captured]:
    """Capture the attention of every forward of `model` inside the block; its results stay bit-identical.

    Without `reduce` every map is kept (as the queries and keys it is computed from, where the model fuses its attention).
    With it, `reduce(attention)` is called while the layer runs, its value is kept and no map outlives its layer.
    With `gradients`, weights carry gradients to the queries and keys; otherwise they are detached.
    With `norms`, the norms of the tokens that leave each block are noted as well.
    With `verify`, each map's `deviation` is measured: weights × values against what the model produced.

    Works in the calling thread only; other models and other captures, also nested ones, are not mixed in.
    """
    original = _original(model)
    captured = Captured(original, reduce, gradients=gradients, verify=verify, norms=norms)
    recorder = captured.recorder
    recorder.stack.watch(recorder.enter, recorder.leave)
    try:
        with eager(), recorder.mode:
            try:
                yield captured
            finally:
                recorder.mode.active(True)  # a forward that raised may have left it aside
    finally:
        recorder.stack.unwatch()


def _original(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, DistributedDataParallel and their like."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
