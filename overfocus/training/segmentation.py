"""What a segmentation model is trained for: cross-entropy of every pixel."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from overfocus.datasets.masks import IGNORED
from overfocus.segmentation.prediction import class_map, upsample
from overfocus.segmentation.scores import mean_iou, pixel_accuracy
from overfocus.training.objective import Part
from overfocus.training.recipe import Recipe

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
        # picture by picture: the logits of one at full size may take 80 MB
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
