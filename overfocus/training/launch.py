"""The accelerator of a training: processes, device, precision and trackers, from how the program was started."""

import importlib.util
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from overfocus.errors import TrainingError
from overfocus.forward import output_tensor
from overfocus.preprocessing import Preprocess
from overfocus.training.recipe import Recipe

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
        raise TrainingError(f"accelerate cannot start: {str(error).splitlines()[0]}") from error


def start_trackers(accelerator: "Accelerator", settings: dict[str, Any], step: int) -> None:
    """Open the trackers; of TensorBoard's events those after `step`, which a killed training left, are hidden."""
    flat = {name: value for name, value in settings.items() if isinstance(value, int | float | str)}
    accelerator.init_trackers("trackers", config=flat, init_kwargs={"tensorboard": {"purge_step": step + 1}})


def unused_parameters(model: nn.Module, preprocess: Preprocess) -> bool:
    """Whether the model has parameters that its output does not depend on; torch must be told so for several processes."""
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


def processes_started() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


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
