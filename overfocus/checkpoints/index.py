"""Look a state dict up in the index of architectures by its shapes; no model is built."""

import functools
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overfocus.checkpoints.fingerprint import Shape, digest, fingerprint, tables, weight

FORMAT = 1
INDEX_PATH = Path(__file__).with_name("architectures.json.gz")


@dataclass(frozen=True)
class Candidate:
    """An architecture that a state dict may belong to."""

    name: str
    share: float
    """Values that architecture and state dict have in common, of all that either has; 1 where every shape agrees."""
    covered: float
    """Of the architecture's values, the share that the state dict has."""
    tables: Counter[str]
    """Position tables with their shapes at the architecture's own image size."""
    prefix: int
    """Rows of the absolute position table that belong to prefix tokens."""
    facts: dict[str, Any]
    """What shapes do not show, as far as architectures with these shapes differ in it."""


@dataclass(frozen=True)
class Match:
    """Result of a look-up."""

    candidates: list[Candidate]
    """All with the highest share; empty where nothing is near."""
    without_attention: str | None
    """Name of the network without attention that has exactly these shapes."""


def look_up(shapes: Mapping[str, Shape]) -> Match:
    """Find the architectures whose parameter names and shapes agree best with a state dict's."""
    index, wanted = read_index(), fingerprint(shapes)
    key = digest(wanted)
    if key in index["groups"]:
        return Match(_members(index, key, 1.0, 1.0), None)
    if key in index["without attention"]:
        return Match([], index["without attention"][key])
    shares = _shares(wanted)
    best = max((share for share, _ in shares.values()), default=0.0)
    found = [
        candidate
        for key, (share, covered) in shares.items()
        if share > best - 1e-9
        for candidate in _members(index, key, share, covered)
    ]
    return Match(found, None)


def look_up_by_sizes(shapes: Mapping[str, Shape], most: int = 4) -> list[Candidate]:
    """The architectures whose tensors agree best in shape whatever they are called, one of each group, the best first."""
    index, (sizes, totals) = read_index(), _sizes()
    wanted = Counter(_size(shape) for shape in shapes.values() if len(shape) > 1)
    given = sum(weight(text) * count for text, count in wanted.items())
    shares = []
    for key, own in sizes.items():
        common = sum(weight(text) * min(count, own[text]) for text, count in wanted.items() if text in own)
        shares.append((common / max(given + totals[key] - common, 1), common / max(totals[key], 1), key))
    shares.sort(reverse=True)
    return [member for share, covered, key in shares[:most] for member in _members(index, key, share, covered) if share > 0.4]


def exact_tables(candidate: Candidate, shapes: Mapping[str, Shape]) -> bool:
    """Whether a state dict's position tables have exactly the shapes that the architecture has at its own image size."""
    return candidate.tables == tables(shapes)


def index_names() -> set[str]:
    """Every architecture with attention in the index."""
    return {name for group in read_index()["groups"].values() for name in group["members"]}


def index_version() -> str:
    """The timm that the index was built from."""
    return str(read_index()["timm"])


@functools.lru_cache(maxsize=1)
def read_index() -> dict[str, Any]:
    """The index as `overfocus.checkpoints.build_index` wrote it; read once."""
    index: dict[str, Any] = json.loads(gzip.decompress(INDEX_PATH.read_bytes()))
    return index


def _members(index: dict[str, Any], key: str, share: float, covered: float) -> list[Candidate]:
    features = index["features"]
    return [
        Candidate(name, share, covered, Counter({features[number]: count for number, count in table}), prefix, facts)
        for name, (table, prefix, facts) in index["groups"][key]["members"].items()
    ]


@functools.lru_cache(maxsize=1)
def _postings() -> tuple[dict[str, list[tuple[str, int]]], dict[str, int]]:
    """For each feature the groups that have it with its count, and the values of each group."""
    index = read_index()
    features, sizes = index["features"], [weight(text) for text in index["features"]]
    postings: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    totals: dict[str, int] = {}
    for key, group in index["groups"].items():
        totals[key] = sum(sizes[number] * count for number, count in group["features"])
        for number, count in group["features"]:
            postings[features[number]].append((key, count))
    return postings, totals


def _size(shape: Shape) -> str:
    """A shape as it stands behind a feature, without what the input channels change."""
    dimensions = list(map(str, shape))
    if len(shape) == 4 and shape[1] <= 4:
        dimensions[1] = "c"
    return " " + "x".join(dimensions)


@functools.lru_cache(maxsize=1)
def _sizes() -> tuple[dict[str, Counter[str]], dict[str, int]]:
    """For each group how many tensors it has of each shape with two axes or more, and their values."""
    index = read_index()
    names = [" " + text.rsplit(" ", 1)[1] for text in index["features"]]
    sizes: dict[str, Counter[str]] = {}
    for key, group in index["groups"].items():
        sizes[key] = Counter()
        for number, count in group["features"]:
            if "x" in names[number]:
                sizes[key][names[number]] += count
    return sizes, {key: sum(weight(text) * count for text, count in own.items()) for key, own in sizes.items()}


def _shares(wanted: Counter[str]) -> dict[str, tuple[float, float]]:
    """For each group with anything in common: (share of either, share of the group's own)."""
    postings, totals = _postings()
    common: Counter[str] = Counter()
    given = 0
    for text, count in wanted.items():
        size = weight(text)
        given += size * count
        for key, own in postings.get(text, ()):
            common[key] += size * min(count, own)
    return {key: (value / (given + totals[key] - value), value / totals[key]) for key, value in common.items()}
