"""Read a checkpoint file without running anything that it contains.

PyTorch files go through `torch.load(weights_only=True)`, which knows tensors and plain containers and nothing else; the
allow-list below adds what trainers put beside the weights: an `argparse.Namespace` and numpy's scalars. PyTorch older than
2.6 is no safe reader (CVE-2025-32434), which is why it is no dependency of this project.
"""

import argparse
import hashlib
import pickle
import struct
import threading
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from overfocus.checkpoints.formats import foreign_format
from overfocus.checkpoints.messages import first_line, some
from overfocus.errors import CheckpointError

_READING = threading.Lock()  # torch's list of allowed globals is one for the process
_LARGEST_CLAIM = 8  # shared and transposed storages make tensors somewhat larger than their file; a bomb is far above


@dataclass(frozen=True)
class CheckpointFile:
    """What a file holds: nested containers with tensors, and text metadata (safetensors only)."""

    path: Path
    content: dict[str, Any] = field(repr=False)
    metadata: dict[str, str]
    sha256: str


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read one `.pth`, `.pt`, `.pth.tar`, `.bin` or `.safetensors` file; what it is is told from its content.

    Raises:
        CheckpointError: the file is missing, truncated, no checkpoint, or asks for more than tensors and plain data.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint file or folder, found nothing there; check the path")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: expected a checkpoint, got an empty file; copy or download it again")
    with path.open("rb") as stream:
        start = stream.read(512)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        content, metadata = _read_safetensors(path)
    else:
        foreign = foreign_format(start)
        if foreign:
            raise CheckpointError(f"{path}: expected a PyTorch or safetensors checkpoint, got {foreign}")
        content, metadata = _read_torch(path), {}
    _refuse_bomb(content, path)
    return CheckpointFile(path, content, metadata, sha256(path))


def sha256(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits; the file is streamed."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as reader:
            return {name: reader.get_tensor(name) for name in reader.keys()}, reader.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: no whole safetensors file ({first_line(error)}); copy or download it again") from None


def _read_torch(path: Path) -> dict[str, Any]:
    zipped = _begins_as_archive(path)
    if zipped:
        _check_archive(path)
    try:
        with _READING, torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged or hostile file may raise anything; every way ends in one line
        raise _refusal(path, error, zipped) from None
    if isinstance(content, torch.Tensor) or not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a state dict or a dict that holds one, got {type(content).__name__}")
    return content


def _allowed() -> list[Any]:
    """`argparse.Namespace` and numpy's scalars, under the names that numpy 1 and numpy 2 write."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [argparse.Namespace, np.dtype, *dtypes, *[(scalar, name) for name in names]]


def _refusal(path: Path, error: Exception, zipped: bool) -> CheckpointError:
    wanted: list[str] = []
    if zipped:
        try:
            with torch.serialization.safe_globals(_allowed()):
                wanted = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        except Exception:  # the same damaged file once more
            wanted = []
    text = str(error)
    if not wanted and "GLOBAL " in text:
        wanted = [text.split("GLOBAL ", 1)[1].split()[0]]
    if wanted:
        return CheckpointError(
            f"{path}: refused, its pickle wants {some(wanted)}, which could run code; if you trust its source, convert it: "
            "c = torch.load(file, weights_only=False); torch.save(c['state_dict'], 'weights.pth') (whole model: c.state_dict())"
        )
    if isinstance(error, (pickle.UnpicklingError, EOFError)) and not zipped:
        return CheckpointError(f"{path}: expected a PyTorch or safetensors checkpoint, this is none or it is truncated")
    return CheckpointError(f"{path}: the checkpoint cannot be read ({first_line(error)}); copy or download it again")


def _begins_as_archive(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _check_archive(path: Path) -> None:
    """Refuse TorchScript archives and archives that unpack to more than they are (torch stores without compression)."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointError(f"{path}: truncated or damaged archive ({first_line(error)}); copy or download it again") from None
    names = {entry.filename.partition("/")[2] for entry in entries}
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path}: refused, a compressed archive that unpacks to {unpacked:,} bytes; torch.save writes none")
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise CheckpointError(f"{path}: a TorchScript archive, which holds code; save model.state_dict() instead")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path}: expected a PyTorch checkpoint, got another zip archive (no data.pkl inside)")


def _refuse_bomb(content: dict[str, Any], path: Path) -> None:
    """Refuse tensors that claim more values than the file holds (expanded over a few bytes)."""
    limit = _LARGEST_CLAIM * path.stat().st_size
    for name, tensor in tensors(content):
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout} on {tensor.device}"
            raise CheckpointError(f"{path}: {name} is {kind}; expected plain dense tensors with data")
        limit -= tensor.numel() * tensor.element_size()
    if limit < 0:
        raise CheckpointError(f"{path}: refused, its tensors claim far more data than the file holds")


def tensors(content: object, name: str = "") -> list[tuple[str, torch.Tensor]]:
    """Every tensor in nested dicts and lists, with its path."""
    if isinstance(content, torch.Tensor):
        return [(name, content)]
    items: list[tuple[object, object]] = []
    if isinstance(content, dict):
        items = list(content.items())
    elif isinstance(content, (list, tuple)):
        items = list(enumerate(content))
    return [found for key, value in items for found in tensors(value, f"{name}.{key}" if name else str(key))]
