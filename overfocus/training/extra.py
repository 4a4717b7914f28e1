"""What training and evaluation need beside the package itself."""

import importlib.util

from overfocus.errors import TrainingError

PACKAGES = ("accelerate", "torchmetrics", "yaml")


def require_extra() -> None:
    """Raise a `TrainingError` that says what to install unless the extra `train` is there."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingError(f'training and evaluation need {", ".join(missing)}; install them: pip install "overfocus[train]"')
