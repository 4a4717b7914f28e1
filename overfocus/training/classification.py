"""What a classifier is trained for: cross-entropy, with images blended by mixup and cutmix."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from overfocus.training.patch_augmentation import augment_patches
from overfocus.training.recipe import Recipe


class Part(NamedTuple):
    """One forward of a step."""

    inputs: Float[Tensor, "batch channels height width"]
    targets: Tensor
    diversified: bool
    """Whether the attention diversification loss is taken of it."""


class Classification:
    """Soft or hard cross-entropy of the logits."""

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

    def parts(self, images: Float[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"]) -> list[Part]:
        """The forwards of a batch, in order; their losses are added. Draws from the global generators."""
        targets: Tensor = labels
        if self._mixup is not None:
            images, targets = self._mixup(images, labels)
        part = Part(images, targets, True)
        if not self.recipe.patch_augmentation:
            return [part]
        # RVT's step: the augmented pictures with the plain criterion, then the others with ADL
        return [Part(augment_patches(images, self.patch_size), targets, False), part]

    def loss(self, logits: Float[Tensor, "batch classes"], targets: Tensor) -> Float[Tensor, ""]:
        """Mean cross-entropy over the batch; `targets` are classes or shares of classes."""
        if targets.ndim == 2:
            return torch.sum(-targets * F.log_softmax(logits.float(), dim=-1), dim=-1).mean()
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.label_smoothing)

    def score(self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, " 2"]:
        """Sums over a validation batch: cross-entropy without smoothing, and images classified right."""
        right = (logits.argmax(-1) == labels).sum()
        return torch.stack([F.cross_entropy(logits.float(), labels, reduction="sum"), right.float()])
