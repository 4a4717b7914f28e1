"""One session of a training: accelerator, assembly, continuation where the last one stopped, and its result."""

import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from overfocus.checkpoints.metadata import save_checkpoint
from overfocus.curves import ATTENTION, TRAINING, Log, read_log, write_curves
from overfocus.errors import TrainingError, explain, first_line, out_of_memory_as
from overfocus.files import FolderLock, lock_folder
from overfocus.forward import output_tensor
from overfocus.monitoring import Monitor, monitor
from overfocus.preprocessing import Preprocess
from overfocus.processes import started_together
from overfocus.runs.description import FORMAT, ArchitectureEntry, TrainingDescription, TrainingEntry, read_description
from overfocus.segmentation.inference import Inference, only_size, usual_stride
from overfocus.sweep.reading import choose_workers
from overfocus.sweep.sweep import describe_versions
from overfocus.training.architecture import MaskedAutoencoder, MaskedAutoencoding, fill_from
from overfocus.training.augmentation import Augmentation, MaskAugmentation
from overfocus.training.data import AugmentedImages, PlainImages, Sample, StepOrder, TrainingData, gather, load_batches, seed_all
from overfocus.training.folder import (
    is_complete,
    open_folder,
    progress_display,
    read_state,
    require_same,
    write_info,
)
from overfocus.training.loop import LearningRate, Pace, Trainer, make_optimizer, validate
from overfocus.training.objective import Classification, Diversity, Objective, Segmentation
from overfocus.training.settings import MASKED_AUTOENCODING, SEGMENTATION, SUPERVISED, Recipe, TrainSettings
from overfocus.version import __version__

if TYPE_CHECKING:
    from accelerate import Accelerator


_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def make_accelerator(
    recipe: Recipe,
    folder: Path,
    *,
    device: str | None,
    trackers: Sequence[str] | None,
    compiled: bool,
    has_unused: bool,
) -> "Accelerator":
    """An accelerator for one process, or for those that `accelerate launch` or `torchrun` started.

    Raises:
        TrainingError: there is no such device or tracker, or the device lacks the precision.
    """
    import accelerate
    from accelerate.state import AcceleratorState

    if device not in (None, "cpu", "cuda"):
        raise TrainingError(f"device must be cpu or cuda, got {device!r}; CUDA_VISIBLE_DEVICES=1 chooses among several GPUs")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device cuda cannot be used: torch finds none; leave --device out to train on the processor")
    if "WORLD_SIZE" not in os.environ and "MASTER_PORT" in os.environ and os.environ.get("ACCELERATE_USE_CPU") == "True":
        warnings.warn(
            "accelerate launch --cpu starts one process, however many were asked for; on processors start them by "
            "torchrun --nproc-per-node N -m overfocus train … --device cpu",
            stacklevel=2,
        )
    # the state of the accelerator before, in the same program, would decide over precision and device
    AcceleratorState._reset_state(reset_partial_state="WORLD_SIZE" not in os.environ)
    try:
        return accelerate.Accelerator(
            cpu=device == "cpu",
            mixed_precision=_precision(recipe.precision),
            log_with=_known(trackers) or None,
            project_dir=folder,
            dynamo_backend="inductor" if compiled else None,
            kwargs_handlers=[accelerate.DistributedDataParallelKwargs(find_unused_parameters=has_unused)],
        )
    except ValueError as error:
        raise TrainingError(
            f"accelerate cannot start ({first_line(error)}); check its configuration (accelerate config) and the variables "
            "ACCELERATE_… of the environment"
        ) from error


def start_trackers(accelerator: "Accelerator", settings: dict[str, Any], step: int) -> None:
    """Open the trackers; of TensorBoard's events those after `step`, which a killed training left, are hidden."""
    flat = {name: value for name, value in settings.items() if isinstance(value, int | float | str)}
    accelerator.init_trackers("trackers", config=flat, init_kwargs={"tensorboard": {"purge_step": step + 1}})


def unused_parameters(model: nn.Module, preprocess: Preprocess) -> bool:
    """Whether the model has parameters that its output does not depend on; torch needs to know for several processes."""
    model.eval()
    torch.autograd.backward(output_tensor(model(torch.zeros(1, *preprocess.input_size))).float().sum())
    unused = any(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model.zero_grad()
    return unused


def synchronise_norms(model: nn.Module) -> None:
    """Have batch norms take their statistics over the images of all processes, TAP's predictors excepted, as the paper's do.

    For segmentation, where a GPU holds an image or two. Parameters and their names stay.
    """
    for name, child in model.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]
        elif name != "dilation_predictor":
            synchronise_norms(child)


def share_buffers(accelerator: "Accelerator", model: nn.Module) -> None:
    """Give all processes the first one's running statistics of batch norms, which are those that will be saved."""
    from accelerate.utils import broadcast

    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer, from_process=0))


def _known(trackers: Sequence[str] | None) -> list[str]:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if trackers is None:
        return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    installed = [str(name) for name in get_available_trackers()]
    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise TrainingError(f"no tracker {name!r}; accelerate has {', '.join(map(str, LOGGER_TYPE_TO_CLASS))}")
        if name not in installed:
            raise TrainingError(
                f"the tracker {name} is not installed; pip install {name}, or choose {' or '.join(installed) or 'none'}"
            )
    return list(trackers)


def _precision(asked: str) -> str:
    if asked == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    if asked == "float16" and not torch.cuda.is_available():
        raise TrainingError("precision float16 needs a GPU; bfloat16 and float32 work on the processor")
    return _PRECISIONS[asked]


_WATCHED = 4
"""Images that the attention is measured on."""


def run_session(settings: TrainSettings, recipe: Recipe) -> None:
    """Train from the beginning or from the last checkpoint to the end; nothing is done where the training is complete.

    Raises:
        CheckpointError, ImageError, TrainingError: as `train` says.
    """
    remedy = f"try a smaller batch_size than {recipe.batch_size} with more accumulation, or checkpointing"
    with out_of_memory_as(TrainingError, f"{remedy}; the last good checkpoint is kept"):
        try:
            _run(settings, recipe)
        except (OSError, UnicodeError, EOFError, RecursionError) as error:
            raise TrainingError(f"{explain(error)}; the last good checkpoint is kept") from error


def _run(settings: TrainSettings, recipe: Recipe) -> None:
    data = gather(
        Path(settings.data),
        None if settings.validation is None else Path(settings.validation),
        model=settings.model,
        model_args=settings.model_args or {},
        init=None if settings.init is None else str(settings.init),
        tap=None if settings.tap is None else {"branches": settings.tap, "pooling": settings.tap_pooling},
        image_size=settings.image_size,
        class_names=settings.class_names,
        task=settings.task,
        labelled=settings.objective == SUPERVISED,
        limit=settings.limit,
        use_ema=recipe.init_ema,
    )
    folder = Path(settings.output)
    model, notes = build_model(data, settings, recipe)
    notes += dict.fromkeys(note for images in (data.images, data.validation) for note in getattr(images, "notes", ()))
    has_unused = started_together() > 1 and unused_parameters(model, data.preprocess)
    accelerator = make_accelerator(
        recipe,
        folder,
        device=settings.device,
        trackers=settings.trackers,
        compiled=settings.compiled,
        has_unused=has_unused,
    )
    if settings.task == SEGMENTATION and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        synchronise_norms(model)
    order = _order(data, recipe, settings.seed, accelerator)
    optimizer = make_optimizer(model, recipe, order.images_per_step)
    rate = LearningRate(optimizer, recipe, order.steps_per_epoch)
    order.epochs = -(-rate.steps // order.steps_per_epoch)
    recorded = _describe(data, settings, recipe, accelerator)
    lock = None  # held until this function ends
    if accelerator.is_main_process:
        lock = _enter(folder, recorded, notes, overwrite=settings.overwrite)
    accelerator.wait_for_everyone()
    state = read_state(folder / "checkpoint.pt")

    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    trainer = Trainer(
        accelerator,
        prepared,
        bare=model,
        average=_average(model, recipe),
        optimizer=prepared_optimizer,
        rate=rate,
        recipe=recipe,
        objective=choose_objective(model, data, settings, recipe),
        diversity=Diversity(recipe, order.steps_per_epoch),
        pace=Pace(
            steps_per_epoch=order.steps_per_epoch,
            steps=rate.steps,
            log_every=settings.log_every,
            save_every=settings.save_every or order.steps_per_epoch,
            validate_every=settings.validate_every and settings.validate_every * order.steps_per_epoch
            if data.validation is not None
            else None,
        ),
        seed=settings.seed,
        folder=folder,
    )
    if state is not None:
        trainer.restore(state)
    order.start = trainer.step
    if not is_complete(folder):
        _take_steps(trainer, data, settings, order, recorded)
        if accelerator.is_main_process:
            write_result(trainer, data, seed=settings.seed, folder=folder)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    del lock


def _order(data: TrainingData, recipe: Recipe, seed: int, accelerator: "Accelerator") -> StepOrder:
    order = StepOrder(
        data.chosen,
        batch_size=recipe.batch_size,
        accumulation=recipe.accumulation,
        repeats=recipe.repeated_augmentation,
        epochs=recipe.epochs or 1,
        seed=seed,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    if order.steps_per_epoch < 1:
        count, others = len(data.chosen), recipe.accumulation * accelerator.num_processes
        largest = count // others
        if recipe.mixed:
            largest -= largest % 2
        fits = f"--batch-size {largest}" if largest else "more images or fewer processes"
        if not largest and (steps := count // ((2 if recipe.mixed else 1) * accelerator.num_processes)):
            fits = f"--batch-size {2 if recipe.mixed else 1} --accumulation {steps}"
        raise TrainingError(
            f"{count} images do not fill one step of {order.images_per_step} (batch_size {recipe.batch_size} × {others}); "
            f"try {fits}"
        )
    return order


def _average(model: nn.Module, recipe: Recipe) -> Any:
    from timm.utils import ModelEmaV3

    if recipe.ema_decay is None:
        return None
    return ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=recipe.ema_warmup)


def _describe(data: TrainingData, settings: TrainSettings, recipe: Recipe, accelerator: "Accelerator") -> TrainingEntry:
    architecture = data.architecture
    return TrainingEntry(
        recipe=_plain(asdict(recipe)),
        architecture=ArchitectureEntry(
            name=architecture.name, arguments=_plain(architecture.arguments), tap=_plain(architecture.tap)
        ),
        task=settings.task,
        objective=settings.objective,
        init=None if data.initial is None else data.initial.sha256 or data.initial.source,
        seed=settings.seed,
        images=len(data.chosen),
        class_names=list(data.class_names),
        mean=list(data.preprocess.mean),
        std=list(data.preprocess.std),
        input_size=data.preprocess.input_size,
        processes=accelerator.num_processes,
    )


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def _enter(folder: Path, recorded: TrainingEntry, notes: list[str], *, overwrite: bool) -> FolderLock | None:
    """Lock and open the folder for a training of these settings; nothing more to do if their training is there already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"the output folder cannot be used ({explain(error)}); choose another output") from None
    lock = lock_folder(folder, TrainingError)
    there = open_folder(folder, overwrite=overwrite)
    if there is not None:
        require_same(there.settings, recorded, folder)
        return lock
    info = TrainingDescription(
        format=FORMAT,
        overfocus=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="running",
        settings=recorded,
        notes=notes,
        versions=describe_versions(),
    )
    write_info(folder, info)
    return lock


def _take_steps(trainer: Trainer, data: TrainingData, settings: TrainSettings, order: StepOrder, recorded: TrainingEntry) -> None:
    accelerator = trainer.accelerator
    workers = choose_workers(settings.workers)
    augmented = AugmentedImages(data.images, choose_augmentation(data, trainer.recipe), settings.seed)
    pin = accelerator.device.type == "cuda"
    batches = load_batches(augmented, workers, batch_sampler=order, pin=pin)
    if settings.watch_every is not None:
        trainer.watch = _watched(trainer, data, settings.watch_every, quiet=not settings.progress)
    columns = TRAINING if trainer.watch is None else (*TRAINING, *ATTENTION)
    log = Log(Path(settings.output) / "log.csv", trainer.step, columns) if accelerator.is_main_process else None
    start_trackers(accelerator, recorded.recipe, trainer.step)

    def validated(model: nn.Module) -> dict[str, float]:
        images = data.validation
        assert images is not None
        share_buffers(accelerator, model)
        plain = PlainImages(images, data.preprocess)
        sampler = plain.batches(2 * order.batch_size, accelerator.process_index, accelerator.num_processes)
        held_out = load_batches(plain, workers, batch_sampler=sampler, pin=pin)
        if settings.task == SEGMENTATION:
            model = InWindows(model, data.preprocess.input_size[1:], together=2 * order.batch_size)
        return validate(accelerator, trainer.objective, model, held_out)

    shown = None if accelerator.is_main_process else False
    with progress_display(trainer.pace.steps, trainer.step, show=shown if shown is False else settings.progress) as show:
        trainer.run(batches, validated, show, log)
    if trainer.watch is not None:
        trainer.watch.close()


def _watched(trainer: Trainer, data: TrainingData, every: int, *, quiet: bool) -> Monitor:
    """A monitor of the model that is kept in the end, on images that are spread evenly over the data."""
    source, numbers = (data.images, data.chosen)
    if data.validation is not None:
        source, numbers = data.validation, np.arange(len(data.validation))
    places = [int(numbers[place * len(numbers) // _WATCHED]) for place in range(min(_WATCHED, len(numbers)))]
    images = [source.image(place) for place in dict.fromkeys(places)]
    network = trainer.objective.network(trainer.bare)
    return monitor(network, images, every=every, preprocess=data.preprocess, quiet=quiet)


def build_model(data: TrainingData, settings: TrainSettings, recipe: Recipe) -> tuple[nn.Module, list[str]]:
    """The model to train, the same for the same seed, and what a user should know of its start."""
    seed_all(settings.seed)
    initial = data.initial
    model = data.architecture.build(drop_path=recipe.drop_path, tap_init="default" if initial is None else "identity")
    notes = []
    if initial is not None:
        fresh = fill_from(model, initial, data.class_names)
        notes = [f"start from {initial.source} ({initial.name})" + (f"; new: {', '.join(fresh)}" if fresh else "")]
    if settings.objective == MASKED_AUTOENCODING:
        size = data.preprocess.input_size
        model = MaskedAutoencoder(model, size, masking=recipe.masking, width=recipe.decoder_width, depth=recipe.decoder_depth)
    if settings.checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise TrainingError(f"{data.architecture.name} has no activation checkpointing; leave it out")
        getattr(model, "set_grad_checkpointing")(True)  # noqa: B009  # torch says it is a tensor
    if settings.compiled and recipe.diversified:
        notes.append("torch.compile has no effect where ADL watches the model")
    return model, notes


def choose_objective(model: nn.Module, data: TrainingData, settings: TrainSettings, recipe: Recipe) -> Objective:
    """What the model is trained for."""
    if isinstance(model, MaskedAutoencoder):
        return MaskedAutoencoding()
    if settings.task == SEGMENTATION:
        return Segmentation(recipe, len(data.class_names))
    return Classification(recipe, len(data.class_names))


def choose_augmentation(data: TrainingData, recipe: Recipe) -> Callable[[Any, Any], Sample]:
    """What makes samples of images and their classes or masks."""
    if data.class_colours is not None:
        return MaskAugmentation(data.preprocess, recipe)
    return Augmentation(data.preprocess, recipe)


class InWindows(nn.Module):
    """A segmentation model that takes images of any size: larger ones than it was trained at in sliding windows."""

    def __init__(self, model: nn.Module, size: tuple[int, int], together: int) -> None:
        super().__init__()
        self.model = model
        self._inference = Inference(size, usual_stride(size), together, only=only_size(model))

    def forward(self, images: Tensor) -> Tensor:
        return self._inference.logits(self.model, images)


def write_result(trainer: Trainer, data: TrainingData, *, seed: int, folder: Path) -> None:
    """model.safetensors, curves.png, curves.html, and the status in training.json."""
    log = read_log(folder / "log.csv")
    last = log.iloc[-1]
    described = {
        "recipe": json.dumps(asdict(trainer.recipe)),
        "seed": str(seed),
        "training_images": str(len(data.chosen)),
        "weights": "averaged (EMA)" if trainer.average is not None else "last step",
    }
    for name in ("validation_loss", "validation_accuracy", "validation_miou"):
        if last.notna()[name]:
            described[name] = f"{last[name]:.5f}"
    architecture = data.architecture
    save_checkpoint(
        trainer.objective.network(trainer.result),
        folder / "model.safetensors",
        architecture=architecture.name,
        model_args=architecture.arguments,
        tap=architecture.tap,
        class_names=data.class_names or None,
        class_colours=data.class_colours,
        preprocess=data.preprocess,
        extra=described,
    )
    for name in ("curves.png", "curves.html"):
        write_curves(folder / "log.csv", folder / name, trainer.objective.unit)
    info = read_description(folder / "training.json", TrainingDescription)
    write_info(folder, replace(info, status="complete"))
