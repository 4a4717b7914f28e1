"""One session of a training: assembled, continued where the last one stopped, and its result written."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from overfocus.checkpoints.save import save_checkpoint
from overfocus.errors import TrainingError, explain
from overfocus.files import FolderLock, lock_folder
from overfocus.memory import out_of_memory_as
from overfocus.monitoring import COLUMNS as ATTENTION_COLUMNS
from overfocus.monitoring import Monitor, monitor
from overfocus.runs.description import FORMAT, TrainingDescription, read_description
from overfocus.segmentation.inference import Inference, only_size, usual_stride
from overfocus.sweep.opening import describe_versions
from overfocus.sweep.reading import choose_workers
from overfocus.training.architecture import fill_from
from overfocus.training.augmentation import Augmentation
from overfocus.training.data import AugmentedImages, Material, PlainImages, Sample, StepOrder, gather, load_batches
from overfocus.training.diversity import Diversity
from overfocus.training.folder import TrainingSettings, is_complete, open_folder, read_state, write_info
from overfocus.training.launch import (
    make_accelerator,
    processes_started,
    share_buffers,
    start_trackers,
    synchronise_norms,
    unused_parameters,
)
from overfocus.training.log import COLUMNS, Log, draw_curves, progress_display, read_log
from overfocus.training.loop import Pace, Trainer, validate
from overfocus.training.mask_augmentation import MaskAugmentation
from overfocus.training.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoding
from overfocus.training.objective import Classification, Objective, Segmentation
from overfocus.training.optimisation import LearningRate, make_optimizer
from overfocus.training.randomness import seed_all
from overfocus.training.recipe import Recipe
from overfocus.training.settings import MASKED_AUTOENCODING, SEGMENTATION, SUPERVISED, TrainSettings
from overfocus.version import __version__

if TYPE_CHECKING:
    from accelerate import Accelerator


_WATCHED = 4
"""Images that the attention is measured on."""


def run_session(request: TrainSettings, recipe: Recipe) -> None:
    """Train from the beginning or from the last checkpoint to the end; nothing is done where the training is complete.

    Raises:
        CheckpointError, ImageError, TrainingError: as `train` says.
    """
    remedy = f"try a smaller batch_size than {recipe.batch_size} with more accumulation, or checkpointing"
    with out_of_memory_as(TrainingError, f"{remedy}; the last good checkpoint is kept"):
        try:
            _run(request, recipe)
        except (OSError, UnicodeError, EOFError, RecursionError) as error:
            raise TrainingError(f"{explain(error)}; the last good checkpoint is kept") from error


def _run(request: TrainSettings, recipe: Recipe) -> None:
    material = gather(
        Path(request.data),
        None if request.validation is None else Path(request.validation),
        model=request.model,
        model_args=request.model_args or {},
        init=None if request.init is None else str(request.init),
        tap=None if request.tap is None else {"branches": request.tap, "pooling": request.tap_pooling},
        image_size=request.image_size,
        class_names=request.class_names,
        task=request.task,
        labelled=request.objective == SUPERVISED,
        limit=request.limit,
        use_ema=recipe.init_ema,
    )
    folder = Path(request.output)
    model, notes = build_model(material, request, recipe)
    has_unused = processes_started() > 1 and unused_parameters(model, material.preprocess)
    accelerator = make_accelerator(
        recipe,
        folder,
        device=request.device,
        trackers=request.trackers,
        compiled=request.compiled,
        has_unused=has_unused,
    )
    if request.task == SEGMENTATION and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        synchronise_norms(model)
    order = _order(material, recipe, request.seed, accelerator)
    optimizer = make_optimizer(model, recipe, order.images_per_step)
    rate = LearningRate(optimizer, recipe, order.steps_per_epoch)
    order.epochs = -(-rate.steps // order.steps_per_epoch)
    settings = _settings(material, request, recipe, accelerator)
    lock = None  # held until this function ends
    if accelerator.is_main_process:
        lock = _enter(folder, settings, notes, overwrite=request.overwrite)
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
        objective=choose_objective(model, material, request, recipe),
        diversity=Diversity(recipe, order.steps_per_epoch),
        pace=Pace(
            steps_per_epoch=order.steps_per_epoch,
            steps=rate.steps,
            log_every=request.log_every,
            save_every=request.save_every or order.steps_per_epoch,
            validate_every=request.validate_every and request.validate_every * order.steps_per_epoch
            if material.validation is not None
            else None,
        ),
        seed=request.seed,
        folder=folder,
    )
    if state is not None:
        trainer.restore(state)
    order.start = trainer.step
    if not is_complete(folder):
        _take_steps(trainer, material, request, order, settings)
        if accelerator.is_main_process:
            write_result(trainer, material, seed=request.seed, folder=folder)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    del lock


def _order(material: Material, recipe: Recipe, seed: int, accelerator: "Accelerator") -> StepOrder:
    order = StepOrder(
        material.chosen,
        batch_size=recipe.batch_size,
        accumulation=recipe.accumulation,
        repeats=recipe.repeated_augmentation,
        epochs=recipe.epochs or 1,
        seed=seed,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    if order.steps_per_epoch < 1:
        count, others = len(material.chosen), recipe.accumulation * accelerator.num_processes
        largest = count // others
        if recipe.mixed:
            largest -= largest % 2
        fits = f"--batch-size {largest}" if largest else "more images, fewer processes or less --accumulation"
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


def _settings(material: Material, request: TrainSettings, recipe: Recipe, accelerator: "Accelerator") -> TrainingSettings:
    return TrainingSettings(
        recipe=recipe,
        architecture=material.architecture,
        task=request.task,
        objective=request.objective,
        init=None if material.initial is None else material.initial.sha256 or material.initial.source,
        seed=request.seed,
        images=len(material.chosen),
        class_names=material.class_names,
        mean=material.preprocess.mean,
        std=material.preprocess.std,
        input_size=material.preprocess.input_size,
        processes=accelerator.num_processes,
    )


def _enter(folder: Path, settings: TrainingSettings, notes: list[str], *, overwrite: bool) -> FolderLock | None:
    """Lock and open the folder for these settings; nothing more to do where their training lies there already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"the output folder cannot be used ({explain(error)}); choose another output") from None
    lock = lock_folder(folder, TrainingError)
    there = open_folder(folder, overwrite=overwrite)
    if there is not None:
        settings.require_same(there.settings, folder)
        return lock
    info = TrainingDescription(
        format=FORMAT,
        overfocus=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="running",
        settings=settings.as_dict(),
        notes=notes,
        versions=describe_versions(),
    )
    write_info(folder, info)
    return lock


def _take_steps(
    trainer: Trainer, material: Material, request: TrainSettings, order: StepOrder, settings: TrainingSettings
) -> None:
    accelerator = trainer.accelerator
    workers = choose_workers(request.workers)
    augmented = AugmentedImages(material.images, choose_augmentation(material, trainer.recipe), request.seed)
    pin = accelerator.device.type == "cuda"
    batches = load_batches(augmented, workers, batch_sampler=order, pin=pin)
    if request.watch_every is not None:
        trainer.watch = _watched(trainer, material, request.watch_every)
    columns = COLUMNS if trainer.watch is None else (*COLUMNS, *ATTENTION_COLUMNS)
    log = Log(Path(request.output) / "log.csv", trainer.step, columns) if accelerator.is_main_process else None
    start_trackers(accelerator, settings.as_dict()["recipe"], trainer.step)

    def validated(model: nn.Module) -> dict[str, float]:
        images = material.validation
        assert images is not None
        share_buffers(accelerator, model)
        plain = PlainImages(images, material.preprocess)
        sampler = plain.batches(2 * order.batch_size, accelerator.process_index, accelerator.num_processes)
        held_out = load_batches(plain, workers, batch_sampler=sampler, pin=pin)
        if request.task == SEGMENTATION:
            model = InWindows(model, material.preprocess.input_size[1:], together=2 * order.batch_size)
        return validate(accelerator, trainer.objective, model, held_out)

    shown = None if accelerator.is_main_process else False
    with progress_display(trainer.pace.steps, trainer.step, show=shown if shown is False else request.progress) as show:
        trainer.run(batches, validated, show, log)
    if trainer.watch is not None:
        trainer.watch.close()
        if accelerator.is_main_process and request.progress:
            share = f"{trainer.watch.overhead:.1%} of the time"
            print(f"attention was measured {len(trainer.watch.rows)} times, {share}", file=sys.stderr, flush=True)


def _watched(trainer: Trainer, material: Material, every: int) -> Monitor:
    """A monitor of the model that is kept in the end, on images that are spread evenly over the data."""
    source, numbers = (material.images, material.chosen)
    if material.validation is not None:
        source, numbers = material.validation, np.arange(len(material.validation))
    places = [int(numbers[place * len(numbers) // _WATCHED]) for place in range(min(_WATCHED, len(numbers)))]
    pictures = [source.image(place) for place in dict.fromkeys(places)]
    return monitor(trainer.objective.network(trainer.bare), pictures, every=every, preprocess=material.preprocess)


def build_model(material: Material, settings: TrainSettings, recipe: Recipe) -> tuple[nn.Module, list[str]]:
    """The model to train, the same for the same seed, and what a user should know of its start."""
    seed_all(settings.seed)
    initial = material.initial
    model = material.architecture.build(drop_path=recipe.drop_path, tap_init="default" if initial is None else "identity")
    notes = []
    if initial is not None:
        fresh = fill_from(model, initial, material.class_names)
        notes = [f"start from {initial.source} ({initial.name})" + (f"; new: {', '.join(fresh)}" if fresh else "")]
    if settings.objective == MASKED_AUTOENCODING:
        size = material.preprocess.input_size
        model = MaskedAutoencoder(model, size, masking=recipe.masking, width=recipe.decoder_width, depth=recipe.decoder_depth)
    if settings.checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise TrainingError(f"{material.architecture.name} has no activation checkpointing; leave it out")
        getattr(model, "set_grad_checkpointing")(True)  # noqa: B009  # torch says it is a tensor
    if settings.compiled and recipe.diversified:
        notes.append("torch.compile has no effect where ADL watches the model")
    return model, notes


def choose_objective(model: nn.Module, material: Material, settings: TrainSettings, recipe: Recipe) -> Objective:
    """What the model is trained for."""
    if isinstance(model, MaskedAutoencoder):
        return MaskedAutoencoding()
    if settings.task == SEGMENTATION:
        return Segmentation(recipe, len(material.class_names))
    return Classification(recipe, len(material.class_names))


def choose_augmentation(material: Material, recipe: Recipe) -> Callable[[Any, Any], Sample]:
    """What makes samples of pictures and their classes or masks."""
    if material.class_colours is not None:
        return MaskAugmentation(material.preprocess, recipe)
    return Augmentation(material.preprocess, recipe)


class InWindows(nn.Module):
    """A segmentation model that takes pictures of any size: larger ones than it was trained at in sliding windows."""

    def __init__(self, model: nn.Module, size: tuple[int, int], together: int) -> None:
        super().__init__()
        self.model = model
        self._inference = Inference(size, usual_stride(size), together, only=only_size(model))

    def forward(self, images: Tensor) -> Tensor:
        return self._inference.logits(self.model, images)


def write_result(trainer: Trainer, material: Material, *, seed: int, folder: Path) -> None:
    """model.safetensors, curves.png, and the status in training.json."""
    log = read_log(folder / "log.csv")
    last = log.iloc[-1]
    described = {
        "recipe": json.dumps(asdict(trainer.recipe)),
        "seed": str(seed),
        "training_images": str(len(material.chosen)),
        "weights": "averaged (EMA)" if trainer.average is not None else "last step",
    }
    for name in ("validation_loss", "validation_accuracy", "validation_miou"):
        if last.notna()[name]:
            described[name] = f"{last[name]:.5f}"
    architecture = material.architecture
    save_checkpoint(
        trainer.objective.network(trainer.result),
        folder / "model.safetensors",
        architecture=architecture.name,
        model_args=architecture.arguments,
        tap=architecture.tap,
        class_names=material.class_names or None,
        class_colours=material.class_colours,
        preprocess=material.preprocess,
        extra=described,
    )
    draw_curves(folder / "log.csv", folder / "curves.png", trainer.objective.unit)
    info = read_description(folder / "training.json", TrainingDescription)
    write_info(folder, replace(info, status="complete"))
