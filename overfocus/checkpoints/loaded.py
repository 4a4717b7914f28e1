"""What `load_model` gives back."""

from dataclasses import dataclass, field

from torch import nn

from overfocus.preprocessing import Preprocess


@dataclass
class LoadedModel:
    """A model with what is known about where it came from and how its input is made."""

    model: nn.Module = field(repr=False)
    """In eval mode, on the device asked for."""
    preprocess: Preprocess = field(repr=False)
    name: str
    """Architecture, e.g. "vit_small_patch16_224"."""
    source: str
    sha256: str | None
    """Of the weights file; None for a model that timm downloaded or made."""
    found_by: str
    """How the architecture was found: "asked for", "args.model", "shapes" …"""
    weights_entry: str
    """Which weights of the file were taken, e.g. "state_dict_ema"."""
    missing_keys: list[str]
    unexpected_keys: list[str]
    notes: list[str]
    """What a user should know: assumptions, resampled tables, other architectures that fit."""
    class_names: list[str] | None = field(repr=False)
    class_colours: list[list[int]] | None = field(default=None, repr=False)
    """RGB of 0 … 255 of each class, where a segmentation's checkpoint says it."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.preprocess.input_size

    @property
    def num_classes(self) -> int:
        """Classes of the classifier; 0 where the model gives features."""
        return int(getattr(self.model, "num_classes", 0) or 0)

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean that is subtracted from each channel, of values in [0, 1]."""
        return self.preprocess.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation that each channel is divided by."""
        return self.preprocess.std

    @property
    def interpolation(self) -> str:
        """How pictures are resized."""
        return self.preprocess.interpolation

    @property
    def crop_pct(self) -> float:
        """Side of the crop divided by the side that the picture was resized to."""
        return self.preprocess.crop_pct
