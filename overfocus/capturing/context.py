"""`capture(model)`: attention maps of everything a model runs inside the block."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from overfocus.attention import AttentionMap, TokenNorms
from overfocus.capturing.coverage import Site
from overfocus.capturing.tracer import Tracer
from overfocus.errors import CaptureError
from overfocus.settings import typed


class Captured:
    """What a capture has seen so far."""

    def __init__(
        self,
        model: nn.Module,
        reduce: Callable[[AttentionMap], Any] | None,
        *,
        gradients: bool,
        verify: bool,
        norms: bool,
        exact: bool,
    ) -> None:
        self._maps: list[AttentionMap] = []
        self._reduced: list[Any] = []
        self._reduce = reduce
        self._errors: list[CaptureError] = []
        self.tracer = Tracer(model, self._keep, gradients=gradients, verify=verify, norms=norms, exact=exact)

    def _keep(self, attention: AttentionMap) -> None:
        if self._reduce is None:
            self._maps.append(attention)
            return
        value = None
        try:
            value = self._reduce(attention)
        except CaptureError as error:  # NaN, say: the model's forward goes on
            self._errors.append(error)
        self._reduced.append(value)

    @property
    def maps(self) -> tuple[AttentionMap, ...]:
        """The maps in call order; empty where `reduce` was given."""
        return tuple(self._maps)

    @property
    def reduced(self) -> tuple[Any, ...]:
        """What `reduce` returned for each map, in call order; None where it raised `CaptureError`."""
        return tuple(self._reduced)

    @property
    def coverage(self) -> tuple[Site, ...]:
        """One row per attention-like module: module, kind, shape, captured or the reason why not."""
        return self.tracer.coverage()

    @property
    def norms(self) -> tuple[TokenNorms, ...]:
        """Norms of the tokens that leave each block, in call order; only where `norms=True` was given."""
        return tuple(self.tracer.norms)

    def check(self) -> None:
        """Raise the first `CaptureError` of `reduce` since the block began or the last check; the block's end does so too."""
        if self._errors:
            error = self._errors[0]
            self._errors.clear()
            raise error

    def clear(self) -> None:
        """Drop the maps and values so far, to go on with the next batch; the coverage stays."""
        self._maps.clear()
        self._reduced.clear()
        self.tracer.norms.clear()
        self.tracer.without_gradient = set()


@typed(CaptureError)
@contextmanager
def capture(
    model: nn.Module,
    reduce: Callable[[AttentionMap], Any] | None = None,
    *,
    gradients: bool = False,
    verify: bool = False,
    norms: bool = False,
    exact: bool = True,
) -> Iterator[Captured]:
    """Capture the attention of every forward of `model` inside the block; its results stay bit-identical if `exact`.

    Without `reduce` every map is kept (as the queries and keys it is computed from, where the model fuses its attention).
    With it, `reduce(attention)` is called while the layer runs, its value is kept and no map outlives its layer.
    With `gradients`, weights carry gradients to the queries and keys; otherwise they are detached.
    With `norms`, the norms of the tokens that leave each block are noted as well.
    With `verify`, each map's `deviation` is measured: weights × values against what the model produced.
    With `exact=False`, fused attention is computed once: the product of the captured weights with the values takes the place of
    the fused kernel's output, from which it differs by rounding (1e-6). On a processor in float32 this saves the kernel where
    `reduce` reads the weights; with `gradients` the maps are part of the graph of what the model returns.

    Works in the calling thread only; other models and other captures, also nested ones, are not mixed in. Nothing that goes
    wrong while watching reaches the model's forward: such a site is not captured, and the coverage table says why.

    Raises:
        CaptureError: when the block is left, if `reduce` raised one (NaN, or rows that do not sum to 1). Other errors of
            `reduce` are raised at once, inside the forward.
    """
    captured = Captured(_original(model), reduce, gradients=gradients, verify=verify, norms=norms, exact=exact)
    tracer = captured.tracer
    tracer.stack.watch(tracer.enter, tracer.leave)
    try:
        with _eager(), tracer.mode:
            try:
                yield captured
            finally:
                tracer.mode.active(True)  # a forward that raised may have left it aside
    finally:
        tracer.stack.unwatch()
        tracer.finish()
    captured.check()


def _original(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, DistributedDataParallel and their like."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


_lock = threading.Lock()
_open = 0
_settings = ExitStack()


@contextmanager
def _eager() -> Iterator[None]:
    """Have what `torch.compile` made run its original code inside the block.

    torch's stance and the filters of warnings belong to the whole process. Captures in several threads may overlap, so the
    first to begin changes them and the last to end puts them back.
    """
    global _open
    with _lock:
        _open += 1
        if _open == 1:
            _settings.enter_context(warnings.catch_warnings())
            # torch warns that global hooks fire for compiled wrappers too; ours look at the modules inside only
            warnings.filterwarnings("ignore", message="Using `torch.compile")
            _settings.enter_context(torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if not _open:
                _settings.close()
