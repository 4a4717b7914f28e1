"""Ending a training where a kill would come, and comparing what two trainings made."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from overfocus.training.loop import Trainer
from overfocus.training.train import Training


class StoppedError(Exception):
    """Raised by tests where a kill would come."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Have every training raise `StoppedError` before this step."""
    original = Trainer._take_step

    def take_step(trainer: Trainer, batches: Iterator[Any]) -> float:
        if trainer.step == step:
            raise StoppedError
        return original(trainer, batches)

    monkeypatch.setattr(Trainer, "_take_step", take_step)


def same_weights(one: Training, other: Training) -> bool:
    """Whether the weights of two trained models are equal, bit for bit."""
    first, second = load_file(one.checkpoint), load_file(other.checkpoint)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
