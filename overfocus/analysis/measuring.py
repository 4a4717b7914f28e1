"""One batch through the model: attention measured layer by layer while it runs, and what becomes of the predictions."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from overfocus.analysis.heap import give_back_freed_memory
from overfocus.analysis.pixelwise import pixel_predictions
from overfocus.analysis.stopwatch import Stopwatch
from overfocus.attention import TOKEN_KINDS, AttentionMap
from overfocus.capturing import capture
from overfocus.errors import CaptureError
from overfocus.metrics import measure
from overfocus.metrics.catalogue import CATALOGUE
from overfocus.metrics.norms import norm_metrics
from overfocus.metrics.prediction import agreement, confidence_drop
from overfocus.segmentation.prediction import is_segmentation

MOST_QUERIES = 1024
"""Layers with more queries than this are left out of the full maps of displayed images, and leave much to clear away."""

METRIC_NAMES = [name for name, metric in CATALOGUE.items() if metric.group != "prediction"]
"""Columns of the metrics table, in the order of METRICS.md."""

Array = np.ndarray[Any, Any]


@dataclass
class BatchResult:
    """What one batch gave, by picture."""

    values: dict[int, Float[np.ndarray, "pictures heads metrics"]]
    """Metrics in the order of METRIC_NAMES, by layer; one "head" unless measured per head; NaN where undefined."""
    received: dict[int, Float[np.ndarray, "pictures rows columns"]]
    """Received attention by layer, where the patch grid of the image is known."""
    attention: dict[int, Float[np.ndarray, "shown windows queries keys"]]
    """Mean over heads of the weights of the pictures to show, by layer; float16."""
    predictions: dict[str, Array]
    """predicted (a class number), confidence, agreement, confidence_drop, output_cosine; NaN where undefined. Of segmentation
    correct, image_iou, intersections and unions as well."""
    class_maps: UInt8[np.ndarray, "shown height width"] | None = None
    """The class of each pixel of the pictures to show; of segmentation only."""


@dataclass
class _MeasuredLayer:
    number: int
    module: str
    values: Float[Tensor, "pictures heads metrics"]
    received: Float[Tensor, "pictures rows columns"] | None
    attention: Float[Tensor, "shown windows queries keys"] | None


class Measurer:
    """Sends batches through one model and measures each attention map as soon as it exists.

        with Measurer(model, [0, 1], 10, stopwatch, device=device) as measurer:
            result = measurer.measure(inputs, reference)

    `layers` count the attention over tokens in call order.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int],
        num_classes: int,
        stopwatch: Stopwatch,
        *,
        device: torch.device,
        top_fraction: float = 0.05,
        per_head: bool = False,
        amp: bool = False,
    ) -> None:
        self.model = model
        self.layers = list(layers)
        self.num_classes = num_classes
        self.device = device
        self.top_fraction = top_fraction
        self.per_head = per_head
        self.amp = amp
        self.stopwatch = stopwatch
        self._contexts = ExitStack()
        self._reference: Tensor | None = None
        self._shown: Sequence[slice] = ()
        self._number = -1

    def __enter__(self) -> "Measurer":
        self._contexts.enter_context(torch.no_grad())
        self._contexts.enter_context(precision(self.device, amp=self.amp))
        self._captured = self._contexts.enter_context(capture(self.model, reduce=self._measure_map, norms=True))
        return self

    def __exit__(self, *error: object) -> None:
        self._contexts.close()

    def measure(
        self,
        inputs: Float[Tensor, "pictures channels height width"],
        reference: Int[Tensor, "pictures"],
        shown: Sequence[slice] = (),
        masks: Sequence[UInt8[np.ndarray, "height width"] | None] | None = None,
    ) -> BatchResult:
        """Measure one batch; `reference` is the place of each picture's clean counterpart, `shown` the pictures to keep maps of.

        `masks` are the right classes of each picture's pixels, where they are known.

        Raises:
            CaptureError: the attention holds NaN or is none, or other layers ran than in the first batch.
        """
        self._reference, self._shown, self._number = reference, shown, -1
        self._captured.clear()
        with self.stopwatch.on("forward"):
            output = output_tensor(self.model(inputs))
            self._captured.check()
            measured = {layer.number: layer for layer in self._captured.reduced if layer is not None}
            self._add_norms(list(measured.values()))
            if sorted(measured) != self.layers:
                raise CaptureError(f"expected attention of layers {self.layers} in every batch, got that of {sorted(measured)}")
            predictions, class_maps = self._predictions(output, inputs.shape[2:], reference, masks)
            return BatchResult(
                values={number: _host(layer.values) for number, layer in measured.items()},
                received={number: _host(layer.received) for number, layer in measured.items() if layer.received is not None},
                attention={number: _host(layer.attention) for number, layer in measured.items() if layer.attention is not None},
                predictions=predictions,
                class_maps=None
                if class_maps is None
                else np.concatenate([class_maps[:0], *(class_maps[part] for part in shown)]),
            )

    def _predictions(
        self,
        output: Tensor,
        size: Sequence[int],
        reference: Int[Tensor, "pictures"],
        masks: Sequence[UInt8[np.ndarray, "height width"] | None] | None,
    ) -> tuple[dict[str, Array], UInt8[np.ndarray, "pictures height width"] | None]:
        if is_segmentation(self.model, output):
            height, width = size
            return pixel_predictions(output, (height, width), reference, masks or [None] * len(output))
        return {name: _host(value) for name, value in _predictions(output, reference, self.num_classes).items()}, None

    def _measure_map(self, attention: AttentionMap) -> _MeasuredLayer | None:
        """Measure one map; called by `capture` while its layer runs."""
        if attention.kind not in TOKEN_KINDS:
            return None
        self._number += 1
        if self._number not in self.layers:
            return None
        grid = attention.image_grid
        with self.stopwatch.on("capture", inside="forward"), torch.autocast(self.device.type, enabled=False):
            values = measure(
                attention,
                top_fraction=self.top_fraction,
                per_head=self.per_head,
                reference=self._reference,
                profiles=grid is not None,
            )
            if attention.shape[2] > MOST_QUERIES:
                give_back_freed_memory()
            profile = values.pop("received", None)
            received = None if profile is None or grid is None else profile.reshape(-1, *grid)
            return _MeasuredLayer(self._number, attention.module, _in_columns(values), received, self._kept(attention))

    def _add_norms(self, layers: list[_MeasuredLayer]) -> None:
        """Fill in the metrics of the tokens that left each block, which come after its attention; one value for all heads."""
        for token_norms in self._captured.norms:
            layer = next((layer for layer in layers if layer.module == token_norms.module), None)
            if layer is None:
                continue
            layers.remove(layer)
            fits = layer.received is not None and tuple(layer.received.shape[1:]) == token_norms.grid
            received = layer.received.flatten(1) if layer.received is not None and fits else None
            for name, value in norm_metrics(token_norms.norms, received).items():
                layer.values[:, :, METRIC_NAMES.index(name)] = value.to(layer.values.dtype)[:, None]

    def _kept(self, attention: AttentionMap) -> Float[Tensor, "shown windows queries keys"] | None:
        queries = attention.shape[2]
        if not self._shown or queries > MOST_QUERIES:
            return None
        weights = [attention.rows(0, queries, pictures).mean(1).to(torch.float16) for pictures in self._shown]
        kept = torch.cat(weights)
        return kept.reshape(-1, attention.windows, *kept.shape[1:])


def precision(device: torch.device, *, amp: bool) -> AbstractContextManager[object]:
    """Mixed precision where asked for: bfloat16, or float16 on a GPU that has none."""
    if not amp:
        return nullcontext()
    half = device.type == "cuda" and not torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.float16 if half else torch.bfloat16)


def _in_columns(values: Mapping[str, Tensor]) -> Float[Tensor, "pictures heads metrics"]:
    """The metrics side by side in the order of METRIC_NAMES, NaN for those that do not fit the kind of attention."""
    example = next(iter(values.values()))
    undefined = torch.full_like(example, torch.nan, dtype=torch.float32)
    columns = torch.stack([values.get(name, undefined).float() for name in METRIC_NAMES], dim=-1)
    return columns if columns.ndim == 3 else columns.unsqueeze(1)


def _predictions(output: Tensor, reference: Int[Tensor, "pictures"], num_classes: int) -> dict[str, Float[Tensor, "pictures"]]:
    """What the model says of each picture, compared with what it says of the clean one."""
    output = output.float()
    clean = output[reference]
    corrupted = reference != torch.arange(len(reference), device=reference.device)
    undefined = torch.full((len(output),), torch.nan, device=output.device)
    cosine = nn.functional.cosine_similarity(clean.flatten(1), output.flatten(1))
    result = dict.fromkeys(("predicted", "confidence", "agreement", "confidence_drop"), undefined)
    if num_classes and output.shape[1:] == (num_classes,):
        confidence, predicted = output.softmax(-1).max(-1)
        result = {
            "predicted": predicted.double(),
            "confidence": confidence,
            "agreement": agreement(clean, output).where(corrupted, undefined),
            "confidence_drop": confidence_drop(clean, output).where(corrupted, undefined),
        }
    return result | {"output_cosine": cosine.where(corrupted, undefined)}


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


def _host(tensor: Tensor) -> Array:
    array: Array = tensor.cpu().numpy()
    return array
