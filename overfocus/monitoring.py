"""`monitor`: the attention of a model on a few fixed images, watched while it trains, without changing its training by a bit.

with overfocus.monitor(model, images, every=500) as watch:
    for batch in batches:
        loss = step(batch)
        watch(loss)
print(watch.rows[-1])
"""

import csv
import math
import random
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
from overfocus.errors import CaptureError, ImageError, RunError
from overfocus.files import atomic_file
from overfocus.images.sources import read_image
from overfocus.metrics import measure
from overfocus.preprocessing import Preprocess
from overfocus.text import csv_cell

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel

GROUPS = ("early", "middle", "late")
"""Thirds of the layers by depth."""
QUANTITIES = ("top_share", "effective_tokens", "row_entropy", "largest_logit", "retained")
"""What is measured in each group: three metrics of the clean images (means over images and layers); the largest product of a
query and a key, scaled, before the softmax (NaN where a model makes its weights itself); and what is left under corruption of
js_divergence, 1 − D/D of another image (NaN without corrupted images, or with one image)."""
COLUMNS = tuple(f"{quantity}_{group}" for quantity in QUANTITIES for group in GROUPS)
_PRIMARY = "js_divergence"
_PROBED_LOGITS = 2**24
"""Products of queries and keys in one block."""


class Monitor:
    """Watches one model; `monitor` makes one. Call it once a step, after the optimiser's step, with the loss if it is at hand.

    Every process of a distributed training must make the same calls: under FSDP a forward is a joint effort. Under
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
    ) -> None:
        self.model = model
        self.every = every
        self.rows: list[dict[str, float]] = []
        """What was measured: step and the columns of `COLUMNS`; the newest last."""
        self.first_nan: tuple[int, str] | None = None
        """Step and module where attention first held NaN or infinity, as far as was seen."""
        self._inputs = clean if corrupted is None else torch.cat([clean, corrupted])
        self._images = len(clean)
        self._log = log
        self._log_images = log_images
        self._steps = 0
        self._seconds = 0.0
        self._began = time.perf_counter()
        self._watched: list[Any] = []
        self._sums: list[tuple[str, Tensor]] = []
        """Sums of the outputs of the watched modules in the forwards since the last call."""
        self._names: list[str] = []
        self._broken: Tensor | None = None
        """(number among `_names`, step) of the first output with NaN; number −1 where there was none."""
        self._paused = False
        self._received: list[tuple[str, Tensor]] = []

    def __enter__(self) -> "Monitor":
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, loss: Tensor | float | None = None, *, step: int | None = None) -> dict[str, float] | None:
        """Count a step, and measure if it is due; returns the row that was measured, or None.

        Args:
            loss: of this step; where it is NaN or infinite, the layer whose attention was so first is looked for. Looking at it
                waits for the GPU, so it is looked at every `every` steps unless it is a number already.
            step: number of the step, where it is not the number of calls.
        """
        self._steps = self._steps + 1 if step is None else step
        due = self._steps % self.every == 0
        loss = loss.detach() if isinstance(loss, Tensor) else loss
        known = loss is not None and (due or not isinstance(loss, Tensor) or loss.device.type == "cpu")
        failed = known and not math.isfinite(float(loss))  # type: ignore[arg-type]  # None is not known
        self._take_in_sums()
        if failed:
            self.find_nan()
        return self.measure() if due or (failed and not self.rows) else None

    def measure(self) -> dict[str, float]:
        """Measure now: one row, logged."""
        began = time.perf_counter()
        layers = self._observe()
        row = {"step": float(self._steps)} | _summarise(layers, self._images)
        if not self._watched:
            self._watch([name for name, _ in layers])
        broken = [name for name, values in layers if values is None]
        if broken and self.first_nan is None:
            self.first_nan = self._steps, broken[0]
        self.rows.append(row)
        if self._log is not None:
            self._log(row)
        if self._log_images is not None and self.draws:
            self._log_images("attention received", self.heat_maps(), self._steps)
        self._seconds += time.perf_counter() - began
        return row

    def find_nan(self) -> str | None:
        """The module whose attention was first to hold NaN or infinity: in the last forward of the training, or in one now."""
        if self.first_nan is None:
            self._take_in_sums()
            if self._broken is not None and int(self._broken[0]) >= 0:
                self.first_nan = int(self._broken[1]), self._names[int(self._broken[0]) % len(self._names)]
            else:
                broken = [name for name, values in self._observe() if values is None]
                if broken:
                    self.first_nan = self._steps, broken[0]
        return None if self.first_nan is None else self.first_nan[1]

    def heat_maps(self) -> UInt8[np.ndarray, "height width 3"]:
        """Received attention of the last measurement as a picture: a row for each clean image, a column for each group of layers.

        Colours are multiples of uniform attention from 1/4 to 16 on a logarithmic scale.
        """
        from matplotlib import colormaps

        columns = []
        for _, received in self._received:
            side = 96
            multiples = received * received.shape[-1] * received.shape[-2]
            scaled = ((multiples.clamp_min(1e-6).log2() + 2) / 6).clamp(0, 1)
            columns.append(nn.functional.interpolate(scaled[:, None], (side, side), mode="nearest")[:, 0].flatten(0, 1))
        painted: UInt8[np.ndarray, "height width 3"] = colormaps["magma"](torch.cat(columns, 1).numpy(), bytes=True)[..., :3]
        return painted

    @property
    def draws(self) -> bool:
        """Whether there is received attention on a grid to draw."""
        return bool(self._received)

    @property
    def overhead(self) -> float:
        """Share of the time since the beginning that was spent measuring."""
        return self._seconds / max(time.perf_counter() - self._began, 1e-9)

    def close(self) -> None:
        """Stop watching; what was measured stays."""
        for handle in self._watched:
            handle.remove()
        self._watched.clear()
        self._sums.clear()

    def lightning_callback(self) -> Any:
        """A callback for Lightning's `Trainer`: measures after every step and logs to the trainer's loggers."""
        try:
            from lightning.pytorch import Callback
        except ModuleNotFoundError:
            from pytorch_lightning import Callback
        watch = self

        class OverfocusCallback(Callback):  # type: ignore[misc]
            """Watches attention."""

            def on_train_batch_end(self, trainer: Any, _module: Any, outputs: Any, _batch: Any, _number: int) -> None:
                loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
                row = watch(loss, step=int(trainer.global_step))
                if row is not None:
                    for logger in trainer.loggers:
                        logger.log_metrics(_named(row), step=int(trainer.global_step))

            def on_train_end(self, _trainer: Any, _module: Any) -> None:
                watch.close()

        return OverfocusCallback()

    def transformers_callback(self) -> Any:
        """A callback for the `Trainer` of transformers: measures after every step; the rows also enter `state.log_history`."""
        from transformers import TrainerCallback

        watch = self

        class OverfocusCallback(TrainerCallback):  # type: ignore[misc]
            """Watches attention."""

            def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
                row = watch(step=int(state.global_step))
                if row is not None:
                    state.log_history.append(_named(row) | {"step": int(state.global_step)})

            def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
                loss = (logs or {}).get("loss")
                if isinstance(loss, float) and not math.isfinite(loss):
                    watch.find_nan()

            def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
                watch.close()

        return OverfocusCallback()

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

        inner = self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model
        inner = getattr(inner, "_orig_mod", inner)
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

    def _watch(self, names: Sequence[str]) -> None:
        """Have each attention module note the sum of its output, which is NaN where the output is; nothing waits for the GPU."""
        modules = dict(self.model.named_modules())
        inner = {name.removeprefix("module.").removeprefix("_orig_mod."): module for name, module in modules.items()}
        for name in dict.fromkeys(names):
            if name in inner:
                self._watched.append(inner[name].register_forward_hook(self._noted(name)))

    def _take_in_sums(self) -> None:
        """Note which module was first to give NaN in the forwards of this step, unless one did before; on the model's device."""
        if not self._sums:
            return
        self._names = [name for name, _ in self._sums]
        wrong = ~torch.isfinite(torch.stack([total for _, total in self._sums]))
        self._sums.clear()
        here = torch.where(wrong.any(), wrong.int().argmax(), -1)
        found = torch.stack([here, torch.full_like(here, self._steps)])
        self._broken = found if self._broken is None else torch.where(self._broken[0] < 0, found, self._broken)

    def _noted(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple | list) and output else output
            if module.training and not self._paused and isinstance(tensor, Tensor) and tensor.is_floating_point():
                with torch.no_grad():
                    self._sums.append((name, tensor.detach().float().sum()))

        return note


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
) -> Monitor:
    """Watch the attention of a model in training on a few fixed images, clean and under one corruption.

    The training is not changed by a bit: random numbers, train and eval mode of every module, statistics of batch norms and
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
        preprocess: how images become inputs; with a tensor, its mean and standard deviation tell how to corrupt it. None takes
            that of a `LoadedModel`; without any, a tensor is watched clean alone, and `retained` is NaN.
        corruption: a name of `overfocus list corruptions`; None for none.
        severity: 1 (weak) to 5 (strong).
        seed: of the corruption.
        log: called with each row, or a CSV file to write the rows to.
        log_images: called with a title, a picture of the received attention (uint8) and the step, as
            `lambda title, picture, step: writer.add_image(title, picture, step, dataformats="HWC")` for TensorBoard.

    Raises:
        ImageError: an image cannot be read, or there is none.
        RunError: `every` is below 1, or images are given without `preprocess`.
        CorruptionError: there is no such corruption or severity.
    """
    from overfocus.checkpoints.load import LoadedModel

    if isinstance(model, LoadedModel):
        preprocess = preprocess or model.preprocess
        model = model.model
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise RunError(f"every must be at least 1, got {every!r}")
    if not len(images):
        raise ImageError("expected images to watch, got none")
    check_severity(severity)
    name = None if corruption is None else resolve_corruptions(corruption)[0]
    clean, corrupted = _inputs(images, preprocess, name, severity, seed)
    if isinstance(log, str | Path):
        log = CsvLog(Path(log))
    return Monitor(model, clean, corrupted, every=every, log=log, log_images=log_images)


class CsvLog:
    """Writes rows to a CSV file, which is whole after each of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, float]] = []

    def __call__(self, row: dict[str, float]) -> None:
        """Add a row.

        Raises:
            RunError: the file cannot be written.
        """
        self._rows.append(row)
        try:
            with atomic_file(self.path) as file:
                names = ["step", *COLUMNS]
                text = _Lines()
                csv.writer(text).writerow(names)
                csv.writer(text).writerows([csv_cell(row[name]) for name in names] for row in self._rows)
                file.write("".join(text).encode())
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror or error}); choose another file") from error


class _Lines(list[str]):
    """What csv.writer writes to."""

    write = list.append


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
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
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
            for buffer, before in buffers:
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
    control = float(pairs[:images].mean())
    return 1 - float(pairs[images:].mean()) / control if control > 0 else math.nan


def _grouped(count: int) -> list[tuple[int, Literal["early", "middle", "late"]]]:
    """Each layer's number and its third by relative depth, (number + ½) / count."""
    return [(number, GROUPS[min(2, int(3 * (number + 0.5) / count))]) for number in range(count)]  # type: ignore[misc]


def _named(row: Mapping[str, float]) -> dict[str, float]:
    """The row for loggers: "overfocus/top_share_late"."""
    return {f"overfocus/{name}": value for name, value in row.items() if name != "step"}
