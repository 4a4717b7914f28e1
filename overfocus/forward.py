"""What every forward of a model needs: its precision, and the tensor in whatever it returns."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from overfocus.errors import CaptureError


def precision(device: torch.device, *, amp: bool) -> AbstractContextManager[object]:
    """Mixed precision where asked for: bfloat16, or float16 on a GPU that has none."""
    if not amp:
        return nullcontext()
    half = device.type == "cuda" and not torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.float16 if half else torch.bfloat16)


def output_tensor(output: Any) -> Tensor:
    """The logits, or else the first tensor, of whatever a model returns: a tensor, a tuple, a mapping.

    Raises:
        CaptureError: there is no tensor in it.
    """
    if isinstance(output, Tensor):
        return output
    parts: list[Any] = []
    if isinstance(output, Mapping):
        parts = [output["logits"]] if "logits" in output else list(output.values())
    elif isinstance(output, list | tuple):
        parts = list(output)
    for part in parts:
        if isinstance(part, Tensor | Mapping | list | tuple):
            return output_tensor(part)
    raise CaptureError(f"expected the model to return a tensor of logits or features, got {type(output).__name__}")
