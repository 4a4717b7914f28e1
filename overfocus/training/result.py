"""What a finished training leaves: the model, the curves, and the status in training.json."""

import json
from dataclasses import asdict
from pathlib import Path

from overfocus.checkpoints.save import save_checkpoint
from overfocus.training.curves import draw_curves
from overfocus.training.folder import write_info
from overfocus.training.log import read_log
from overfocus.training.loop import Trainer
from overfocus.training.material import Material


def write_result(trainer: Trainer, material: Material, *, seed: int, folder: Path) -> None:
    """model.safetensors, curves.png, and the status in training.json."""
    info = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    log = read_log(folder / "log.csv")
    last = log.iloc[-1]
    described = {
        "recipe": json.dumps(asdict(trainer.recipe)),
        "seed": str(seed),
        "training_images": str(len(material.chosen)),
        "weights": "averaged (EMA)" if trainer.average is not None else "last step",
    }
    for name in ("validation_loss", "validation_accuracy", "validation_miou"):
        if last.notna()[name]:
            described[name] = f"{last[name]:.5f}"
    architecture = material.architecture
    save_checkpoint(
        trainer.objective.network(trainer.result),
        folder / "model.safetensors",
        architecture=architecture.name,
        model_args=architecture.arguments,
        tap=architecture.tap,
        class_names=material.class_names or None,
        class_colours=material.class_colours,
        preprocess=material.preprocess,
        extra=described,
    )
    draw_curves(folder / "log.csv", folder / "curves.png", trainer.objective.unit)
    write_info(folder, info | {"status": "complete"})
