"""What a masked autoencoder is trained for: the pixels of the patches that it did not see."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.training.masked_autoencoder import MaskedAutoencoder, Reconstruction
from overfocus.training.objective import Part


class MaskedAutoencoding:
    """Mean squared error of the masked patches, each normalised; labels do not count."""

    unit = "squared error, normalised pixels"
    sums = 2

    def network(self, model: nn.Module) -> nn.Module:
        """The encoder."""
        assert isinstance(model, MaskedAutoencoder)
        return model.encoder

    def parts(self, images: Float[Tensor, "batch channels height width"], targets: Tensor) -> list[Part]:
        """One forward."""
        return [Part(images, targets, True)]

    def loss(self, output: Reconstruction, targets: Tensor) -> Float[Tensor, ""]:
        """Mean over the masked patches of all pictures."""
        del targets
        return self._errors(output).mean()

    def right(self, output: Reconstruction, targets: Tensor) -> Float[Tensor, " 2"]:
        """Nothing can be right."""
        del targets
        return torch.zeros(2, device=output.patches.device)

    def score(self, output: Reconstruction, targets: Tensor) -> Float[Tensor, " 2"]:
        """Sum of the errors of the masked patches, and their number."""
        del targets
        errors = self._errors(output)
        return torch.stack([errors.sum(), torch.ones_like(errors).sum()])

    def summarise(self, sums: Float[Tensor, " 2"]) -> dict[str, float]:
        """validation_loss; 1 is what a decoder that knows nothing gets."""
        error, count = sums.tolist()
        return {"validation_loss": error / count}

    def _errors(self, output: Reconstruction) -> Float[Tensor, " masked"]:
        errors = (output.patches.float() - output.expected).square().mean(-1)
        return errors[output.masked]
