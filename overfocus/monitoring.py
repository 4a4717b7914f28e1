"""`monitor`: the attention of a model on a few fixed images, measured while it trains; the training stays bit-identical.

with overfocus.monitor(model, images, every=500) as watch:
    for batch in batches:
        loss = step(batch)
        watch(loss)
print(watch.rows[-1])
"""

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from overfocus.attention import TOKEN_KINDS, AttentionMap
from overfocus.capturing import capture
from overfocus.corruptions import check_severity, corrupt, resolve_corruptions
from overfocus.curves import ATTENTION, GROUPS, QUANTITIES, Log, read_log
from overfocus.errors import CaptureError, ImageError, RunError, explain
from overfocus.images.sources import read_image
from overfocus.metrics import measure
from overfocus.preprocessing import Preprocess
from overfocus.settings import typed
from overfocus.text import printable

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel

_LOSS = "the loss"
_PRIMARY = "js_divergence"
_PROBED_LOGITS = 2**24
"""Products of queries and keys in one block."""


class Monitor:
    """Watches one model; `monitor` makes one. Call it once a step, after the optimiser's step, with the loss if it is at hand.

    Every process of a distributed training must make the same calls: under FSDP a forward needs every process, so one is run
    only where all processes run it, in `begin` and every `every` steps, never because one of them saw NaN. Under
    DistributedDataParallel the module inside is run, so nothing is communicated.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: Float[Tensor, "images channels height width"],
        corrupted: Float[Tensor, "images channels height width"] | None,
        *,
        every: int,
        log: Callable[[dict[str, float]], object] | None,
        log_images: Callable[[str, UInt8[np.ndarray, "height width 3"], int], object] | None,
        quiet: bool = False,
    ) -> None:
        self.model = model
        self.every = every
        self.rows: list[dict[str, float]] = []
        """What was measured: step and the columns `overfocus.curves.ATTENTION`; the newest last."""
        self.first_nan: tuple[int, str] | None = None
        """Step and attention module whose output was the first with NaN or infinity, as far as was seen."""
        self._inputs = clean if corrupted is None else torch.cat([clean, corrupted])
        self._images = len(clean)
        self._log = log
        self._log_images = log_images
        self._quiet = quiet
        self._steps: int | None = None
        self._measuring = 0.0
        self._elapsed = 0.0
        self._began: float | None = None
        """When watching began, on the performance counter; None before and after."""
        self._watched: list[Any] = []
        self._sums: list[tuple[str, Tensor]] = []
        """Sums of the outputs of the watched modules in the forwards since the last call."""
        self._names: list[str] = []
        self._broken: Tensor | None = None
        """(number among `_names`, step) of the first output with NaN; number −1 where there was none."""
        self._told = False
        """Whether it was said where NaN came from."""
        self._paused = False
        self._received: list[tuple[str, Tensor]] = []

    def __enter__(self) -> "Monitor":
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self) -> None:
        """Find the attention modules by one forward, and note from now on whether their outputs hold NaN.

        The first call does so too. A NaN that came earlier can only be looked for afterwards, when all weights may hold it.

        Raises:
            CaptureError: the model has no attention over tokens.
        """
        if self._began is not None:
            return
        self._began = time.perf_counter()
        layers = self._observe()
        self._note_broken(layers)
        inner = self._inner
        if inner is self.model or isinstance(self.model, nn.parallel.DistributedDataParallel):  # not into a compiled graph
            modules = dict(inner.named_modules())
            for name in dict.fromkeys(name for name, _ in layers):
                if name in modules:
                    self._watched.append(modules[name].register_forward_hook(_Hook(self, name)))
        self._measuring += time.perf_counter() - self._began

    @typed(RunError)
    def __call__(self, loss: Tensor | float | None = None, *, step: int | None = None) -> dict[str, float] | None:
        """Count a step, and measure if it is due; returns the row that was measured, or None.

        Args:
            loss: of this step; where it is NaN or infinite, the layer whose attention was so first is named. Looking at it
                waits for the GPU, so there it is looked at every `every` steps only.
            step: number of the step, where it is not the number of calls. The same number again, as under accumulation of
                gradients, is not measured again.
        """
        before = self._steps if self._steps is not None else max(0, (step or 1) - 1)
        self._steps = before + 1 if step is None else step
        if self._steps < before:  # begun again
            before = self._steps - 1
        self.begin()
        began = time.perf_counter()
        due = self._steps // self.every > before // self.every
        if loss is not None:
            value = loss.detach() if isinstance(loss, Tensor) else torch.tensor(float(loss))
            self._sums.append((_LOSS, value.sum(dtype=torch.float32)))
        self._take_in_sums()
        if due or (self._broken is not None and self._broken.device.type == "cpu"):
            self.find_nan()
        self._measuring += time.perf_counter() - began
        return self.measure() if due else None

    def measure(self) -> dict[str, float]:
        """Measure now: one row, logged. All processes of a training must do it together.

        Raises:
            CaptureError: the model has no attention over tokens.
        """
        began = time.perf_counter()
        layers = self._observe()
        self._note_broken(layers)
        row = {"step": float(self._steps or 0)} | _summarise(layers, self._images)
        self.rows.append(row)
        if self._log is not None:
            self._log(row)
        if self._log_images is not None and self.draws:
            self._log_images("attention received", self.heat_maps(), self._steps or 0)
        self._measuring += time.perf_counter() - began
        return row

    def find_nan(self) -> str | None:
        """The attention module whose output was the first with NaN or infinity in the forwards of the training; None: none was.

        Where the modules are not watched, as in a compiled model, a forward now answers, unless there are several processes.
        """
        self._take_in_sums()
        if not self._told and self._broken is not None and int(self._broken[0]) >= 0:
            self._name_nan(self._names[int(self._broken[0])], int(self._broken[1]))
        if self.first_nan is None and not self._watched and _processes() == 1:
            self._note_broken(self._observe())
        return None if self.first_nan is None else self.first_nan[1]

    def _note_broken(self, layers: Sequence[tuple[str, object]]) -> None:
        """Name the first layer whose attention could not be measured since it held NaN, unless something came before it."""
        broken = [name for name, values in layers if values is None]
        if broken and self.first_nan is None and not (self._told and self._watched):
            self._name_nan(broken[0], self._steps or 0)

    def _name_nan(self, name: str, step: int) -> None:
        self._told = True
        if name == _LOSS:
            self._say(f"the loss became NaN or infinite at step {step}, while every attention layer gave finite numbers")
            return
        self.first_nan = step, name
        self._say(f"NaN or infinity at step {step}: {name} is the first attention layer that gave it")

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(f"overfocus: {text}", file=sys.stderr, flush=True)

    def heat_maps(self) -> UInt8[np.ndarray, "height width 3"]:
        """Received attention of the last measurement as an image: a row for each clean image, a column for each third of layers.

        Colours are multiples of uniform attention from 1/4 to 16 on a logarithmic scale; white lines separate the maps.
        """
        from matplotlib import colormaps

        columns, side = [], 96
        for _, received in self._received:
            multiples = received * received.shape[-1] * received.shape[-2]
            scaled = ((multiples.clamp_min(1e-6).log2() + 2) / 6).clamp(0, 1)
            columns.append(nn.functional.interpolate(scaled[:, None], (side, side), mode="nearest")[:, 0].flatten(0, 1))
        painted: UInt8[np.ndarray, "height width 3"] = colormaps["magma"](torch.cat(columns, 1).numpy(), bytes=True)[..., :3]
        for edge in range(side, max(painted.shape), side):
            painted[edge - 1 : edge + 1] = painted[:, edge - 1 : edge + 1] = 255
        return painted

    @property
    def draws(self) -> bool:
        """Whether there is received attention on a grid to draw."""
        return bool(self._received)

    @property
    def overhead(self) -> float:
        """Share of the time since the beginning that was spent measuring."""
        running = 0.0 if self._began is None else time.perf_counter() - self._began
        return self._measuring / max(self._elapsed + running, 1e-9)

    def close(self) -> None:
        """Stop watching, and say what share of the time it took; what was measured stays."""
        for handle in self._watched:
            handle.remove()
        self._watched.clear()
        self._sums.clear()
        if self._began is None:
            return
        self._elapsed += time.perf_counter() - self._began
        self._began = None
        if _process() == 0:
            self._say(f"attention was measured {len(self.rows)} times, taking {self.overhead:.2%} of {self._elapsed:.0f} s")

    def lightning_callback(self) -> Any:
        """A callback for Lightning's `Trainer`: measures after every step, logs rows and heat maps to the trainer's loggers."""
        try:
            from lightning.pytorch import Callback
        except ModuleNotFoundError:
            from pytorch_lightning import Callback
        watch = self

        class OverfocusCallback(Callback):  # type: ignore[misc]
            """Watches attention."""

            def on_train_start(self, _trainer: Any, _module: Any) -> None:
                watch.begin()

            def on_train_batch_end(self, trainer: Any, _module: Any, outputs: Any, _batch: Any, _number: int) -> None:
                loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
                step = int(trainer.global_step)
                row = watch(loss if isinstance(loss, Tensor) else None, step=step)
                if row is not None:
                    for logger in trainer.loggers:
                        logger.log_metrics(_named(row), step=step)
                        _show(logger, watch, step)

            def on_train_end(self, _trainer: Any, _module: Any) -> None:
                watch.close()

        return OverfocusCallback()

    def transformers_callback(self, trainer: Any = None) -> Any:
        """A callback for the `Trainer` of transformers: measures after every step; rows enter `trainer.state.log_history`.

        Given the trainer, rows also go where it reports to (TensorBoard, W&B, …). Its setting `logging_nan_inf_filter`, on by
        default, hides a loss that is NaN; the layer is named all the same, when the next measurement is due.
        """
        from transformers import TrainerCallback

        watch = self

        class OverfocusCallback(TrainerCallback):  # type: ignore[misc]
            """Watches attention."""

            def on_train_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
                watch.begin()

            def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
                row = watch(step=int(state.global_step))
                if row is None:
                    return
                if trainer is None:
                    state.log_history.append(_named(row) | {"step": int(state.global_step)})
                else:
                    due = control.should_log  # the trainer's own row of this step, which logging ours would take for done
                    trainer.log(_named(row))
                    control.should_log = due

            def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
                values = [value for value in ((logs or {}).get(name) for name in ("loss", "grad_norm")) if value is not None]
                if not all(math.isfinite(float(value)) for value in values):
                    watch.find_nan()

            def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
                watch.close()

        return OverfocusCallback()

    @property
    def _inner(self) -> nn.Module:
        """The model inside DistributedDataParallel and torch.compile."""
        inner = self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model
        inside: nn.Module = getattr(inner, "_orig_mod", inner)
        return inside

    def _observe(self) -> list[tuple[str, dict[str, Tensor] | None]]:
        """The metrics of each attention layer by name, in call order; None for one that held NaN."""
        images = self._images
        order = torch.arange(images)
        reference = order.roll(-1)  # of a clean image another clean one: the control
        if len(self._inputs) > images:
            reference = torch.cat([reference, order])
        found: list[tuple[str, dict[str, Tensor] | None]] = []
        grids: list[tuple[str, Tensor] | None] = []

        def reduce(attention: AttentionMap) -> None:
            if attention.kind not in TOKEN_KINDS:
                return
            try:
                values = measure(attention, reference=reference, profiles=True)
            except CaptureError:
                found.append((attention.module, None))
                grids.append(None)
                return
            received = values.pop("received", None)
            grid = attention.image_grid or attention.key_grid or attention.grid
            drawn = received is not None and grid is not None and received.shape[-1] == grid[0] * grid[1]
            grids.append(
                (attention.module, received[:images].reshape(images, *grid).float().cpu())  # type: ignore[index, misc]
                if drawn
                else None
            )
            values["largest_logit"] = largest_logit(attention)
            found.append((attention.module, {name: value.detach().float().cpu() for name, value in values.items()}))

        inner = self._inner
        place = next(inner.parameters())
        self._inputs = self._inputs.to(place.device, place.dtype if place.dtype.is_floating_point else torch.float32)
        self._paused = True
        try:
            with unchanged(inner), capture(inner, reduce=reduce):
                inner(self._inputs)
        finally:
            self._paused = False
        if not found:
            raise CaptureError(
                "the model has no attention over tokens that could be watched; `overfocus inspect` lists its sites"
            )
        last = {group: grids[number] for number, group in _grouped(len(grids)) if grids[number] is not None}
        self._received = [entry for entry in last.values() if entry is not None]
        return found

    def _take_in_sums(self) -> None:
        """Note which module was first to give NaN in the forwards of this step, unless one did before; on the model's device."""
        if not self._sums:
            return
        wrong = ~torch.isfinite(torch.stack([total.to(self._sums[0][1].device) for _, total in self._sums]))
        places = torch.tensor([self._number(name) for name, _ in self._sums], device=wrong.device)
        self._sums.clear()
        here = torch.where(wrong.any(), places[wrong.int().argmax()], -1)
        found = torch.stack([here, torch.full_like(here, self._steps or 0)])
        self._broken = found if self._broken is None else torch.where(self._broken[0] < 0, found, self._broken)

    def _number(self, name: str) -> int:
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name)

    def _note_output(self, name: str, module: nn.Module, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple | list) and output else output
        trains = (module.training or torch.is_grad_enabled()) and not self._paused
        if trains and isinstance(tensor, Tensor) and tensor.is_floating_point():
            with torch.no_grad():
                self._sums.append((name, tensor.detach().sum(dtype=torch.float32)))


class _Hook:
    """Reports a module's output to a monitor; copies of the model (averaged weights, a pickle) report nothing."""

    def __init__(self, watch: Monitor | None, name: str) -> None:
        self._watch = watch
        self._name = name

    def __call__(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        if self._watch is not None:
            self._watch._note_output(self._name, module, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None, self._name)


@typed(RunError)
def monitor(
    model: "nn.Module | LoadedModel",
    images: "Tensor | Sequence[str | Path | Image.Image]",
    *,
    every: int = 500,
    preprocess: Preprocess | None = None,
    corruption: str | None = "gaussian_noise",
    severity: int = 3,
    seed: int = 0,
    log: Callable[[dict[str, float]], object] | str | Path | None = None,
    log_images: Callable[[str, UInt8[np.ndarray, "height width 3"], int], object] | None = None,
    quiet: bool = False,
) -> Monitor:
    """Watch the attention of a model in training on a few fixed images, clean and under one corruption.

    The training is unchanged to the bit: random numbers, train and eval mode of every module, statistics of batch norms and
    gradients are as they would have been. A measurement costs one forward of the images, twice as many as given.

    - In a loop: `with overfocus.monitor(model, images) as watch:` and `watch(loss)` after each step, or the call alone.
    - Lightning: `Trainer(callbacks=[overfocus.monitor(model, images).lightning_callback()])`.
    - transformers: `trainer.add_callback(overfocus.monitor(model, images).transformers_callback())`.
    - `overfocus train --watch-every 500` does it itself.

    Args:
        model: the module that is trained, also inside DistributedDataParallel or torch.compile, or a `LoadedModel`.
        images: inputs (images, channels, height, width) as the model gets them, or images and their paths, which need
            `preprocess`; two at least, for the control (what another image has in common). Four to sixteen are enough.
        every: steps between two measurements.
        preprocess: how images become inputs; with a tensor, its mean and standard deviation are needed to corrupt it. None takes
            that of a `LoadedModel`; without any, a tensor is watched clean alone, and `retained` is NaN. It is NaN, too, where
            the control is only numerical noise.
        corruption: a name of `overfocus list corruptions`; None for none.
        severity: 1 (weak) to 5 (strong).
        seed: of the corruption.
        log: called with each row in the first process, or a CSV file for the rows; `overfocus curves FILE` draws it. A training
            that goes on with `step=` keeps the rows of earlier steps.
        log_images: called in the first process with a title, an image of the received attention (uint8) and the step, as
            `lambda title, image, step: writer.add_image(title, image, step, dataformats="HWC")` for TensorBoard.
        quiet: print neither the layer that gave NaN first nor, in the end, the share of the time that watching took.

    Raises:
        ImageError: an image cannot be read, or none was given.
        RunError: `every` is below 1, images are given without `preprocess`, or the file of `log` is something else.
        CorruptionError: there is no such corruption or severity.
    """
    from overfocus.checkpoints.load import LoadedModel

    if isinstance(model, LoadedModel):
        preprocess = preprocess or model.preprocess
        model = model.model
    if every < 1:
        raise RunError(f"every must be at least 1, got {every}")
    if (not isinstance(images, Tensor) or images.ndim) and not len(images):
        raise ImageError("expected images to watch, got none")
    check_severity(severity)
    name = None if corruption is None else resolve_corruptions(corruption)[0]
    clean, corrupted = _inputs(images, preprocess, name, severity, seed)
    if _process() > 0:
        log = log_images = None
    if isinstance(log, str | Path):
        log = _CsvLog(Path(log))
    return Monitor(model, clean, corrupted, every=every, log=log, log_images=log_images, quiet=quiet)


class _CsvLog:
    """Rows into a CSV file; a file that cannot be written does not end the training."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log: Log | None = None
        if path.exists():
            read_log(path)
        elif not path.parent.is_dir():
            raise RunError(f"{printable(path)}: there is no such folder; make it, or choose another file")

    def __call__(self, row: dict[str, float]) -> None:
        try:
            if self._log is None:
                self._log = Log(self.path, int(row["step"]) - 1, ("step", *ATTENTION))
            self._log.add(row)
        except OSError as error:
            print(f"overfocus: {printable(self.path)}: cannot be written ({explain(error)})", file=sys.stderr, flush=True)


def _inputs(
    images: "Tensor | Sequence[str | Path | Image.Image]",
    preprocess: Preprocess | None,
    corruption: str | None,
    severity: int,
    seed: int,
) -> tuple[Tensor, Tensor | None]:
    """Clean and corrupted inputs."""
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise ImageError(f"expected inputs (images, channels, height, width), got shape {tuple(images.shape)}")
        if preprocess is None or corruption is None:
            return images.detach().clone(), None
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
        values = (images.detach().cpu().float() * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)
        pixels = [np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy()) for image in values]
        clean = images.detach().clone()
    else:
        if preprocess is None:
            raise RunError("images need preprocess=, which says how they become the model's input; or give a tensor of inputs")
        opened = [image if isinstance(image, Image.Image) else read_image(Path(image)) for image in images]
        pixels = [preprocess.resize(image) for image in opened]
        clean = torch.from_numpy(np.stack([np.asarray(preprocess.normalize(image)) for image in pixels]))
        if corruption is None:
            return clean, None
    made = [preprocess.normalize(corrupt(image, corruption, severity, seed + number)) for number, image in enumerate(pixels)]
    return clean, torch.stack(made).to(clean.device, clean.dtype)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode inside the block and leave no trace: modes, buffers, gradients and random numbers stay.

    Modes are set module by module, as `eval()` of some models does more (LoRA layers merge their weights). Casts that autocast
    makes in the block are not kept: they would stand without gradients for those of the training.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # the global one is what must stay
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_gpus()))
        stack.enter_context(torch.no_grad())
        if torch.is_autocast_enabled(device):
            kind = torch.get_autocast_dtype(device)
            stack.enter_context(torch.autocast(device, dtype=kind, cache_enabled=False))
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer  # a forward may have put another one there
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _gpus() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() and torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


def largest_logit(attention: AttentionMap) -> Float[Tensor, ""]:
    """The largest absolute product of a query and a key, scaled, before mask and softmax; NaN where the model hides it."""
    source: Any = attention.source.source
    query, key = getattr(source, "query", None), getattr(source, "key", None)
    if query is None or key is None:
        return torch.tensor(math.nan)
    scale = getattr(source, "scale", None)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    if key.ndim >= 3 and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    rows = max(1, _PROBED_LOGITS // max(1, key.shape[-2] * math.prod(query.shape[:-2])))
    keys = key.float().transpose(-2, -1)
    peaks = [(block.float() @ keys).abs().amax() for block in query.split(rows, dim=-2)]
    return torch.stack(peaks).amax() * abs(scale)


def _summarise(layers: Sequence[tuple[str, Mapping[str, Tensor] | None]], images: int) -> dict[str, float]:
    """The row: each quantity in each group of layers."""
    of_groups: dict[str, dict[str, list[float]]] = {group: {name: [] for name in QUANTITIES} for group in GROUPS}
    for number, group in _grouped(len(layers)):
        values = layers[number][1]
        if values is None:
            for quantity in QUANTITIES:
                of_groups[group][quantity].append(math.nan)
            continue
        for quantity in QUANTITIES:
            of_groups[group][quantity].append(_of_layer(quantity, values, images))
    row: dict[str, float] = {}
    for quantity in QUANTITIES:
        for part in GROUPS:
            numbers = of_groups[part][quantity]
            most = quantity == "largest_logit"
            row[f"{quantity}_{part}"] = (float(np.max(numbers)) if most else float(np.mean(numbers))) if numbers else math.nan
    return row


def _of_layer(quantity: str, values: Mapping[str, Tensor], images: int) -> float:
    if quantity == "largest_logit":
        return float(values["largest_logit"])
    if quantity != "retained":
        return float(values[quantity][:images].mean()) if quantity in values else math.nan
    pairs = values.get(_PRIMARY)
    if pairs is None or len(pairs) == images:
        return math.nan
    from overfocus.statistics.retained import LEAST_NOISE, NOISE_MARGIN

    control = float(pairs[:images].mean())
    return 1 - float(pairs[images:].mean()) / control if control >= NOISE_MARGIN * LEAST_NOISE else math.nan


def _grouped(count: int) -> list[tuple[int, Literal["early", "middle", "late"]]]:
    """Each layer's number and its third by relative depth, (number + ½) / count."""
    return [(number, GROUPS[min(2, int(3 * (number + 0.5) / count))]) for number in range(count)]  # type: ignore[misc]


def _process() -> int:
    """Number of this process of a distributed training, from 0."""
    return torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0


def _processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def _show(logger: Any, watch: Monitor, step: int) -> None:
    """Give the heat maps to a logger of Lightning that takes images: W&B's, or one with TensorBoard's writer."""
    if not watch.draws or _process() > 0:
        return
    if hasattr(logger, "log_image"):
        logger.log_image("overfocus/attention received", [watch.heat_maps()], step=step)
    elif hasattr(getattr(logger, "experiment", None), "add_image"):
        logger.experiment.add_image("overfocus/attention received", watch.heat_maps(), step, dataformats="HWC")


def _named(row: Mapping[str, float]) -> dict[str, float]:
    """The row for loggers: "overfocus/top_share_late"."""
    return {f"overfocus/{name}": value for name, value in row.items() if name != "step"}
