"""What a model is trained for: the loss of a task and how well it is done, for images or pixels, and the weight of ADL.

RVT's patch-wise augmentation: Mao et al., "Towards Robust Vision Transformer", CVPR 2022, section 3.4; probabilities as its
recipe has them. Segmentation: Xie et al., "SegFormer", NeurIPS 2021.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from overfocus.datasets.masks import IGNORED
from overfocus.errors import TrainingError
from overfocus.losses import Diversification, diversify
from overfocus.losses.attention_diversification import NoAttentionError
from overfocus.segmentation import mean_iou, pixel_accuracy
from overfocus.segmentation.inference import class_map, upsample
from overfocus.training.settings import Recipe


class Part(NamedTuple):
    """One forward of a step."""

    inputs: Float[Tensor, "batch channels height width"]
    targets: Tensor
    diversified: bool
    """Whether the attention diversification loss is taken of it."""


class Objective(Protocol):
    """The loss of a task and how well the task is done."""

    unit: str
    """What the loss is measured in."""
    sums: int
    """How many numbers `score` gives."""

    def network(self, model: nn.Module) -> nn.Module:
        """The part of the trained model that is kept in the end, whose attention ADL sees; usually all of it."""
        ...

    def parts(self, images: Float[Tensor, "batch channels height width"], targets: Tensor) -> list[Part]:
        """The forwards of a batch, in order; their losses are added. May draw from the global generators."""
        ...

    def loss(self, output: Any, targets: Tensor) -> Float[Tensor, ""]:
        """Mean loss of one forward."""
        ...

    def right(self, output: Any, targets: Tensor) -> Float[Tensor, " 2"]:
        """How many answers to a training batch are right, and of how many; 0 of 0 where nothing can be right."""
        ...

    def score(self, output: Any, targets: Tensor) -> Float[Tensor, " sums"]:
        """What `summarise` needs of a validation batch, to be added up over batches and processes."""
        ...

    def summarise(self, sums: Float[Tensor, " sums"]) -> dict[str, float]:
        """Columns of the log, of the sums in float64: validation_loss and how well the task is done."""
        ...


class Classification:
    """Soft or hard cross-entropy of the logits."""

    unit = "cross-entropy, nats"
    sums = 3

    def __init__(self, recipe: Recipe, num_classes: int, patch_size: int = 16) -> None:
        from timm.data import Mixup

        self.recipe = recipe
        self.patch_size = patch_size
        self._mixup = (
            Mixup(  # type: ignore[no-untyped-call]
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                prob=recipe.mix_probability,
                switch_prob=recipe.mix_switch,
                label_smoothing=recipe.label_smoothing,
                num_classes=num_classes,
            )
            if recipe.mixed
            else None
        )

    def network(self, model: nn.Module) -> nn.Module:
        """All of the model."""
        return model

    def parts(self, images: Float[Tensor, "batch channels height width"], targets: Int[Tensor, " batch"]) -> list[Part]:
        """One forward, or with RVT's patch augmentation two. Draws from the global generators."""
        if self._mixup is not None:
            images, targets = self._mixup(images, targets)
        part = Part(images, targets, True)
        if not self.recipe.patch_augmentation:
            return [part]
        # RVT's step: the augmented images with the plain criterion, then the others with ADL
        return [Part(augment_patches(images, self.patch_size), targets, False), part]

    def loss(self, output: Float[Tensor, "batch classes"], targets: Tensor) -> Float[Tensor, ""]:
        """Mean cross-entropy over the batch; `targets` are classes or shares of classes."""
        if targets.ndim == 2:
            return torch.sum(-targets * F.log_softmax(output.float(), dim=-1), dim=-1).mean()
        return F.cross_entropy(output.float(), targets, label_smoothing=self.recipe.label_smoothing)

    def right(self, output: Float[Tensor, "batch classes"], targets: Int[Tensor, " batch"]) -> Float[Tensor, " 2"]:
        """Images classified right, and all."""
        right = (output.argmax(-1) == targets).float()
        return torch.stack([right.sum(), torch.ones_like(right).sum()])

    def score(self, output: Float[Tensor, "batch classes"], targets: Int[Tensor, " batch"]) -> Float[Tensor, " 3"]:
        """Sum of the cross-entropy without smoothing, images classified right, and all."""
        return torch.cat([F.cross_entropy(output.float(), targets, reduction="sum")[None], self.right(output, targets)])

    def summarise(self, sums: Float[Tensor, " 3"]) -> dict[str, float]:
        """validation_loss and validation_accuracy."""
        loss, right, count = sums.tolist()
        return {"validation_loss": loss / count, "validation_accuracy": right / count}


Logits = Float[Tensor, "batch classes rows columns"]
Masks = UInt8[Tensor, "batch height width"]


class Segmentation:
    """Mean over the pixels that are not ignored; logits are upsampled bilinearly to the masks first.

    Source: Xie et al., "SegFormer", NeurIPS 2021, and the paper's recipe (Guo et al., ICCV 2023).
    """

    unit = "cross-entropy, nats"

    def __init__(self, recipe: Recipe, num_classes: int) -> None:
        self.recipe = recipe
        self.num_classes = num_classes
        self.sums = num_classes**2 + 2

    def network(self, model: nn.Module) -> nn.Module:
        """All of the model."""
        return model

    def parts(self, images: Float[Tensor, "batch channels height width"], masks: Masks) -> list[Part]:
        """One forward."""
        return [Part(images, masks, True)]

    def loss(self, logits: Logits, masks: Masks) -> Float[Tensor, ""]:
        """Cross-entropy, mean over the counted pixels of the batch; 0 where none counts."""
        counted = (masks != IGNORED).sum().clamp_min(1)
        return self._summed(logits, masks, self.recipe.label_smoothing) / counted

    def right(self, logits: Logits, masks: Masks) -> Float[Tensor, " 2"]:
        """Pixels classified right, and pixels that count."""
        counted = masks != IGNORED
        right = (class_map(logits, _size(masks)) == masks) & counted
        return torch.stack([right.sum(), counted.sum()]).float()

    def score(self, logits: Logits, masks: Masks) -> Float[Tensor, " sums"]:
        """Sum of the cross-entropy without smoothing, counted pixels, and how many of each class were taken for which."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        predicted = class_map(logits, _size(masks))
        confusion = multiclass_confusion_matrix(
            predicted.long(), masks.long(), self.num_classes, ignore_index=IGNORED, validate_args=False
        )
        # image by image: the logits of one at full size may take 80 MB
        losses = [self._summed(one[None], mask[None], 0.0).double() for one, mask in zip(logits, masks, strict=True)]
        counted = (masks != IGNORED).sum().double()
        return torch.cat([torch.stack([torch.stack(losses).sum(), counted]), confusion.flatten().double()])

    def summarise(self, sums: Float[Tensor, " sums"]) -> dict[str, float]:
        """Loss, pixel accuracy, and IoU of the whole set, mean over the classes that occur."""
        loss, counted = sums[:2].tolist()
        confusion = sums[2:].reshape(self.num_classes, self.num_classes).long().cpu().numpy()
        intersections = confusion.diagonal()
        unions = confusion.sum(0) + confusion.sum(1) - intersections
        return {
            "validation_loss": loss / max(counted, 1),
            "validation_accuracy": float(pixel_accuracy(intersections, unions)),
            "validation_miou": float(mean_iou(intersections, unions)),
        }

    def _summed(self, logits: Logits, masks: Masks, smoothing: float) -> Float[Tensor, ""]:
        full = upsample(logits.float(), _size(masks))
        return F.cross_entropy(full, masks.long(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)


def _size(masks: Masks) -> tuple[int, int]:
    return int(masks.shape[1]), int(masks.shape[2])


PROBABILITY = 0.1
"""Of each of the three changes, for each patch."""
SMALLEST_CROP = 0.85
"""Share of a patch's area that a crop keeps at least."""
NOISE = 0.01
"""Standard deviation of the noise, in units of the normalised image."""


def augment_patches(
    images: Float[Tensor, "batch channels height width"], size: int = 16
) -> Float[Tensor, "batch channels height width"]:
    """Each patch of `size` × `size` pixels: a resized crop, noise and a horizontal flip, each with probability 0.1.

    The result stays in the range of values that each channel of the batch has. Rows and columns that fill no whole patch stay
    as they are. Draws from torch's global generator.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // size, width // size
    inner = images[:, :, : rows * size, : columns * size]
    patches = (
        inner.reshape(batch, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, size, size)
    )
    lowest, highest = (images.transpose(0, 1).flatten(1).aminmax(dim=1)[place].view(-1, 1, 1) for place in (0, 1))
    patches = _cropped(patches)
    noise = torch.randn_like(patches) * NOISE
    patches = torch.where(_chosen(patches), patches + noise, patches)
    patches = torch.where(_chosen(patches), patches.flip(-1), patches)
    patches = torch.minimum(torch.maximum(patches, lowest), highest)
    result = images.clone()
    whole = patches.reshape(batch, rows, columns, channels, size, size).permute(0, 3, 1, 4, 2, 5)
    result[:, :, : rows * size, : columns * size] = whole.reshape(inner.shape)
    return result


def _cropped(patches: Float[Tensor, "patches channels size size"]) -> Float[Tensor, "patches channels size size"]:
    count = len(patches)
    side = torch.empty(count, device=patches.device).uniform_(SMALLEST_CROP, 1.0).sqrt()
    shift = (torch.rand(count, 2, device=patches.device) * 2 - 1) * (1 - side).unsqueeze(1)
    window = torch.zeros(count, 2, 3, device=patches.device)
    window[:, 0, 0] = window[:, 1, 1] = side
    window[:, :, 2] = shift
    grid = F.affine_grid(window, list(patches.shape), align_corners=False)
    crops = F.grid_sample(patches.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return torch.where(_chosen(patches), crops.to(patches.dtype), patches)


def _chosen(patches: Tensor) -> Tensor:
    return torch.rand(len(patches), 1, 1, 1, device=patches.device) < PROBABILITY


PROBE_EVERY = 50
"""Steps between two measurements of the gradients, with `adl: auto`; each costs two more backward passes."""
FIRST_PROBES_EVERY = 5
"""The same until the first measurement that makes sense."""
HIGHEST = 100.0
"""Largest λ that "auto" takes in."""
_MEMORY = 0.7
"""Share of the earlier estimates in a new one, of the logarithm."""


class Diversity:
    """The weight λ of ADL: as the recipe says, rising during its warm-up; with "auto" from the gradients.

    "auto" measures now and then how long the gradients of the task's loss and of ADL are, over all parameters, and sets λ so
    that λ times the second is `adl_share` of the first.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self.recipe = recipe
        self.estimate: float | None = None
        """λ of "auto" before the warm-up's factor; None until it was measured."""
        self._warmup = recipe.adl_warmup * steps_per_epoch

    def weight(self, step: int) -> float:
        """λ at a step, counted from 0."""
        full = (self.estimate or 0.0) if self.recipe.adl == "auto" else float(self.recipe.adl)
        return full * (min(1.0, step / self._warmup) if self._warmup else 1.0)

    @contextmanager
    def watch(self, model: nn.Module, *, active: bool) -> Iterator["Watched | None"]:
        """What `model` attends to inside the block, where ADL takes part."""
        if not (active and self.recipe.diversified):
            yield None
            return
        with diversify(model, self.recipe.adl_layers, self.recipe.adl_threshold) as adl:
            yield Watched(adl, type(model).__name__)

    def due(self, step: int) -> bool:
        """Whether `measure` is to be called at this step."""
        every = FIRST_PROBES_EVERY if self.estimate is None else PROBE_EVERY
        return self.recipe.adl == "auto" and step % every == 0

    def measure(self, task_loss: Tensor, adl_loss: Tensor, model: nn.Module) -> Tensor:
        """The λ that the gradients of this batch ask for; the graph is kept."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        task, adl = (
            torch.stack([gradient.float().norm() for gradient in gradients if gradient is not None]).norm()
            for gradients in (
                torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in (task_loss, adl_loss)
            )
        )
        weight: Tensor = self.recipe.adl_share * task / adl.clamp_min(torch.finfo(torch.float32).tiny)
        return weight

    def learn(self, measured: float) -> None:
        """Take in the λ that the processes measured, averaged over them.

        Left out: what is no number, and λ beyond `HIGHEST`. Where attention is even, as before a model has learned anything, ADL
        has next to no gradient, and the λ to make up for that would be far too high as soon as it has one.
        """
        if not 0 < measured <= HIGHEST:
            return
        before = measured if self.estimate is None else self.estimate
        self.estimate = math.exp(_MEMORY * math.log(before) + (1 - _MEMORY) * math.log(measured))


class Watched:
    """ADL of a forward."""

    def __init__(self, adl: Diversification, model: str) -> None:
        self._adl = adl
        self._model = model

    def loss(self) -> Tensor:
        """The loss, before λ.

        Raises:
            TrainingError: the model has no such layers, or no attention between tokens at all.
        """
        try:
            return self._adl.loss()
        except ValueError as error:
            raise TrainingError(f"adl_layers: {error}") from error
        except NoAttentionError as error:
            raise TrainingError(
                f"adl: no layer of {self._model} attends between tokens, so there is nothing to diversify; leave adl at 0 or "
                "choose another model"
            ) from error
