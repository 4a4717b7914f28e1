"""A synthetic run folder: attention with bright columns in deep layers, written file by file as `overfocus analyze` writes it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch

from overfocus.run import Run

Array = np.ndarray[Any, Any]

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores, and so do the programs that they start
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# how fast examples come depends on what else the machine does
hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")


def attention_of(rng: np.random.Generator, side: int, layers: int, shake: float) -> list[Array]:
    """Attention (queries, keys) per layer with one class token: local at first, later on a few tokens that `shake` moves."""
    tokens = side * side
    rows, columns = np.divmod(np.arange(tokens), side)
    distance = np.hypot(rows[:, None] - rows, columns[:, None] - columns)
    favourite = rng.choice(tokens, max(2, tokens // 40), replace=False)
    moved = np.where(rng.random(len(favourite)) < shake, rng.choice(tokens, len(favourite)), favourite)
    maps = []
    for layer in range(layers):
        depth = layer / max(1, layers - 1)
        scores = np.full((tokens + 1, tokens + 1), -1.0)
        scores[1:, 1:] = -distance * (1.2 - depth)
        scores[:, 1 + moved] += 5 * depth**2
        scores += rng.normal(0, 0.5 + shake / 2, scores.shape)
        weights = np.exp(scores)
        maps.append(weights / weights.sum(1, keepdims=True))
    return maps


def received_of(weights: Array) -> Array:
    """Share of the attention among patches that each patch receives, (tokens,)."""
    columns: Array = weights[1:, 1:].sum(0)
    return columns / columns.sum()


def metrics_of(weights: Array) -> dict[str, float]:
    """Values of the right size for one map."""
    received, patches = received_of(weights), weights[1:, 1:]
    rows = patches / patches.sum(1, keepdims=True)
    units = patches / np.linalg.norm(patches, axis=1, keepdims=True)
    tokens, ordered = len(received), np.sort(received)
    top = max(1, round(0.05 * tokens))
    cosine = (np.square(units.sum(0)).sum() - tokens) / (tokens * (tokens - 1))
    return {
        "top_share": ordered[-top:].sum(),
        "max_ratio": tokens * ordered[-1],
        "gini": float(((2 * np.arange(1, tokens + 1) - tokens - 1) * ordered).sum() / tokens),
        "effective_tokens": np.exp(-(received * np.log(received)).sum()) / tokens,
        "row_entropy": -(rows * np.log(rows)).sum(1).mean() / np.log(tokens),
        "prefix_share": weights[1:, 0].mean(),
        "token_cosine": cosine,
        "diversification": cosine**0.5,
        "attention_distance": 3 * (1 - cosine),
    }


def stability_of(clean: Array, corrupted: Array) -> dict[str, float]:
    """Values of the right size for a pair of maps."""
    before, after = received_of(clean), received_of(corrupted)
    top = max(1, round(0.05 * len(before)))
    kept = set(np.argsort(-before, kind="stable")[:top]) & set(np.argsort(-after, kind="stable")[:top])
    norms = np.linalg.norm(clean, axis=1) * np.linalg.norm(corrupted, axis=1)
    shift = 0.5 * np.abs(before - after).sum()
    return {
        "top_overlap": len(kept) / top,
        "rank_correlation": float(np.corrcoef(before.argsort().argsort(), after.argsort().argsort())[0, 1]),
        "attention_cosine": float(((clean * corrupted).sum(1) / norms).mean()),
        "js_divergence": shift**1.5,
        "received_shift": shift,
    }


def write_run(
    folder: Path,
    *,
    images: int = 6,
    corruptions: tuple[str, ...] = ("gaussian_noise", "fog"),
    severities: tuple[int, ...] = (1, 3),
    layers: int = 4,
    side: int = 6,
    displayed: int = 3,
    pixels: int = 48,
    names: tuple[str, ...] = (),
    class_names: tuple[str, ...] | None = ("tabby cat", "lynx", "coffee mug"),
    heads: int = 0,
    labels: bool = False,
    contents: list[Array] | None = None,
    control: bool = True,
    overrides: dict[str, Any] | None = None,
) -> Path:
    """Write a complete run folder and return it; `control` compares each clean image with the next one, as "other image"."""
    for name in ("metrics", "predictions", "maps"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    variants = [("clean", 0), *[(corruption, severity) for corruption in corruptions for severity in severities]]
    described = [
        {"layer": i, "module": f"blocks.{i}.attn", "kind": "global", "grid": [side, side], "key_grid": [side, side]}
        | {"image_grid": [side, side], "prefix_tokens": 1, "key_prefix_tokens": 1, "windows": 1, "heads": 3}
        | {"queries": side**2 + 1, "keys": side**2 + 1, "branch": None}
        for i in range(layers)
    ]
    image_names = [names[i] if i < len(names) else f"folder/picture {i}.png" for i in range(images)]
    metric_rows, prediction_rows = [], []
    kept: dict[str, list[Any]] = {"image": [], "corruption": [], "severity": []} | {f"layer_{i:02d}": [] for i in range(layers)}
    for image in range(images):
        identity = {"image": image, "name": image_names[image], "label": "tabby cat" if labels else None}
        full: list[list[Array]] = []
        control_rows: list[dict[str, Any]] = []
        other = attention_of(np.random.default_rng((image + 1) % images), side, layers, 0.0)
        for corruption, severity in variants:
            where = identity | {"corruption": corruption, "severity": severity}
            shake = 0.15 * severity * (1 + corruptions.index(corruption)) / len(corruptions) if severity else 0.0
            maps = attention_of(np.random.default_rng(image), side, layers, shake)
            full.append(maps)
            for layer, weights in enumerate(maps):
                stability = stability_of(full[0][layer], weights)
                values = metrics_of(weights) | (stability if severity else dict.fromkeys(stability, np.nan))
                row = where | {"layer": layer, "module": described[layer]["module"], "kind": "global"}
                metric_rows += [row | ({"head": head} if heads else {}) | values for head in range(max(1, heads))]
                kept[f"layer_{layer:02d}"].append(received_of(weights).reshape(side, side).astype("float32"))
            for key, value in (("image", image), ("corruption", corruption), ("severity", severity)):
                kept[key].append(value)
            if control and not severity and images > 1:
                for layer in range(layers):
                    values = dict.fromkeys(metrics_of(maps[layer]), np.nan) | stability_of(maps[layer], other[layer])
                    row = identity | {"corruption": "other image", "severity": 0}
                    row |= {"layer": layer, "module": described[layer]["module"], "kind": "global"}
                    control_rows += [row | ({"head": head} if heads else {}) | values for head in range(max(1, heads))]
            flipped = bool(severity) and (image + severity) % 3 == 0
            predicted = 1 if flipped else 0
            known = class_names is not None
            prediction_rows.append(
                where
                | {"predicted": predicted if known else None, "predicted_name": class_names[predicted] if class_names else None}
                | {"confidence": 0.9 - 0.1 * severity if known else None, "agreement": float(not flipped) if known else None}
                | {"confidence_drop": 0.1 * severity if known else None, "output_cosine": 1 - 0.1 * severity}
                | {"correct": float(not flipped) if labels else None}
            )
        metric_rows += control_rows
        if image < displayed:
            rng = np.random.default_rng(image)
            pixels_of_image = (
                contents[image] if contents else rng.integers(0, 256, (8, 8, 3)).repeat(pixels // 8, 0).repeat(pixels // 8, 1)
            )
            noisy = [
                np.clip(pixels_of_image + rng.normal(0, 15 * severity, pixels_of_image.shape), 0, 255) for _, severity in variants
            ]
            attention = {
                f"attention_{i:02d}": np.stack([maps[i][None] for maps in full]).astype("float16") for i in range(layers)
            }
            np.savez_compressed(
                folder / "maps" / f"image-{image}.npz",
                corruption=np.array([name for name, _ in variants]),
                severity=np.array([severity for _, severity in variants]),
                pictures=np.stack(noisy).astype("uint8"),
                **attention,
            )
    np.savez_compressed(folder / "maps" / "received-00000.npz", **{name: np.array(values) for name, values in kept.items()})
    pd.DataFrame(metric_rows).to_parquet(folder / "metrics" / "part-00000.parquet")
    pd.DataFrame(prediction_rows).to_parquet(folder / "predictions" / "part-00000.parquet")
    settings = {"images": "photos", "corruptions": list(corruptions), "severities": list(severities), "seed": 0, "batch_size": 4}
    settings |= {"top_fraction": 0.05, "layers": None, "per_head": bool(heads), "limit": None, "amp": False, "device": "cpu"}
    checkpoint = {"source": "ckpt.pth", "sha256": "ab" * 32, "name": "vit_tiny_patch16_224", "found_by": "the shapes"}
    checkpoint |= {
        "weights_entry": "state_dict_ema",
        "missing_keys": [],
        "unexpected_keys": ["ema.decay"],
        "notes": ["EMA weights"],
    }
    checkpoint |= {
        "parameters": 5_717_416,
        "input_size": [3, pixels, pixels],
        "num_classes": 3,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    coverage = [
        {"module": row["module"], "class_name": "Attention", "kind": "global", "shape": [1, 3, side**2 + 1, side**2 + 1]}
        | {"captured": True, "reason": None, "branch": None, "grid": [side, side], "key_grid": [side, side]}
        | {"prefix_tokens": 1, "windows": 1}
        for row in described
    ]
    info = {
        "format": 1,
        "overfocus": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "status": "complete",
        "settings": settings | {"workers": 0, "strict": False, "image_size": None},
        "checkpoint": checkpoint,
        "class_names": list(class_names) if class_names else None,
        "coverage": coverage,
        "layers": described,
        "images": [
            {"image": i, "name": name, "path": f"/photos/{name}", "label": None, "width": pixels, "height": pixels}
            for i, name in enumerate(image_names)
        ],
        "skipped": [{"name": "broken.jpg", "reason": "truncated"}],
        "displayed": list(range(min(displayed, images))),
        "notes": [],
        "done": images,
        "versions": {"python": "3.11", "torch": "2.14"},
        "timing": {"seconds": 12.5, "images_per_second": 5.1},
    }
    (folder / "run.json").write_text(json.dumps(info | (overrides or {})))
    return folder


@pytest.fixture(scope="session")
def synthetic_run() -> Callable[..., Path]:
    """`synthetic_run(folder, **options)` writes a complete run folder and returns it."""
    return write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Make a run folder with the given size, names and classes, and open it."""

    def make(**options: Any) -> Run:
        return Run(write_run(tmp_path / "run", **options))

    return make


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small complete run that tests only read."""
    return Run(write_run(tmp_path_factory.mktemp("reports") / "run"))
