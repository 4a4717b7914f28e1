"""How a user asks for pictures to go through segmentation models, and what that means for one model."""

from dataclasses import dataclass, field

from overfocus.checkpoints.loaded import LoadedModel
from overfocus.errors import RunError
from overfocus.segmentation.inference import Inference, only_size, usual_stride

LARGEST_BATCH = 64
_PIXELS_PER_BATCH = 4 * 1024 * 1024
"""So many pixels of windows go through a model at a time where nobody says otherwise."""


@dataclass(frozen=True)
class InferenceSettings:
    """What was asked for, as it stands in run.json.

    Raises:
        RunError: a setting is out of range, or two contradict each other.
    """

    window: int | None = None
    """Side of the windows in pixels; None takes the model's input size."""
    stride: int | None = None
    """From window to window; None takes three quarters of the window."""
    whole: bool = False
    """Take every picture in one forward instead."""
    flip: bool = False
    """Average with what is predicted of the mirrored picture."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Sizes at which each picture is seen, relative to its own; their predictions are averaged."""

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RunError(f"{name} must be at least 1 pixel, got {value}")
        if self.whole and (self.window is not None or self.stride is not None):
            raise RunError("whole pictures have no windows: give whole (--whole) or window and stride, not both")
        if self.window is not None and self.stride is not None and self.stride > self.window:
            raise RunError(
                f"a stride of {self.stride} pixels between windows of {self.window} would leave pixels out; "
                f"give a stride of at most {self.window}"
            )
        if not self.scales or min(self.scales) <= 0:
            raise RunError(f"scales must be above 0, got {self.scales or 'none'}; 0.5 0.75 1 1.25 1.5 1.75 is usual")

    def for_model(self, loaded: LoadedModel, batch_size: int) -> Inference:
        """How pictures go through a model.

        Raises:
            RunError: the model takes inputs of another size than the window only, or the stride is larger than its window.
        """
        only = only_size(loaded.model)
        height, width = loaded.input_size[1:] if self.window is None else (self.window, self.window)
        if self.whole:
            return Inference(None, (1, 1), batch_size, self.flip, tuple(self.scales), only)
        if only is not None and only != (height, width):
            raise RunError(
                f"{loaded.source}: the model takes {only[1]}×{only[0]} pixels only, got windows of {width}×{height}; "
                "leave the window out, or load it for another size with image_size (--image-size)"
            )
        stride = usual_stride((height, width)) if self.stride is None else (self.stride, self.stride)
        if stride[0] > height or stride[1] > width:
            raise RunError(
                f"{loaded.source}: a stride of {self.stride} pixels between windows of {width}×{height} would leave pixels out; "
                f"give a stride of at most {min(height, width)}"
            )
        return Inference((height, width), stride, batch_size, self.flip, tuple(self.scales), only)

    def require_room(self, name: str, size: tuple[int, int]) -> None:
        """Raise a `RunError` where the window that was asked for is larger than a picture of (height, width)."""
        if self.window is not None and self.window > min(size):
            raise RunError(
                f"{name}: a window of {self.window}×{self.window} pixels is larger than the picture ({size[1]}×{size[0]}); "
                f"give a window of at most {min(size)}, or leave it out"
            )

    def describe(self, inference: Inference) -> str:
        """In words, for people."""
        if inference.window is None:
            words = "whole pictures"
        else:
            (height, width), (down, across) = inference.window, inference.stride
            words = f"windows of {width}×{height} pixels, stride {across}×{down}, where a picture is larger"
        if inference.flip:
            words += "; mirrored too"
        if inference.scales != (1.0,):
            words += f"; at {', '.join(f'{scale:g}' for scale in inference.scales)} times its size"
        return words + ("; probabilities averaged" if inference.augmented else "")


def usual_batch(loaded: LoadedModel, window: int | None) -> int:
    """Windows in one forward where nobody says how many: 4 of 1024×1024 pixels, more of smaller ones, at most 64."""
    height, width = loaded.input_size[1:] if window is None else (window, window)
    return max(1, min(LARGEST_BATCH, _PIXELS_PER_BATCH // (height * width)))
