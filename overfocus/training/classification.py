"""What a classifier is trained for: cross-entropy, with images blended by mixup and cutmix."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from overfocus.training.objective import Part
from overfocus.training.patch_augmentation import augment_patches
from overfocus.training.recipe import Recipe


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
        # RVT's step: the augmented pictures with the plain criterion, then the others with ADL
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
