"""Prediction: does the model's output follow what happens to the image."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def agreement(clean: Float[Tensor, "batch classes"], corrupted: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch"]:
    """1 where the corrupted image gets the same top-1 class as the clean one, else 0; both are logits or probabilities.

    >>> agreement(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([0.])
    """
    return (clean.argmax(-1) == corrupted.argmax(-1)).float()


def confidence_drop(clean: Float[Tensor, "batch classes"], corrupted: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch"]:
    """Probability of the clean image's top-1 class minus its probability under corruption; both are logits.

    Range −1 … 1; high means that the model has lost its confidence.

    >>> confidence_drop(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([0.5000])
    """
    before, after = torch.softmax(clean.float(), -1), torch.softmax(corrupted.float(), -1)
    predicted = before.argmax(-1, keepdim=True)
    return (before.gather(-1, predicted) - after.gather(-1, predicted)).squeeze(-1)


def correct(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """1 where the top-1 class is the label, else 0.

    >>> correct(torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
    tensor([1.])
    """
    return (logits.argmax(-1) == labels).float()
