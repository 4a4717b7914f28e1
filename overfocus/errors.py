"""What overfocus raises: one root, one class per part of the route from checkpoint to run."""


class OverfocusError(Exception):
    """Root of every error that overfocus raises about what it was given; its text is one line that a user can act on."""

    setting: str | None = None
    """Name of the argument that it is about, where it is about one."""


class CheckpointError(OverfocusError):
    """A checkpoint cannot be read, trusted, recognised or loaded."""


class CaptureError(OverfocusError):
    """Attention cannot be captured, or what was captured is no attention (NaN, rows that do not sum to 1)."""


class ImageError(OverfocusError):
    """An image or a set of images cannot be read."""


class CorruptionError(OverfocusError, ValueError):
    """A corruption or severity does not exist."""


class RunError(OverfocusError):
    """A run folder cannot be written, read, continued or compared."""


class TrainingError(OverfocusError):
    """A model cannot be trained as asked, or its training went wrong."""
