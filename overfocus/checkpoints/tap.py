"""What a state dict says about token-aware average pooling (TAP) that was built into its blocks or added to them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from overfocus.checkpoints.fingerprint import is_tap, is_tap_predictor


def tap_branches(tensors: Mapping[str, Tensor]) -> int | None:
    """Number of branches (K) of the TAP predictors in a state dict, None where there are none."""
    for name, tensor in tensors.items():
        if is_tap_predictor(name) and tensor.ndim == 4:
            return tensor.shape[0]
    return None


def added_tap(tensors: Mapping[str, Tensor], outline: nn.Module) -> dict[str, Any] | None:
    """Arguments of `add_tap` that give an architecture without TAP the TAP that a state dict has; None where it has none."""
    from overfocus.models.add_tap import find_sites

    branches = tap_branches(tensors)
    if branches is None or tap_branches(outline.state_dict()) is not None:
        return None
    names = {module: name for name, module in outline.named_modules()}
    blocks = {name.partition(".dilation_predictor.")[0] for name in tensors if is_tap_predictor(name)}
    layers = [number for number, site in enumerate(find_sites(outline)) if names[site.block] in blocks]
    marks = {name.rpartition(".")[2] for name in tensors if is_tap(name) and not is_tap_predictor(name)}
    pooling = "learned" if "kernels" in marks else next(iter(marks), "average")
    return {"branches": branches, "layers": layers, "pooling": pooling} if layers else None
