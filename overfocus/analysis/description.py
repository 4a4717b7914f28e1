"""What run.json says of the model: where it came from, what was captured, and with which versions."""

import hashlib
import importlib.metadata
import platform
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from overfocus.attention import TOKEN_KINDS, AttentionMap
from overfocus.capturing import capture
from overfocus.errors import CaptureError, RunError

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel

_PACKAGES = (
    "torch", "timm", "numpy", "scipy", "scikit-image", "numba", "opencv-python", "opencv-python-headless",
    "imagecorruptions-imaug", "pillow", "pandas", "pyarrow",
)  # fmt: skip


def describe_checkpoint(loaded: "LoadedModel") -> dict[str, Any]:
    """The checkpoint, how it was recognised and what did not match; `weights_sha256` is that of the loaded weights."""
    return {
        "source": loaded.source,
        "sha256": loaded.sha256,
        "weights_sha256": hash_weights(loaded.model),
        "name": loaded.name,
        "found_by": loaded.found_by,
        "weights_entry": loaded.weights_entry,
        "missing_keys": list(loaded.missing_keys),
        "unexpected_keys": list(loaded.unexpected_keys),
        "notes": list(loaded.notes),
        "parameters": loaded.parameters,
        "input_size": list(loaded.input_size),
        "num_classes": loaded.num_classes,
        "mean": list(loaded.mean),
        "std": list(loaded.std),
    }


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of the names, types and values of all parameters and buffers: tells whether two runs measure the same model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Sites:
    """The attention of a model, as one forward shows it."""

    layers: list[dict[str, Any]]
    """The layers over tokens that are to be measured: layer (number in call order), module, kind, grids, heads, …"""
    count: int
    """How many layers over tokens the model has."""
    coverage: list[dict[str, Any]]
    """One row per attention-like module: captured, or the reason why not."""
    partitions: dict[int, Int[np.ndarray, "windows tokens"]]
    """Place of each window's tokens in the row-major patch grid of the image, −1 for padding, by layer of windows."""


def find_sites(model: nn.Module, inputs: Tensor, layers: list[int] | None) -> Sites:
    """Run the model once to see which attention it has; `layers` are those asked for, negative ones counted from the end.

    A module that looks like attention but showed none is warned of; a gate, such as TAP's, is none.

    Raises:
        CaptureError: no attention over tokens was found.
        RunError: a layer that was asked for does not exist.
    """
    with torch.no_grad(), capture(model, reduce=_describe_map) as captured:
        model(inputs)
    found = [row for row in captured.reduced if row is not None]
    coverage = [site.row() for site in captured.coverage]
    silent = [site for site in captured.coverage if not site.captured]
    if not found:
        reasons = (
            "; ".join(sorted({f"{site.module}: {site.reason}" for site in silent})[:3])
            or "it has no attention modules; is it a CNN?"
        )
        raise CaptureError(
            f"no attention over tokens was found in {type(model).__name__} ({reasons}); `overfocus inspect` lists its sites"
        )
    silent = [site for site in silent if site.kind != "gating"]
    if silent:
        names = ", ".join(site.module for site in silent[:4]) + (" …" if len(silent) > 4 else "")
        warnings.warn(
            f"{len(silent)} attention modules gave no map and are not measured: {names} ({silent[0].reason})", stacklevel=3
        )
    partitions = {number: row.pop("partition") for number, row in enumerate(found)}
    numbered = [{"layer": number} | row for number, row in enumerate(found)]
    if layers is None:
        return Sites(numbered, len(found), coverage, _known(partitions))
    if wrong := [number for number in layers if not -len(found) <= number < len(found)]:
        raise RunError(
            f"layers must be between {-len(found)} and {len(found) - 1} for this model, got {', '.join(map(str, wrong))}"
        )
    chosen = {number % len(found) for number in layers}
    partitions = {number: partitions[number] for number in sorted(chosen)}
    return Sites([row for row in numbered if row["layer"] in chosen], len(found), coverage, _known(partitions))


def _known(partitions: dict[int, Tensor | None]) -> dict[int, Int[np.ndarray, "windows tokens"]]:
    return {number: partition.cpu().numpy().astype(np.int32) for number, partition in partitions.items() if partition is not None}


def _describe_map(attention: AttentionMap) -> dict[str, Any] | None:
    if attention.kind not in TOKEN_KINDS:
        return None
    return {
        "module": attention.module,
        "kind": attention.kind,
        "branch": attention.branch,
        "grid": attention.grid,
        "key_grid": attention.key_grid,
        "image_grid": attention.image_grid,
        "prefix_tokens": attention.prefix_tokens,
        "key_prefix_tokens": attention.key_prefix_tokens,
        "windows": attention.windows,
        "heads": attention.shape[1],
        "queries": attention.shape[2],
        "keys": attention.shape[3],
        "partition": attention.partition,
    }
