"""Rebuild checkpoints in their authors' layouts from facts, and print what becomes of every layout tried.

    python -m tests.scripts.layouts > table.md

A case of `tests/data/layouts` says names and shapes of the original network, what stands around it in the file, and what the
original computed; the weights follow from the names (`value_of`). The table is the one in `overfocus/checkpoints/README.md`.
"""

import argparse
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import overfocus
from tests.scripts.layouts_made import ALIKE, LEFT_OVER, MAKERS, PARTS, Made, alike, behind, of_timm, saved, vit

FACTS = Path(__file__).parents[1] / "data" / "layouts"
Arrays = dict[str, np.ndarray]
_FIRST = re.compile(
    r"(patch_embed\d?|pixel_embed)\.(proj|projection)\.|(^|\.)conv1\.weight$|conv_proj\.|"
    r"(cls|dist|mask|reg|register|storage|class|pos)_(tokens?|embed|embedding)$|class_embedding$|positional_embedding$|(patch|pixel)_pos$"
)


def value_of(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Tensor:
    """The values of a tensor: decided by its name, shape and type alone."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    noise = np.asarray(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape), dtype=np.float32)
    fan = float(np.sqrt(np.prod(shape[1:]))) if len(shape) > 1 else 1.0
    if name.endswith("running_var"):
        values = 1 + 0.5 * np.abs(noise)
    elif "gamma" in name or "layer_scale" in name or ".lambda" in name:
        values = 0.5 + 0.1 * noise
    elif name.endswith(("logit_scale", "temperature", "logit_bias")):
        values = 1 + 0.1 * noise
    elif _FIRST.search(name):
        values = 0.01 * noise / (fan if len(shape) == 4 and not name.endswith("pos_embed") else 1)
    elif "bias_table" in name or name.endswith("attention_biases"):
        values = 0.5 * noise
    elif len(shape) > 1:
        values = 1.2 * noise / fan
    else:
        values = 1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(getattr(torch, dtype))


def read_facts(case: str) -> tuple[dict[str, Any], Arrays]:
    """What is known of a case: its description, and the arrays that the original computed."""
    with np.load(FACTS / f"{case}.npz") as arrays:
        return json.loads((FACTS / f"{case}.json").read_text()), dict(arrays)


def save_checkpoint(facts: dict[str, Any], arrays: Arrays, folder: Path) -> Path:
    """Write the checkpoint of a case; gives the path to load."""
    kept = facts.get("values", {})
    network = {
        name: torch.from_numpy(arrays[kept[name]]) if name in kept else value_of(name, tuple(shape), dtype)
        for name, (shape, dtype) in facts["state_dict"].items()
    }
    path = folder / facts["file"]
    torch.save(_entries(facts["entries"], network), path)
    return path


def compare_outputs(model: nn.Module, facts: dict[str, Any], arrays: Arrays) -> dict[str, float]:
    """Largest difference from what the original computed, relative to its largest value; infinite for another shape."""
    size = facts["input_size"]
    images = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, size, size)).astype(np.float32))
    found: dict[str, tuple[Tensor, np.ndarray] | None] = {}
    with torch.inference_mode():
        if "logits" in arrays:
            logits = model(images)
            found["logits"] = (logits[:, :64], arrays["logits"]) if logits.shape[1:] == (facts["outputs"],) else None
        tokens = model.forward_features(images)
    if tokens.ndim == 4:
        tokens = (tokens if tokens.shape[-1] == facts["channels"] else tokens.permute(0, 2, 3, 1)).flatten(1, 2)
    fits = tuple(tokens.shape[1:]) == (facts["tokens"]["count"], facts["channels"])
    moments = torch.stack([tokens.mean(1), tokens.std(1)])[..., :64]
    found["tokens"] = (moments, np.stack([arrays["tokens_mean"], arrays["tokens_std"]])) if fits else None
    return {
        name: float("inf") if pair is None else float(np.abs(pair[0].numpy() - pair[1]).max() / np.abs(pair[1]).max())
        for name, pair in found.items()
    }


def _entries(node: Any, network: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_entries(item, network) for item in node]
    if not isinstance(node, dict):
        return node
    if "$weights" in node:
        return _weights(node["$weights"], network)
    if "$namespace" in node:
        return argparse.Namespace(**_entries(node["$namespace"], network))
    if "$tensor" in node:
        return value_of("tensor", *node["$tensor"])
    if "$adamw" in node:
        some = [tensor for tensor in network.values() if tensor.is_floating_point()][: node["$adamw"]]
        state = {n: {"step": torch.tensor(3.0), "exp_avg": torch.zeros_like(t)} for n, t in enumerate(some)}
        return {"state": state, "param_groups": [{"lr": 1e-3, "params": list(range(len(some)))}]}
    return {key: _entries(item, network) for key, item in node.items()}


def _weights(parts: list[dict[str, Any]], network: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for part in parts:
        tensors = network
        if "names" in part:
            tensors = {name: value_of(name, tuple(shape), dtype) for name, (shape, dtype) in part["names"].items()}
        for name, tensor in tensors.items():
            shifted = tensor + part["shift"] if part.get("shift") and tensor.is_floating_point() else tensor
            found[part.get("prefix", "") + name] = shifted
    return found


FRONTS = ["module.", "encoder.", "trunk.", "base_model.model.", "_orig_mod.module.", "0.", "visual.trunk.", "student.backbone."]


def layouts() -> Iterator[tuple[str, Callable[[Path], Made]]]:
    """(name, writer): a writer gives the file and what its original computes, or that a refusal is right."""
    for case in sorted(path.stem for path in FACTS.glob("*.json")):
        yield case, lambda folder, case=case: _published(case, folder)
    for name, maker in MAKERS.items():
        yield name, maker
    for name, arguments in PARTS.items():
        yield name, lambda folder, arguments=arguments: _rebuilt(vit(**arguments), folder, "")
    for front in FRONTS:
        yield f"names behind {front}", lambda folder, front=front: _rebuilt(vit(), folder, front)
    for name, shapes in LEFT_OVER.items():
        more = {key: torch.ones(shape) for key, shape in shapes.items()}
        yield f"{name} (must be refused)", lambda folder, more=more: saved(folder, vit().state_dict() | more, None)
    for name in ALIKE:
        yield f"{name} (must be refused)", lambda folder, name=name: saved(folder, alike(name, vit().state_dict()), None)
    for name in ("beit_base_patch16_224", "swin_tiny_patch4_window7_224", "levit_128s", "xcit_nano_12_p16_224", "pit_ti_224"):
        yield f"{name} of timm", lambda folder, name=name: _rebuilt(of_timm(name), folder, "")


def _published(case: str, folder: Path) -> Made:
    facts, arrays = read_facts(case)
    return Made(save_checkpoint(facts, arrays, folder), lambda model: max(compare_outputs(model, facts, arrays).values()))


def _rebuilt(original: nn.Module, folder: Path, front: str) -> Made:
    return saved(folder, behind(original.state_dict(), front), original)


def main() -> int:
    """Print the table; the number of layouts that were silently wrong is the exit status."""
    wrong = 0
    print("| layout | result | found as | largest difference |\n|---|---|---|---|")
    for name, write in layouts():
        with tempfile.TemporaryDirectory() as folder:
            made = write(Path(folder))
            try:
                loaded = overfocus.load_model(made.path)
            except overfocus.OverfocusError as error:
                said = str(error).replace(folder, "").replace("|", "/")[:110]
                print(
                    f"| {name} | {'refused, as it must be' if made.difference is None else 'refused'} | {said} … | |", flush=True
                )
                continue
            far = float("inf") if made.difference is None else made.difference(loaded.model)
            wrong += far >= 1e-4
            print(f"| {name} | {'right' if far < 1e-4 else 'WRONG'} | {loaded.name} | {far:.0e} |", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
