"""The folder layout of timm models on the Hugging Face hub: `config.json` beside one weights file."""

import json
import re
from pathlib import Path
from typing import Any

from overfocus.checkpoints.formats import foreign_folder
from overfocus.errors import CheckpointError

_OF_TRANSFORMERS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_WEIGHTS = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "model.bin", "model.pth")


def find_folder(path: Path) -> tuple[Path, dict[str, Any]]:
    """The weights file and the parsed configuration of a folder.

    Raises:
        CheckpointError: one of the two is missing or the configuration is no JSON object.
    """
    foreign = foreign_folder(path)
    if foreign:
        raise CheckpointError(f"{path}: expected a checkpoint file or a folder with config.json and weights, got {foreign}")
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(f"{path}: holds a PEFT adapter; merge it into its base model (merge_and_unload) and save that")
    config_path = path / "config.json"
    weights = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if not config_path.is_file():
        advice = f"pass {weights}" if weights else "pass the weights file"
        raise CheckpointError(
            f"{path}: expected a folder with config.json and weights (hub layout), found no config.json; {advice}"
        )
    config = _read_config(config_path)
    if weights is None:
        shards = " (sharded weights are not read)" if list(path.glob("*.index.json")) else ""
        raise CheckpointError(f"{path}: expected one of {', '.join(_WEIGHTS)} beside config.json, found none{shards}")
    return weights, config


def transformers_folder(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The folder and configuration of a model of Hugging Face transformers that a path leads to; None for anything else."""
    folder = path.parent if path.is_file() and _OF_TRANSFORMERS.fullmatch(path.name) else path
    config_path = folder / "config.json"
    if not config_path.is_file() or (path.is_file() and folder == path):
        return None
    config = _read_config(config_path)
    return (folder, config) if "model_type" in config and "architecture" not in config else None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: no readable JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config
