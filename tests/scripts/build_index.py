"""Build the index of architectures: `python -m tests.scripts.build_index`.

Every architecture that timm and `overfocus.models` register is built on torch's meta device (no memory, no weights, about
0.2 s each) and its fingerprint, position tables and hidden attributes are written down. Of networks without attention only a
digest is kept, enough to say what they are. Run it again after a model was added or timm was updated.
"""

import gzip
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import timm
from torch import nn

from overfocus.checkpoints.build import skeleton
from overfocus.checkpoints.index import FORMAT, INDEX_PATH, Attribute, attends, attributes_of, digest, fingerprint, tables
from overfocus.errors import CheckpointError


@dataclass(frozen=True)
class Architecture:
    """What the index says of one architecture."""

    name: str
    fingerprint: Counter[str]
    tables: Counter[str]
    """Position tables with their shapes at the default image size."""
    prefix: int
    """Rows of the absolute position table that belong to prefix tokens."""
    attributes: dict[str, Attribute]
    attends: bool


def describe(name: str) -> Architecture:
    """Build one architecture without memory and describe it."""
    model = skeleton(name, {})
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return Architecture(name, fingerprint(shapes), tables(shapes), _prefix(model), attributes_of(model), attends(model))


def _prefix(model: nn.Module) -> int:
    table = getattr(model, "pos_embed", None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if table is None or grid is None or getattr(table, "ndim", 0) != 3:
        return 0
    return max(int(table.shape[1]) - int(grid[0] * grid[1]), 0)


def index_of(architectures: list[Architecture]) -> dict[str, Any]:
    """The index as it is written: features and tables by number, architectures in groups of equal fingerprints."""
    groups: defaultdict[str, list[Architecture]] = defaultdict(list)
    for architecture in architectures:
        groups[digest(architecture.fingerprint)].append(architecture)
    features: dict[str, int] = {}
    written, plain = {}, {}
    for key, members in groups.items():
        if not any(member.attends for member in members):
            plain[key] = min((member.name for member in members), key=lambda name: (len(name), name))
            continue
        kinds = _differences([member.attributes for member in members])
        written[key] = {
            "features": [(features.setdefault(text, len(features)), count) for text, count in members[0].fingerprint.items()],
            "members": {
                member.name: [
                    [(features.setdefault(text, len(features)), count) for text, count in member.tables.items()],
                    member.prefix,
                    kinds[number],
                ]
                for number, member in enumerate(members)
            },
        }
    return {"format": FORMAT, "timm": timm.__version__, "features": list(features), "groups": written, "without attention": plain}


def _differences(group: list[dict[str, Attribute]]) -> list[dict[str, Attribute]]:
    """Of each member's attributes those in which the members differ."""
    keys = sorted(set().union(*group))
    differing = [key for key in keys if len({json.dumps(member.get(key)) for member in group}) > 1]
    return [{key: member.get(key) for key in differing} for member in group]


def main() -> None:
    """Build every architecture and write the index."""
    import overfocus.models  # noqa: F401  registers our architectures with timm

    names = timm.list_models()
    described = []
    for number, name in enumerate(names, start=1):
        if sys.stderr.isatty():
            print(f"\r{number}/{len(names)} {name:60}", end="", file=sys.stderr)
        try:
            described.append(describe(name))
        except CheckpointError as error:
            print(f"\nleft out: {error}", file=sys.stderr)
    text = json.dumps(index_of(described), separators=(",", ":"))
    INDEX_PATH.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"\n{INDEX_PATH}: {len(described)} architectures, {INDEX_PATH.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
