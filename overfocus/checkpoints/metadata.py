"""What a checkpoint says about itself beside its weights, read and written.

Four writers are understood: trainers that save `arch`, `args` or `hyper_parameters`; timm's `config.json` of a hub folder;
OpenCLIP's `open_clip_config.json`; and the metadata of a safetensors file as `save_checkpoint` writes it. That metadata is a
table of texts; each key but `architecture` is optional and holds JSON:

    architecture    a name that timm or overfocus.models registers, or "VisionTransformer" for a model that
                    `timm.models.vision_transformer.VisionTransformer(**model_args)` makes and no name stands for
    model_args      arguments of that function, e.g. {"img_size": 32, "patch_size": 4, "in_chans": 1, "embed_dim": 96}
    tap             arguments of `overfocus.models.add_tap`, where TAP was added to the architecture afterwards
    class_names     list of names, one per class
    class_colours   list of [red, green, blue] of 0 … 255, one per class, for images of segmentations
    input_size      [channels, height, width]
    mean, std       one value per channel, of pixels in [0, 1]
    interpolation   "bicubic", "bilinear" or "nearest"
    crop_pct        in (0, 1]
    crop_mode       "center", "squash" or "border"

Other keys (a recipe, an accuracy) are kept and not interpreted. The number of classes, the input channels and the image
size follow from the weights.
"""

import argparse
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from overfocus.checkpoints.arguments import checked_arguments
from overfocus.checkpoints.names import CLIP_PREPROCESSING
from overfocus.checkpoints.read import plain_data
from overfocus.errors import CheckpointError
from overfocus.files import atomic_file
from overfocus.preprocessing import Preprocess
from overfocus.text import some
from overfocus.version import __version__

PREPROCESSING = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
_INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos")
_CROPS = ("center", "squash", "border")
_NAMES = ("arch", "architecture", "model", "model_name", "net", "backbone")
_ARGUMENTS = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt")
_SMALLEST_STD = 0.03  # of images; random weights are drawn with less
_CLASSES = ("class_names", "classes", "CLASSES", "label_names")


@dataclass(frozen=True)
class Metadata:
    """What is stored beside the weights; every field may be missing."""

    architectures: tuple[tuple[str, str], ...] = ()
    """(name, where it stood), best first; a name need not be one that timm knows."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments that the model was built with."""
    preprocessing: dict[str, Any] = field(default_factory=dict)
    """Of `PREPROCESSING` and `input_size` (channels, height, width), what is known."""
    class_names: tuple[str, ...] | None = None
    class_colours: tuple[tuple[int, int, int], ...] | None = None
    """RGB of 0 … 255, of a segmentation's classes."""
    tap: dict[str, Any] | None = None
    """Arguments of `overfocus.models.add_tap`, where TAP was added to the architecture."""
    unseen: dict[str, Any] = field(default_factory=dict)
    """What no tensor of a Vision Transformer shows, as far as the file's settings or its origin say it: `num_heads`,
    `global_pool`, `act_layer`, `depth` (of layers that may share their weights), `post_norm`."""
    quick_gelu: bool | None = None
    """Whether a CLIP model's activation is QuickGELU, as far as the file's origin shows."""
    notes: tuple[str, ...] = ()
    unseen_notes: tuple[str, ...] = ()
    """What to say of `unseen`, where it is used."""


def metadata_of_trainer(content: Mapping[str, Any], path: object = "checkpoint") -> Metadata:
    """What a trainer wrote into a PyTorch checkpoint.

    Raises:
        CheckpointError: arguments of the model are not ones that a file may give.
    """
    architectures: list[tuple[str, str]] = []
    arguments: dict[str, Any] = {}
    for name in _ARGUMENTS:
        arguments |= {key: value for key, value in _plain(content.get(name)).items() if key not in arguments}
        architectures += [(value, f"{name}.{key}") for key, value in _named(_plain(content.get(name)))]
    architectures = [(value, key) for key, value in _named(content) if key == "arch"] + architectures
    model_args = _plain(arguments.get("model_kwargs")) | _plain(arguments.get("model_args"))
    if isinstance(arguments.get("gp"), str):
        model_args["global_pool"] = arguments["gp"]
    unseen, notes = _unseen(content)
    return Metadata(
        tuple(architectures),
        checked_arguments(model_args, path),
        _of_images(_preprocessing(arguments)),
        _class_names(dict(content)) or _class_names(_plain(content.get("meta"))) or _class_names(arguments),
        _colours(_plain(content.get("meta")).get("PALETTE")),
        unseen=unseen,
        quick_gelu=_quick_gelu(content, path),
        unseen_notes=notes,
    )


def _of_images(found: dict[str, Any]) -> dict[str, Any]:
    """Without a mean and a standard deviation that are not those of images: one alone, or those of random weights."""
    sound = {"mean", "std"} <= found.keys() and max(found["std"]) > _SMALLEST_STD
    return found if sound else {key: value for key, value in found.items() if key not in ("mean", "std")}


def metadata_of_config(config: Mapping[str, Any], path: object) -> Metadata:
    """What timm's `config.json` says, or OpenCLIP's `open_clip_config.json`.

    Raises:
        CheckpointError: the file belongs to another library.
    """
    if isinstance(config.get("model_cfg"), Mapping):
        return _metadata_of_open_clip(_plain(config["model_cfg"]), _plain(config.get("preprocess_cfg")))
    name = config.get("architecture")
    if not isinstance(name, str):
        kind = config.get("model_type")
        detail = f"a Hugging Face transformers model ({kind})" if kind else "no field `architecture`"
        raise CheckpointError(f"{path}: expected timm's config.json, got {detail}; pass the weights file alone with --model NAME")
    data = _plain(config.get("pretrained_cfg")) or dict(config)
    names = config.get("label_names") or data.get("label_names")
    descriptions = _plain(config.get("label_descriptions") or data.get("label_descriptions"))
    if isinstance(names, (list, tuple)) and descriptions:
        names = [str(descriptions.get(name, name)) for name in names]
    return Metadata(
        ((name, "config.json"),),
        checked_arguments(_plain(config.get("model_args")), path),
        _preprocessing(data),
        _class_names({"class_names": names}),
    )


def _metadata_of_open_clip(model: dict[str, Any], preprocessing: dict[str, Any]) -> Metadata:
    """The image tower of a CLIP model and how OpenCLIP prepares its images."""
    vision = _plain(model.get("vision_cfg"))
    modes = {"shortest": "center", "longest": "border", "squash": "squash"}
    values = {"crop_pct": 1.0, "img_size": vision.get("image_size"), **preprocessing}
    values["crop_mode"] = modes.get(str(preprocessing.get("resize_mode", "shortest")))
    name, width, of_head = vision.get("timm_model_name"), vision.get("width"), vision.get("head_width", 64)
    pool: dict[str, Any] = {"global_pool": "avg", "fc_norm": bool(vision.get("final_ln_after_pool"))}
    whole = isinstance(width, int) and isinstance(of_head, int) and 0 < of_head <= width and width % of_head == 0
    return Metadata(
        ((name, "open_clip_config.json"),) if isinstance(name, str) else (),
        model_args=pool if vision.get("pool_type") == "avg" and not name else {},
        preprocessing={**CLIP_PREPROCESSING, **_preprocessing(values)},
        unseen={"num_heads": width // of_head} if whole and not name else {},  # both are integers then
        quick_gelu=bool(model.get("quick_gelu", False)),
    )


def metadata_of_jax(metadata: Mapping[str, str]) -> Metadata:
    """What the arrays of Google's JAX code say: heads have an axis of their own, and inputs are scaled to -1 … 1."""
    half = (0.5, 0.5, 0.5)
    note = "mean and std 0.5, as Google's JAX code scales its input"
    return Metadata(preprocessing={"mean": half, "std": half}, unseen={"num_heads": int(metadata["num_heads"])}, notes=(note,))


def metadata_of_safetensors(metadata: Mapping[str, str], path: object) -> Metadata:
    """What the metadata of a safetensors file says (format: `overfocus.checkpoints.metadata`)."""
    values: dict[str, Any] = {}
    for key in (*PREPROCESSING, "input_size", "model_args", "class_names", "class_colours", "tap"):
        if key in metadata:
            try:
                values[key] = json.loads(metadata[key])
            except (ValueError, RecursionError):
                values[key] = metadata[key]
    preprocessing, class_names = _preprocessing(values), _class_names(values)
    colours = _colours(values.get("class_colours"))
    understood = {**preprocessing, "class_names": class_names, "class_colours": colours}
    understood |= {key: values[key] for key in ("model_args", "tap") if isinstance(values.get(key), dict)}
    for key in values:
        if understood.get(key) is None:
            raise CheckpointError(
                f"{path}: the metadata's {key} makes no sense, got {metadata[key][:60]!r}; "
                "expected JSON as `overfocus train` writes it"
            )
    name = metadata.get("architecture")
    return Metadata(
        ((name, "metadata"),) if name else (),
        checked_arguments(values.get("model_args", {}), path),
        preprocessing,
        class_names,
        colours,
        _checked_tap(values.get("tap"), path),
    )


def _unseen(content: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a trainer's settings say of a Vision Transformer that its tensors do not (`Metadata.unseen`), and notes.

    The outermost setting counts. Where several say different numbers of heads (two networks), none is taken, and a note says so.
    """
    settings, said, notes = list(_settings(content)), {}, []
    for name, (spellings, read) in _SPELLINGS.items():
        levels: dict[int, dict[str, str]] = {}
        for where, value in settings:
            found = read(value, where[-1]) if where[-1] in spellings else None
            if found is not None:
                levels.setdefault(len(where), {}).setdefault(str(found), where[-1])
        outermost = levels[min(levels)] if levels else {}
        if len(outermost) == 1:
            value, spelling = next(iter(outermost.items()))
            said[name] = int(value) if value.isdigit() else value
            if name == "num_heads":
                notes.append(f"{value} attention heads, as the checkpoint's arguments say ({spelling})")
        elif outermost and name == "num_heads":
            numbers = some(sorted(outermost, key=int))
            notes.append(f"the checkpoint's arguments name several numbers of attention heads ({numbers}); none of them is taken")
    names = [str(name) for entry in content.values() if isinstance(entry, Mapping) for name in list(entry)[:2000]]
    contrastive = "best_acc1" in content or any("base_encoder." in name for name in names)
    of_moco = content.get("arch") in ("vit_small", "vit_conv_small") and contrastive
    if "num_heads" not in said and (of_moco or any(isinstance(value, str) and _OF_MOCO.search(value) for _, value in settings)):
        said["num_heads"] = MOCO_HEADS
        notes = [MOCO_NOTE]
    return said, tuple(notes)


def _settings(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Place and value of every setting beside the weights; of a configuration kept as text, numbers of heads."""
    apart = {str(key): value for key, value in content.items() if not _OF_OTHERS.search(str(key)) and not _holds_tensors(value)}
    front: deque[tuple[tuple[str, ...], Any]] = deque(((key,), _plain(value) or value) for key, value in apart.items())
    while front:
        where, value = front.popleft()
        if isinstance(value, Mapping) and not _OF_OTHERS.search(where[-1]):
            front += [((*where, str(key)), item) for key, item in value.items()]
        elif isinstance(value, str | bool | int | float):
            yield where, value
            if isinstance(value, str) and "num_heads" in value[:_LONGEST_TEXT].lower():
                found = re.findall(r"(?<![\w.])num_heads['\"]?\s*[=:]\s*(\d{1,3})\b", value[:_LONGEST_TEXT], re.IGNORECASE)
                yield from (((*where, "num_heads"), number) for number in found)


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, torch.Tensor) for item in list(value.values())[:100])


def _read_number(value: object, _: str) -> int | None:
    match = re.fullmatch(r"([1-9]\d{0,2})(\.0)?", str(value))  # True is no number here
    return int(match[1]) if match and int(match[1]) <= _MOST_COUNTED else None


def _read_pooling(value: object, spelling: str) -> str | None:
    if isinstance(value, bool):  # MAE and BEiT
        return "avg" if value and spelling != "pool" else None
    return _POOLINGS.get(str(value).lower())


def _read_post_norm(value: object, spelling: str) -> int | None:
    return 1 if value is (spelling not in ("norm_first", "normalize_before")) else None


def _read_activation(value: object, _: str) -> str | None:
    return _ACTIVATIONS.get(str(value).lower())


_MOST_COUNTED = 128
_LONGEST_TEXT = 1_000_000  # characters of a configuration kept as text
_POOLINGS = dict.fromkeys(("avg", "mean", "gap", "average"), "avg") | dict.fromkeys(("token", "cls", "cls_token"), "token")
_POOLINGS |= {"max": "max", "avgmax": "avgmax"}
_ACTIVATIONS = {name: name for name in ("relu", "gelu", "quick_gelu", "silu", "gelu_tanh", "mish", "elu", "leaky_relu")}
_ACTIVATIONS |= {"swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quickgelu": "quick_gelu"}
_SPELLINGS: dict[str, tuple[tuple[str, ...], Callable[[object, str], int | str | None]]] = {
    "num_heads": (
        ("num_heads", "n_heads", "nheads", "nhead", "n_head", "num_head", "heads", "num_attention_heads", "vit_heads"),
        _read_number,
    ),
    "global_pool": (("global_pool", "gp", "pool", "pooling", "pool_type", "use_mean_pooling"), _read_pooling),
    "act_layer": (("act_layer", "hidden_act"), _read_activation),
    "depth": (("depth", "vit_depth", "num_hidden_layers"), _read_number),
    "post_norm": (("norm_first", "normalize_before", "post_norm", "postnorm", "use_post_norm", "res_post_norm"), _read_post_norm),
}  # fmt: skip
"""Arguments that no tensor shows: the names that trainers give them, and how a value is read (None: it says nothing)."""
_OF_OTHERS = re.compile(r"decod|text|langu|predict|head$|token|llm|bert|gpt|cross|fusion|optim|data|augment", re.IGNORECASE)
"""Settings of other parts than the encoder."""
_OF_MOCO = re.compile(r"mocov3-s(mall)?['\"]|MoCoV3ViT.{0,200}mocov3-s", re.DOTALL)
MOCO_HEADS = 12
MOCO_NOTE = "12 attention heads, as MoCo v3 builds its vit_small (DeiT's has 6; --model-args num_heads=6 takes those)"


def _quick_gelu(content: Mapping[str, Any], path: object) -> bool | None:
    """Whether a CLIP model has OpenAI's QuickGELU: by what only one of the two code bases writes, or by the file's name."""
    name = f"{PurePath(str(path)).name} {content.get('name') if isinstance(content.get('name'), str) else ''}".lower()
    tensors = content.get("state_dict") if isinstance(content.get("state_dict"), Mapping) else content
    keys = {str(key) for key in list(tensors)[:5000]} if isinstance(tensors, Mapping) else set()
    if re.search(r"quick-?gelu|metaclip|dfn", name) or {"input_resolution", "context_length", "vocab_size"} & keys:
        return True
    of_training = {"epoch", "name", "state_dict"} <= set(content)
    if of_training or re.search(r"open_?clip|laion|datacomp|commonpool|epoch_\d+|\beva", name):
        return False
    if "openai" in name or re.match(r"(clip[-_.]?)?vit-(b-32|b-16|l-14)(-336px)?\b", name.replace("_", "-")):
        return True
    halves = [value.dtype == torch.float16 for value in tensors.values() if isinstance(value, torch.Tensor)][:500]  # type: ignore[union-attr]
    return True if halves and sum(halves) > len(halves) // 2 else None


def _checked_tap(value: object, path: object) -> dict[str, Any] | None:
    """Arguments of `add_tap` that a file gives, within bounds."""
    if value is None:
        return None
    given = _plain(value)
    sound = {
        "branches": lambda v: isinstance(v, int) and 1 <= v <= 64,
        "layers": lambda v: v is None or (isinstance(v, list) and len(v) <= 256 and all(isinstance(n, int) for n in v)),
        "pooling": lambda v: isinstance(v, str) and len(v) <= 32,
        "init": lambda v: isinstance(v, str) and len(v) <= 32,
    }
    for key, item in given.items():
        if key not in sound or not sound[key](item):
            raise CheckpointError(
                f"{path}: the metadata's tap makes no sense, got {str(key)[:40]}={str(item)[:60]}; "
                "expected arguments of overfocus.models.add_tap"
            )
    return given


def _plain(value: object) -> dict[str, Any]:
    """A configuration as a dictionary of plain data; empty for anything else."""
    data = plain_data(value) if isinstance(value, argparse.Namespace | Mapping) else None
    return {str(key): item for key, item in data.items()} if isinstance(data, dict) else {}


def _named(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, values[key]) for key in _NAMES if isinstance(values.get(key), str) and values[key]]


def _preprocessing(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the preprocessing; entries that make no sense are left out."""
    found: dict[str, Any] = {}
    for key in ("mean", "std"):
        numbers = _numbers(values.get(key))
        if numbers is not None and len(numbers) in (1, 3):
            found[key] = numbers
    if values.get("interpolation") in _INTERPOLATIONS:
        found["interpolation"] = values["interpolation"]
    if values.get("crop_mode") in _CROPS:
        found["crop_mode"] = values["crop_mode"]
    share = _numbers(values.get("crop_pct"))
    if share is not None and len(share) == 1 and 0 < share[0] <= 1:
        found["crop_pct"] = share[0]
    size = _numbers(values.get("input_size") or values.get("img_size"))
    channels = _numbers(values.get("in_chans")) or (3.0,)
    if size is not None and min(size) >= 1 and len(size) <= 3:
        found["input_size"] = _whole(size if len(size) == 3 else (channels[0], size[0], size[-1]))
    return found


def _whole(numbers: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(int(number) for number in numbers)


_LARGEST = 1e12  # a number that becomes a float


def _numbers(value: object) -> tuple[float, ...] | None:
    """One number or several as a tuple; None for anything else."""
    items = value if isinstance(value, (list, tuple)) else (value,)
    if not items or not all(isinstance(item, (int, float)) and -_LARGEST < item < _LARGEST for item in items):
        return None
    return tuple(float(item) for item in items)


def _class_names(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    index = values.get("class_to_idx")
    if isinstance(index, Mapping) and index and all(type(number) is int for number in index.values()):
        named = {number: str(name) for name, number in index.items()}
        if named.keys() == set(range(len(index))):
            return tuple(named[number] for number in range(len(index)))
    for key in _CLASSES:
        names = values.get(key)
        if isinstance(names, Mapping):
            counted = {str(number): name for number, name in names.items()}
            wanted = [str(number) for number in range(len(names))]
            names = [counted[number] for number in wanted] if counted.keys() == set(wanted) else None
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def _colours(value: object) -> tuple[tuple[int, int, int], ...] | None:
    """A list of [red, green, blue]; None for anything else."""
    rows = value if isinstance(value, (list, tuple)) and value else None
    if rows is None or not all(isinstance(row, (list, tuple)) and len(row) == 3 for row in rows):
        return None
    if not all(isinstance(part, int) and 0 <= part <= 255 for row in rows for part in row):
        return None
    return tuple((red, green, blue) for red, green, blue in rows)


_RESERVED = ("format", "architecture", "model_args", "tap", "class_names", "class_colours", "input_size", "overfocus")


def save_checkpoint(
    model: nn.Module,
    path: str | Path,
    *,
    architecture: str,
    model_args: Mapping[str, Any] | None = None,
    tap: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    class_colours: Sequence[Sequence[int]] | None = None,
    preprocess: Preprocess | None = None,
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Save a model's weights so that `load_model(path)` builds it again from the file alone.

    The file is written whole (temporary name, then rename). `extra` goes into the metadata as it is.

    Raises:
        ValueError: `extra` uses a key that has a meaning here.
        TypeError: an argument is not of the kinds that JSON holds.
    """
    metadata = {"format": "pt", "overfocus": __version__, "architecture": architecture}
    described: dict[str, Any] = {"model_args": model_args, "tap": tap, "class_names": class_names}
    described["class_colours"] = class_colours
    if preprocess is not None:
        described |= {
            "input_size": preprocess.input_size,
            "mean": preprocess.mean,
            "std": preprocess.std,
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_pct,
            "crop_mode": preprocess.crop_mode,
        }
    metadata |= {key: json.dumps(_listed(value)) for key, value in described.items() if value is not None}
    clashes = sorted(set(extra or {}) & {*_RESERVED, *metadata})
    if clashes:
        raise ValueError(f"expected keys without a meaning of their own in extra, got {', '.join(clashes)}")
    metadata |= extra or {}
    target = Path(path)
    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in model.state_dict().items()}
    with atomic_file(target) as file:
        save_file(tensors, file.name, metadata=metadata)
    return target


def _listed(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value
