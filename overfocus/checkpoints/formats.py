"""Tell what a file or folder is: the forms that are not read, and folders with a configuration beside the weights."""

import codecs
import re
from pathlib import Path
from typing import Any

from overfocus.errors import CheckpointError
from overfocus.files import read_json

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves; run `git lfs pull`"),
    (b"\x89HDF", "an HDF5 file (Keras weights), which overfocus cannot read"),
    (b"\x93NUMPY", "a numpy array; save a state dict with torch.save"),
    (b"GGUF", "a GGUF file, which overfocus cannot read"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x89PNG", "a PNG image; pass images with --images"),
    (b"\xff\xd8\xff", "a JPEG image; pass images with --images"),
    (b"\x08\x07", "an ONNX model; load the PyTorch weights that it was made from"),
    (b"\x08\x08", "an ONNX model; load the PyTorch weights that it was made from"),
    (b"%PDF", "a PDF"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it first"),
)
_AT_FOUR = {
    b"ET12": "an ExecuTorch program, which overfocus cannot read; pass the weights that it was exported from",
    b"ET13": "an ExecuTorch program, which overfocus cannot read; pass the weights that it was exported from",
    b"TFL3": "a TensorFlow Lite model, which overfocus cannot read",
}
_ENDINGS = {
    ".msgpack": "Flax weights (msgpack), which overfocus cannot read; convert them to PyTorch's",
    ".pte": "an ExecuTorch program, which overfocus cannot read; pass the weights that it was exported from",
    ".onnx": "an ONNX model; pass the PyTorch weights that it was made from",
    ".keras": "a Keras model, which overfocus cannot read",
    ".h5": "an HDF5 file (Keras weights), which overfocus cannot read",
    ".tflite": "a TensorFlow Lite model, which overfocus cannot read",
    ".mlmodel": "a Core ML model, which overfocus cannot read",
    ".distcp": "one part of a distributed checkpoint; merge it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save",
    ".engine": "a TensorRT engine, which overfocus cannot read",
    ".pdparams": "weights of PaddlePaddle, which overfocus cannot read",
    ".gguf": "a GGUF file, which overfocus cannot read",
    ".index": "the index of a TensorFlow checkpoint, which overfocus cannot read",
}
_FOLDERS = (
    (("*.distcp", ".metadata", "*/*.distcp"), "a distributed checkpoint of PyTorch; merge it first: "
     "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth"),
    (("mp_rank_*_model_states.pt", "*/mp_rank_*_model_states.pt", "zero_to_fp32.py"), "a DeepSpeed checkpoint; merge it first: "
     "python zero_to_fp32.py . weights (the script is in the folder)"),
    (("_METADATA", "manifest.ocdbt", "_CHECKPOINT_METADATA"), "an Orbax checkpoint of JAX, which overfocus cannot read"),
    (("saved_model.pb", "*.data-00000-of-*"), "a TensorFlow checkpoint, which overfocus cannot read"),
    (("Data/com.apple.CoreML",), "a Core ML package, which overfocus cannot read"),
)  # fmt: skip
OF_TRANSFORMERS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_OF_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_WEIGHTS = (
    *("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"),
    *("model.bin", "model.pth"),
)
_PROTOCOL = 0x80  # a pickle of protocol 2 or later, as torch writes, begins with this byte


def foreign_format(start: bytes, suffix: str = "") -> str | None:
    """Name the format that `start`, the first bytes of a file, belongs to; None where it may be a checkpoint."""
    if suffix.lower() in _ENDINGS:
        return _ENDINGS[suffix.lower()]
    if start[4:8] in _AT_FOUR:
        return _AT_FOUR[start[4:8]]
    if re.match(rb"[\x81-\x8f][\xa0-\xbf]", start):  # a map whose first key is a short text
        return _ENDINGS[".msgpack"]
    if re.match(rb"\x08[\x01-\x20][\x12\x1a\x22\x3a]", start):  # version of the format, then a text
        return _ENDINGS[".onnx"]
    if re.fullmatch(r"\.data-\d+-of-\d+", suffix):
        return "one part of a TensorFlow checkpoint, which overfocus cannot read"
    for signature, name in _SIGNATURES:
        if start.startswith(signature):
            return name
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if start[:1] == bytes([_PROTOCOL]):
        return None
    if b"\0" in start:
        return None
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start).lstrip().lower()  # the last letter may be cut
    except UnicodeDecodeError:
        return None
    if text.startswith(("<!doctype", "<html")):
        return "a web page; the download went wrong, fetch the file itself"
    return "a text file"


def foreign_folder(folder: Path) -> str | None:
    """Name what a folder is that is no model of timm or transformers."""
    for patterns, name in _FOLDERS:
        if any(next(folder.glob(pattern), None) is not None for pattern in patterns):
            return name
    return None


def find_folder(path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """The weights file of a folder, the file of its configuration and what that says.

    Raises:
        CheckpointError: one of the two is missing or the configuration is no JSON object.
    """
    foreign = foreign_folder(path)
    if foreign:
        raise CheckpointError(f"{path}: expected a checkpoint file or a folder with config.json and weights, got {foreign}")
    weights = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    config_path = path / _configuration_of(weights)
    if not config_path.is_file():
        others = sorted(
            item for ending in ("safetensors", "pth", "pt", "bin", "tar", "ckpt") for item in path.glob(f"*.{ending}")
        )
        found = weights or next(iter(others), None)
        advice = f"pass {found}" if found else "pass the weights file" if any(path.iterdir()) else "the folder is empty"
        raise CheckpointError(
            f"{path}: expected a folder with config.json and weights (hub layout), found no config.json; {advice}"
        )
    config = read_json(config_path, "the configuration of a model", CheckpointError)
    if weights is None:
        shards = " (sharded weights are not read)" if list(path.glob("*.index.json")) else ""
        raise CheckpointError(f"{path}: expected one of {', '.join(_WEIGHTS)} beside {config_path.name}, found none{shards}")
    return weights, config_path, config


def _configuration_of(weights: Path | None) -> str:
    return "open_clip_config.json" if weights is not None and weights.name.startswith("open_clip_") else "config.json"


def configuration_beside(file: Path) -> tuple[Path, dict[str, Any]] | None:
    """Where and what the configuration of timm or OpenCLIP is beside a weights file of their names; None if there is none.

    Raises:
        CheckpointError: it is no JSON object.
    """
    path = file.parent / _configuration_of(file)
    if file.name not in _WEIGHTS or not path.is_file():
        return None
    config = read_json(path, "the configuration of a model", CheckpointError)
    return (path, config) if "architecture" in config or "model_cfg" in config else None


def transformers_folder(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The folder and configuration of a model of Hugging Face transformers that a path leads to; None for anything else."""
    folder = path.parent if path.is_file() and OF_TRANSFORMERS.fullmatch(path.name) else path
    config_path = folder / "config.json"
    if not config_path.is_file() or (path.is_file() and folder == path):
        return None
    config = read_json(config_path, "the configuration of a model", CheckpointError)
    return (folder, config) if "model_type" in config and "architecture" not in config else None


def adapter_folder(path: Path) -> tuple[Path, Path, dict[str, Any]] | None:
    """The folder, weights and configuration of a PEFT adapter that a path leads to; None for anything else.

    Raises:
        CheckpointError: the configuration is no JSON object, or no weights are beside it.
    """
    folder = path.parent if path.is_file() and path.name in _OF_ADAPTERS else path
    if not (folder / "adapter_config.json").is_file() or (path.is_file() and folder == path):
        return None
    weights = next((folder / name for name in _OF_ADAPTERS if (folder / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"{folder}: a PEFT adapter without its weights; expected {' or '.join(_OF_ADAPTERS)} in it")
    return folder, weights, read_json(folder / "adapter_config.json", "the configuration of an adapter", CheckpointError)
