"""The folder layout of timm models on the Hugging Face hub: `config.json` beside one weights file."""

import json
from pathlib import Path
from typing import Any

from overfocus.checkpoints.formats import foreign_folder
from overfocus.errors import CheckpointError

_WEIGHTS = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "model.bin", "model.pth")


def find_folder(path: Path) -> tuple[Path, dict[str, Any]]:
    """The weights file and the parsed configuration of a folder.

    Raises:
        CheckpointError: one of the two is missing or the configuration is no JSON object.
    """
    foreign = foreign_folder(path)
    if foreign:
        raise CheckpointError(f"{path}: expected a checkpoint file or a folder with config.json and weights, got {foreign}")
    config_path = path / "config.json"
    weights = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if not config_path.is_file():
        advice = f"pass {weights}" if weights else "pass the weights file"
        raise CheckpointError(
            f"{path}: expected a folder with config.json and weights (hub layout), found no config.json; {advice}"
        )
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{config_path}: no readable JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{config_path}: expected a JSON object, got {type(config).__name__}")
    if weights is None:
        shards = " (sharded weights are not read)" if list(path.glob("*.index.json")) else ""
        raise CheckpointError(f"{path}: expected one of {', '.join(_WEIGHTS)} beside config.json, found none{shards}")
    return weights, config
