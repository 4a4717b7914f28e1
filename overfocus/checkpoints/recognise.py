"""Decide which architecture a checkpoint belongs to: what the user asked for, what the file says, what the shapes say."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from overfocus.checkpoints.build import is_architecture
from overfocus.checkpoints.fingerprint import Shape, is_tap
from overfocus.checkpoints.hints import Hints
from overfocus.checkpoints.index import Candidate, Match, exact_tables, index_version, look_up
from overfocus.checkpoints.pretrained import require_known
from overfocus.checkpoints.tables import fits_table
from overfocus.errors import CheckpointError
from overfocus.preprocessing import IMAGENET_MEAN

_SMALLEST_SHARE = 0.75
_SMALLEST_COVERED = 0.9
_ATTENTION = re.compile(r"att|qkv|query|q_proj|in_proj|to_q|(^|\.)q\.|(^|\.)wq\.", re.IGNORECASE)
_FOREIGN = (
    (re.compile(r"encoder\.layer\.\d+\.attention\."), "Hugging Face transformers"),
    (re.compile(r"encoder\.layers\.encoder_layer_\d+\."), "torchvision's ViT"),
    (re.compile(r"transformer\.resblocks\.\d+\."), "CLIP"),
)
_TELLING = ("num_heads", "window_size", "shift_size", "stride", "padding", "eps", "class")
"""Facts worth telling, the most telling first."""


@dataclass(frozen=True)
class Recognised:
    """An architecture and how it was found."""

    name: str
    found_by: str
    arguments: dict[str, Any] = field(default_factory=dict)
    """What the architecture is built with beside its defaults."""
    notes: list[str] = field(default_factory=list)


def recognise(tensors: Mapping[str, Tensor], hints: Hints, model: str | None, path: Path) -> Recognised:
    """Find the architecture; an explicit name goes first, then metadata, then the shapes.

    Raises:
        CheckpointError: the name is unknown, nothing fits, or several fit that attend differently.
    """
    named = [(name, origin) for name, origin in hints.architectures if is_architecture(name)]
    if model is not None:
        require_known(model)
        arguments = hints.model_args if any(name == model for name, _ in named) else {}
        return Recognised(model, "asked for", dict(arguments))
    if named:
        name, origin = named[0]
        return Recognised(name, origin, dict(hints.model_args))
    notes = [
        f"the checkpoint calls its architecture {name!r} ({origin}), which timm does not know"
        for name, origin in hints.architectures[:1]
    ]
    return _by_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, path, notes)


def known_by_shapes(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of an architecture with exactly these shapes, as advice where another was named; None where there is none."""
    candidates = look_up({name: tuple(tensor.shape) for name, tensor in tensors.items()}).candidates
    return candidates[0].name if candidates and candidates[0].share == 1 else None


def _by_shapes(shapes: Mapping[str, Shape], path: Path, notes: list[str]) -> Recognised:
    match = _best_match(shapes)
    near = [found for found in match.candidates if found.covered >= _SMALLEST_COVERED and found.share >= _SMALLEST_SHARE]
    if not near:
        raise CheckpointError(f"{path}: {_nothing_fits(shapes, match.candidates, match.without_attention)}")
    known = [found for found in near if timm.is_model(found.name)]
    if not known:
        names = ", ".join(found.name for found in near[:4])
        raise CheckpointError(
            f"{path}: its shapes are those of {names}; timm {timm.__version__} does not have it, install timm {index_version()}"
        )
    if known[0].share < 1:
        notes = [*notes, f"the nearest architecture by shapes: {known[0].share:.1%} of the values are in both"]
    candidates = _by_tables(known, shapes)
    kinds: defaultdict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        kinds[repr(_relative_facts(candidate, candidates))].append(candidate)
    if len(kinds) > 1:
        raise CheckpointError(f"{path}: {_ambiguous(list(kinds.values()), path)}")
    chosen, *others = sorted(candidates, key=lambda candidate: _rank(candidate, path))
    return Recognised(chosen.name, "shapes", {}, [*notes, *_others(chosen, others)])


def _best_match(shapes: Mapping[str, Shape]) -> Match:
    """The look-up of a state dict; without its TAP where that fits better: it was added to an architecture of timm."""
    match = look_up(shapes)
    plain = {name: shape for name, shape in shapes.items() if not is_tap(name)}
    if len(plain) == len(shapes) or any(found.share == 1 and exact_tables(found, shapes) for found in match.candidates):
        return match
    without = look_up(plain)
    if any(found.share == 1 and exact_tables(found, plain) for found in without.candidates):
        return without
    return match if any(found.share == 1 for found in match.candidates) else without


def _by_tables(candidates: list[Candidate], shapes: Mapping[str, Shape]) -> list[Candidate]:
    """Those whose position tables agree exactly; else those whose absolute table may have another image size."""
    exact = [candidate for candidate in candidates if exact_tables(candidate, shapes)]
    return exact or [candidate for candidate in candidates if fits_table(shapes, candidate.prefix)] or candidates


def _relative_facts(candidate: Candidate, among: list[Candidate]) -> dict[str, Any]:
    """The facts in which the candidates that are left still differ."""
    return {key: value for key, value in candidate.facts.items() if any(other.facts.get(key) != value for other in among)}


def _rank(candidate: Candidate, path: Path) -> tuple[bool, bool, int, str]:
    """Which of several equals is taken: the one in the file's name; ImageNet's mean, as most trainers use; the shortest name."""
    return candidate.name not in path.name, _mean(candidate.name) != IMAGENET_MEAN, len(candidate.name), candidate.name


def _mean(name: str) -> tuple[float, ...] | None:
    config = timm.get_pretrained_cfg(name)
    return tuple(config.mean) if config is not None and config.mean else None


def _others(chosen: Candidate, others: list[Candidate]) -> list[str]:
    if not others:
        return []
    names = ", ".join(candidate.name for candidate in others)
    if any(_mean(candidate.name) != _mean(chosen.name) for candidate in others):
        return [f"{names} has the same layers and attention but may have other preprocessing (mean, std); --model takes it"]
    return [f"{names} has the same layers and attention"]


def _ambiguous(kinds: list[list[Candidate]], path: Path) -> str:
    every = [candidate for group in kinds for candidate in group]
    options = []
    for group in kinds:
        told = _relative_facts(group[0], every)
        keys = sorted(
            told, key=lambda key: next((rank for rank, word in enumerate(_TELLING) if key.endswith(f":{word}")), len(_TELLING))
        )
        detail = ", ".join(f"{key.replace(':', '.')} {told[key]}"[:80] for key in keys[:1])
        options.append(f"{' or '.join(candidate.name for candidate in group[:3])} ({detail or 'other parameters'})")
    named = next((f"; the file's name suggests {candidate.name}" for candidate in every if candidate.name in path.name), "")
    return f"its shapes fit architectures that attend differently: {'; '.join(options)}; name the right one with --model{named}"


def _nothing_fits(shapes: Mapping[str, Shape], nearest: list[Candidate], without_attention: str | None) -> str:
    if without_attention is not None:
        return f"a {without_attention}, which has no attention between tokens (--model {without_attention} loads it all the same)"
    for expression, library in _FOREIGN:
        if any(expression.search(name) for name in shapes):
            return f"parameters named as {library} names them; convert them to timm's names, or try --model (timm converts some)"
    if not any(_ATTENTION.search(name) for name in shapes):
        return "no parameter belongs to an attention layer (a convolutional network?); a Vision Transformer is needed"
    known = f"; the nearest is {nearest[0].name}, {nearest[0].share:.0%} of the values are in both" if nearest else ""
    return f"its shapes are those of no architecture of timm or overfocus{known}; name it with --model"
