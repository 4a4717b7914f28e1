"""Runs written by hand, whose numbers are known, and tiny models to measure."""

import json

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from overfocus.checkpoints.loaded import LoadedModel
from overfocus.preprocessing import Preprocess
from overfocus.run import Run

METRICS = ("top_share", "gini", "effective_tokens", "attention_distance", "top_overlap", "attention_cosine", "js_divergence")
STABILITY = ("top_overlap", "attention_cosine", "js_divergence")


def _write_run(
    folder, name="vit", *, images=20, layers=3, grid=(4, 4), variants=(("clean", 0), ("fog", 2), ("fog", 4)), seed=0, shift=0.0,
    settings=None, names=None, size=32, classifier=True, attention=True, info=None, control=True, adjust=None,
):  # fmt: skip
    """A run folder with random metrics, `shift` added to every one of them; `adjust` changes the metrics table."""
    random = np.random.default_rng(seed)
    names = names or [f"{number:03d}.png" for number in range(images)]
    rows, predictions = [], []
    for image, file in enumerate(names):
        for corruption, severity in variants:
            identity = {"image": image, "name": file, "label": "cat", "corruption": corruption, "severity": severity}
            clean = corruption == "clean"
            for layer in range(layers):
                values = {metric: random.uniform() + shift for metric in METRICS}
                values |= dict.fromkeys(STABILITY, np.nan) if clean else {}
                rows.append(identity | {"layer": layer, "module": f"blocks.{layer}", "kind": "global"} | values)
            agreement = np.nan if clean or not classifier else float(random.uniform() < 0.7)
            predictions.append(
                identity
                | {"predicted": 1 if classifier else None, "predicted_name": "cat", "confidence": 0.5, "agreement": agreement}
                | {"confidence_drop": np.nan if clean else random.normal(), "correct": np.nan if not classifier else 1.0}
                | {"output_cosine": np.nan if clean else random.uniform()}
            )
        for layer in range(layers if control else 0):
            identity = {"image": image, "name": file, "label": "cat", "corruption": "other image", "severity": 0}
            values = dict.fromkeys(METRICS, np.nan) | {metric: random.uniform() + shift for metric in STABILITY}
            rows.append(identity | {"layer": layer, "module": f"blocks.{layer}", "kind": "global"} | values)
    if adjust is not None:
        rows = adjust(pd.DataFrame(rows))
    for kind, table in (("metrics", rows), ("predictions", predictions)) if attention else (("predictions", predictions),):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        frame = pd.DataFrame(table)
        if kind == "predictions":
            frame["predicted"] = frame["predicted"].astype("Int64")
        frame.to_parquet(folder / kind / "part-00000.parquet")
    tokens = grid[0] * grid[1]
    corrupted = list(dict.fromkeys(["fog", *(corruption for corruption, _ in variants if corruption != "clean")]))
    layer_rows = [
        {"layer": number, "module": f"blocks.{number}", "kind": "global", "branch": None, "grid": grid, "key_grid": grid,
         "image_grid": grid, "prefix_tokens": 1, "key_prefix_tokens": 1, "windows": 1, "heads": 2, "queries": tokens + 1,
         "keys": tokens + 1}
        for number in range(layers)
    ]  # fmt: skip
    described = {
        "format": 1,
        "overfocus": "0.1.0",
        "status": "complete",
        "done": len(names),
        "settings": {"seed": 0, "top_fraction": 0.125, "corruptions": corrupted, "severities": [2, 4]} | (settings or {}),
        "checkpoint": {"name": name, "source": f"{name}.pth", "input_size": [3, size, size]},
        "pixels": {"height": size, "width": size, "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"},
        "attention_layers": layers,
        "class_names": None,
        "images": [{"image": number, "name": file, "label": "cat"} for number, file in enumerate(names)],
        "layers": layer_rows,
        "skipped": [],
        "displayed": [],
    }
    if not attention:
        described |= {"kind": "evaluation", "layers": []}
        del described["pixels"]
    (folder / "run.json").write_text(json.dumps(described | (info or {})))
    return Run(folder)


@pytest.fixture
def write_run(tmp_path):
    """Write a run: `write_run("a", images=20, layers=3, shift=0.1, …)`."""
    return lambda name, **options: _write_run(tmp_path / name, name, **options)


@pytest.fixture
def make_loaded():
    """Make a tiny model: `make_loaded("a", seed=0, size=32, depth=2)`."""

    def make(name, *, seed=0, size=32, depth=2, sharp=15.0, crop_pct=1.0):
        torch.manual_seed(seed)
        model = timm.models.VisionTransformer(
            img_size=size, patch_size=8, embed_dim=32, depth=depth, num_heads=2, num_classes=5
        ).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "qkv.weight" in key:
                    parameter.mul_(sharp)
        statistics = (0.5,) * 3
        return LoadedModel(
            model=model, preprocess=Preprocess((3, size, size), statistics, statistics, crop_pct=crop_pct), name=name,
            source="made for tests", sha256=None, found_by="test", weights_entry="random", missing_keys=[], unexpected_keys=[],
            notes=[], class_names=None,
        )  # fmt: skip

    return make


@pytest.fixture
def photos(tmp_path):
    """Twelve smooth random images in two class folders."""
    folder = tmp_path / "photos"
    for index in range(12):
        small = Image.fromarray(np.random.default_rng(index).integers(0, 256, (6, 6, 3)).astype(np.uint8))
        path = folder / ("cat" if index < 6 else "dog") / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((48, 40), Image.Resampling.BICUBIC).save(path)
    return folder
