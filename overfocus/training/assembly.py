"""The model, its objective and its pictures, put together for what was asked for."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from overfocus.errors import TrainingError
from overfocus.segmentation.inference import Inference, only_size, usual_stride
from overfocus.training.augmentation import Augmentation
from overfocus.training.classification import Classification
from overfocus.training.initialisation import fill_from
from overfocus.training.mask_augmentation import MaskAugmentation
from overfocus.training.masked_autoencoder import MaskedAutoencoder
from overfocus.training.masked_autoencoding import MaskedAutoencoding
from overfocus.training.material import Material
from overfocus.training.objective import Objective
from overfocus.training.randomness import seed_all
from overfocus.training.recipe import Recipe
from overfocus.training.samples import Sample
from overfocus.training.segmentation import Segmentation
from overfocus.training.settings import MASKED_AUTOENCODING, SEGMENTATION, TrainSettings


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
