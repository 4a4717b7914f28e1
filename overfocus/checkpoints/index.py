"""Look a state dict up in the index of architectures by what its names and shapes say; no model is built.

A parameter becomes a *feature*: its name with layer numbers replaced by `*`, and its shape, for example
`blocks.*.attn.qkv.weight 576x192`. A fingerprint counts the features. Left out or left open are the classifier, position
tables (absolute and relative), the number of input channels and the branches of a TAP predictor, so that a model
fine-tuned to other classes, sizes, channels or branches still has the fingerprint of its architecture.

What shapes do not show (heads, strides, activations, constants, windows and shifts) is a *fact*: every plain attribute of
every module of a built model, gathered under the module's name (`blocks.*.attn:num_heads`). Two architectures with equal
shapes and equal attributes compute the same attention. Left out is what does not change it: the classifier and its pooling,
training options, and what follows from the image size.
"""

import functools
import gzip
import hashlib
import inspect
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

Shape = tuple[int, ...]

CLASSIFIERS = "head|heads|head_dist|heads_dist|head_dense|aux_head|fc|classifier|classif|last_linear|pre_logits"
"""First words of the names of classifiers' parameters, as an expression."""
_CLASSIFIER = re.compile(rf"^({CLASSIFIERS}|decode_head\.(linear_pred|conv_seg))\.")
_ALIASES = {"register_tokens": "reg_token"}
"""Names that timm changes when it converts weights of others (DINOv2)."""
_BUFFER = re.compile(
    r"(^|\.)(relative_position_index|rel_pos_index|attn_mask|attention_bias_idxs|relative_coords_table|num_batches_tracked"
    r"|mask_token|k_bias|inv_freq|periods|pos_embed_temporal)$"
)
_TABLE = re.compile(
    r"(^|\.)(\w*pos_embed\w*|pixel_pos|patch_pos|rel_pos_[hw]|relative_position_bias_table|attention_biases|att_mask)(\.\d+)?$"
    r"|(^|\.)(attention_biases|rope)\."
)
_TAP_PREDICTOR = re.compile(r"(^|\.)dilation_predictor\.")
_TAP = re.compile(r"(^|\.)(dilation_predictor|token_pools)\.")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_INPUT_CHANNELS = 4


def is_classifier(name: str) -> bool:
    """Whether a parameter belongs to a classification head."""
    return _CLASSIFIER.match(name) is not None


def is_head(name: str) -> bool:
    """Whether a parameter belongs to a classification head or to the head of a segmentation model."""
    return is_classifier(name) or name.startswith("decode_head.")


def is_table(name: str) -> bool:
    """Whether a tensor is a position table, the size of which follows the image or window size."""
    return _TABLE.search(name) is not None


def is_tap_predictor(name: str) -> bool:
    """Whether a parameter belongs to a TAP predictor, the shapes of which follow the number of branches."""
    return _TAP_PREDICTOR.search(name) is not None


def is_tap(name: str) -> bool:
    """Whether a parameter belongs to TAP, predictor or pooling."""
    return _TAP.search(name) is not None


def pattern(name: str) -> str:
    """A parameter's name with its layer numbers replaced by `*`."""
    return _NUMBER.sub("*", name)


def feature(name: str, shape: Shape) -> str | None:
    """One parameter as a feature, or None where it says nothing about the architecture."""
    name = _ALIASES.get(name, name)
    if is_classifier(name) or _BUFFER.search(name):
        return None
    if is_table(name) or is_tap(name):
        return f"{pattern(name)} ?"
    dimensions = list(map(str, shape))
    if len(shape) == 4 and shape[1] <= _INPUT_CHANNELS:
        dimensions[1] = "c"
    return f"{pattern(name)} {'x'.join(dimensions)}"


def fingerprint(shapes: Mapping[str, Shape]) -> Counter[str]:
    """Count the features of a state dict given as name → shape."""
    features = (feature(name, shape) for name, shape in shapes.items())
    return Counter(found for found in features if found is not None)


def tables(shapes: Mapping[str, Shape]) -> Counter[str]:
    """Count the position tables with their exact shapes, which tell image and window sizes apart."""
    found = ((name, shape) for name, shape in shapes.items() if is_table(name) and not _BUFFER.search(name))
    return Counter(f"{pattern(name)} {'x'.join(map(str, shape))}" for name, shape in found)


def weight(text: str) -> int:
    """Number of values in one tensor of a feature; 1 where its shape is left open."""
    size = 1
    for dimension in text.rsplit(" ", 1)[1].split("x"):
        size *= int(dimension) if dimension.isdigit() else 1
    return size


def digest(features: Mapping[str, int]) -> str:
    """A short name for a fingerprint."""
    text = "\n".join(f"{name} {count}" for name, count in sorted(features.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def square_side(number: int) -> int | None:
    """The side of a square of that many tokens, None where it is no square."""
    root = math.isqrt(max(number, 0))
    return root if root > 0 and root * root == number else None


def fits_table(shapes: Mapping[str, Shape], prefix: int) -> bool:
    """Whether the absolute position table without its prefix tokens covers a square patch grid."""
    shape = shapes.get("pos_embed")
    return shape is not None and len(shape) == 3 and square_side(shape[1] - prefix) is not None


Attribute = str | int | float | bool | list["Attribute"] | None

# fmt: off
_WITHOUT_EFFECT = frozenset({
    "training", "num_classes", "global_pool", "init_values", "drop_prob", "p", "fused_attn", "inplace", "approximate",
    "grad_checkpointing", "pos_embed_ar_preserving", "scale_by_keep", "momentum", "track_running_stats", "device", "dtype",
})
_FROM_IMAGE_SIZE = frozenset({
    "img_size", "num_patches", "grid_size", "input_resolution", "output_resolution", "feat_size", "feature_size", "feat_shape",
    "seq_len", "img_size_scaled", "bias_shape", "window_area", "num_relative_distance", "resolution", "target_shift_size",
})
# fmt: on
_READOUT = re.compile(
    r"^(head|heads|head_dist|heads_dist|aux_head|fc|classifier|classif|last_linear|pre_logits|global_pool|flatten|fc_norm"
    r"|head_drop|norm_head|head_hidden_size|conv_head)(\.|:|$)"
)
_ATTENTION = re.compile(r"attn|attention|mhsa|shsa|shma", re.IGNORECASE)
_GATES = frozenset({"SplitAttn", "SelectiveKernelAttn", "SpatialAttention", "BilinearAttnTransform", "BatNonLocalAttn"})
"""Modules of convolutional networks that are called attention and weigh channels or scales, no tokens."""
_MARKS = ("num_heads", "fused_attn")
"""Attributes that only attention has, whatever its class is called."""
_LONGEST = 64


def attributes_of(model: nn.Module) -> dict[str, Attribute]:
    """The attributes of a model (one built on the meta device will do), a list where they differ from layer to layer."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    gathered: defaultdict[str, list[Attribute]] = defaultdict(list)
    for name, module in model.named_modules():
        place = pattern(name)
        gathered[f"{place}:class"].append(type(module).__name__)
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or attribute in _WITHOUT_EFFECT | _FROM_IMAGE_SIZE:
                continue
            if attribute == "window_size" and grid is not None and _plain(value) == _plain(grid):
                continue  # BEiT: the window is the whole image
            plain = _plain(value)
            if plain is not NotImplemented:
                gathered[f"{place}:{attribute}"].append(plain)
    relevant = {key: values for key, values in gathered.items() if not _READOUT.match(key.removeprefix(":"))}
    return {key: _merged(values) for key, values in relevant.items()}


def attends(model: nn.Module) -> bool:
    """Whether a model has attention between tokens, as far as its modules' names and heads tell."""
    for module in model.modules():
        kind = type(module).__name__
        if (_ATTENTION.search(kind) and kind not in _GATES) or not vars(module).keys().isdisjoint(_MARKS):
            return True
    return False


def _plain(value: object) -> Attribute:
    """A value as JSON takes it; NotImplemented for tensors, modules and other objects."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, functools.partial):
        return f"{value.func.__name__}{sorted(value.keywords.items())}"
    if inspect.isclass(value) or inspect.isfunction(value):
        return str(value.__name__)
    if isinstance(value, (tuple, list, torch.Size)) and len(value) < _LONGEST:
        items = [_plain(item) for item in value]
        if not any(item is NotImplemented for item in items):
            return _merged(items)
    return NotImplemented  # type: ignore[no-any-return]  # no value of its own: None is a fact


def _merged(values: list[Attribute]) -> Attribute:
    """One value where all are equal: (3, 3) and 3 say the same of a kernel."""
    return values[0] if values and all(value == values[0] for value in values) else values


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
    attributes: dict[str, Any]
    """What shapes do not show, as far as architectures with these shapes differ in it."""
    group: str
    """Of architectures with the same fingerprint."""


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


def look_up_by_sizes(shapes: Mapping[str, Shape], most: int = 8) -> list[Candidate]:
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


def candidates_named(names: Sequence[str]) -> list[Candidate]:
    """Architectures of the index by name, held to be as likely as each other."""
    index = read_index()
    groups = [key for key, group in index["groups"].items() if not group["members"].keys().isdisjoint(names)]
    return [member for key in groups for member in _members(index, key, 0.0, 0.0) if member.name in names]


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
    """The index as `tests.scripts.build_index` wrote it; read once."""
    index: dict[str, Any] = json.loads(gzip.decompress(INDEX_PATH.read_bytes()))
    return index


def _members(index: dict[str, Any], key: str, share: float, covered: float) -> list[Candidate]:
    features = index["features"]
    return [
        Candidate(name, share, covered, Counter({features[number]: count for number, count in table}), prefix, attributes, key)
        for name, (table, prefix, attributes) in index["groups"][key]["members"].items()
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
