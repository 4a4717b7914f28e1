"""`inspect`: what a checkpoint is, which attention a model made of it uses, and whether capture of it can be verified."""

from dataclasses import dataclass
from typing import Any

import torch

from overfocus.capturing import capture
from overfocus.checkpoints.load import resolve_model
from overfocus.checkpoints.loaded import LoadedModel
from overfocus.processes import choose_device
from overfocus.settings import takes
from overfocus.sweep.settings import InspectSettings
from overfocus.verification import verify


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found."""

    loaded: LoadedModel
    attention: list[dict[str, Any]]
    """One row for each attention site: module, kind, shape, prefix tokens, grid, captured or the reason why not."""
    verification: dict[str, Any] | None
    """Captured weights × values against what the model produced, row sums, and results with capture and without; None unless
    it was asked for."""

    @property
    def properties(self) -> dict[str, Any]:
        """The checkpoint: source, architecture, input, classes, keys, notes."""
        loaded = self.loaded
        return {
            "source": loaded.source,
            "sha256": loaded.sha256,
            "architecture": loaded.name,
            "found_by": loaded.found_by,
            "weights_entry": loaded.weights_entry,
            "lenient": loaded.lenient,
            "parameters": loaded.parameters,
            "input_size": list(loaded.input_size),
            "mean": list(loaded.mean),
            "std": list(loaded.std),
            "interpolation": loaded.interpolation,
            "crop_pct": loaded.crop_pct,
            "num_classes": loaded.num_classes,
            "class_names": loaded.class_names,
            "missing_keys": loaded.missing_keys,
            "unexpected_keys": loaded.unexpected_keys,
            "notes": list(loaded.notes),
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the properties, the attention sites and, where it was asked for, the verification."""
        checked = {"verification": self.verification} if self.verification else {}
        return self.properties | {"attention": self.attention} | checked


@takes(InspectSettings)
def inspect(settings: InspectSettings) -> Inspection:
    """Show what is in a checkpoint: the architecture and how it was found, the model's input, and every attention site.

    Raises:
        CheckpointError: it cannot be loaded.
        CaptureError: its attention cannot be captured.
    """
    device = choose_device(settings.device or "cpu")
    loaded = resolve_model(settings.checkpoint, device=device, **settings.loading())
    noise = torch.randn(2, *loaded.input_size, generator=torch.Generator().manual_seed(0)).to(device)
    if settings.verify:
        found = verify(loaded.model, noise).as_dict()
        found |= {"every_tensor_used": not loaded.lenient, "passed": found["passed"] and not loaded.lenient}
        return Inspection(loaded, found["coverage"], found)
    with (
        torch.no_grad(),
        capture(loaded.model, reduce=lambda _: None) as captured,
    ):
        loaded.model(noise)
    return Inspection(loaded, [site.row() for site in captured.coverage], None)
