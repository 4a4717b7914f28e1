"""What the summaries of all evaluations have in common: what was evaluated, and the files they go into."""

import json
from collections.abc import Mapping
from typing import Any

from overfocus.evaluation.evaluation import Evaluation
from overfocus.files import atomic_file


def describe_subject(info: Mapping[str, Any]) -> dict[str, Any]:
    """checkpoint, model and data of a run's info.

    data: path, clean (path of the clean pictures of a tree), images, corruptions (how they were made), skipped (pictures).
    """
    return {
        "checkpoint": info["checkpoint"]["source"],
        "model": info["checkpoint"]["name"],
        "data": {
            "images": len(info["images"]),
            "path": info["settings"]["images"],
            "clean": info["settings"].get("clean"),
            "corruptions": info["settings"]["made"],
            "skipped": len(info["skipped"]),
        },
    }


def write_files(evaluation: Evaluation, content: Mapping[str, Any]) -> None:
    """Write `content` as evaluation.json and the table as evaluation.csv into the run folder."""
    with atomic_file(evaluation.path / "evaluation.json") as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False).encode())
    with atomic_file(evaluation.path / "evaluation.csv") as file:
        file.write(evaluation.table.to_csv(index=False).encode())
