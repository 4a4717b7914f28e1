"""Constructor arguments: which ones a file may give, which ones follow from the tensors, and which make a model fit them.

Whatever a file says is untrusted. Only arguments on the list below pass, each within bounds, so that nothing in a
checkpoint makes timm open a file, fetch weights or build a network of a billion layers.
"""

import contextlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from overfocus.checkpoints.index import is_table, square_side
from overfocus.errors import CheckpointError
from overfocus.settings import plain_number
from overfocus.text import printable, some

Shapes = Mapping[str, tuple[int, ...]]
Arguments = dict[str, Any]

_BOUNDS: dict[str, tuple[float, float]] = {
    "img_size": (1, 4096), "patch_size": (1, 256), "in_chans": (1, 64), "num_classes": (0, 200_000), "embed_dim": (1, 8192),
    "embed_dims": (1, 8192), "dim": (1, 8192), "dims": (1, 8192), "width": (1, 8192), "depth": (1, 200), "depths": (1, 200),
    "num_heads": (1, 128), "heads": (1, 128), "key_dim": (1, 512), "mlp_ratio": (0.01, 32), "mlp_ratios": (0.01, 32),
    "mlp_hidden_dim": (1, 65_536), "window_size": (1, 512), "shift_size": (0, 512), "stride": (1, 64), "strides": (1, 64),
    "sr_ratios": (1, 64), "reg_tokens": (0, 256), "num_reg_tokens": (0, 256), "init_values": (0, 100), "num_scales": (1, 64),
    "norm_eps": (0, 1), "eps": (0, 1), "layer_norm_eps": (0, 1), "drop_rate": (0, 1), "drop_path_rate": (0, 1),
    "attn_drop_rate": (0, 1), "proj_drop_rate": (0, 1), "pos_drop_rate": (0, 1), "patch_drop_rate": (0, 1),
    "rope_temperature": (1, 1e7), "rope_grid_offset": (-100, 100), "ref_feat_shape": (1, 4096), "pt_layer_scale": (0, 100),
    "output_stride": (1, 64), "expand_ratio": (0.1, 16), "head_dim": (1, 1024), "num_branches": (1, 64), "stem_width": (1, 8192),
    "stem_channels": (1, 8192), "block_channels": (1, 8192), "block_layers": (1, 200), "partition_size": (1, 512),
}  # fmt: skip
_BOOLEANS = frozenset(
    "qkv_bias qk_norm scale_attn_norm scale_mlp_norm scale_attn_inner proj_bias class_token no_embed_class pre_norm final_norm "
    "fc_norm use_fc_norm use_norm pool_include_prefix dynamic_img_size dynamic_img_pad distilled linear use_abs_pos_emb "
    "use_rel_pos_bias use_shared_rel_pos_bias use_rot_pos_emb use_mrope rope_mixed_mode rope_rotate_half qkv_fused swiglu_mlp "
    "swiglu_align_to use_pre_transformer_norm use_post_norm use_post_transformer_norm attn_type_relative ape patch_norm "
    "always_partition strict_img_size legacy dynamic_size_list fix_init conv_stem head_bias use_layer_scale layer_scale "
    "mlp_layer_norm squeeze rel_pos_cls".split()
)
_TEXTS: dict[str, re.Pattern[str]] = {
    name: re.compile(r"[a-zA-Z0-9_]{0,32}")
    for name in "global_pool pos_embed act_layer norm_layer weight_init rope_type rel_pos_type pool_type stem_type "
    "head_init_scale attn_type class_token_type pool tokens".split()
}
_NEVER = re.compile(
    r"pretrain|checkpoint|path|file|url|cache|script|hub|overlay|weights|config|cfg|source|device|dtype", re.IGNORECASE
)
_MOST_ITEMS = 64


def checked_arguments(given: Mapping[str, Any], origin: object) -> Arguments:
    """The arguments of a file that may be passed to a constructor.

    Raises:
        CheckpointError: one is not on the list, of another kind or out of bounds.
    """
    checked: Arguments = {}
    for key, value in given.items():
        name = str(key)
        if value is None:
            continue
        if name in _BOUNDS and _number(value, *_BOUNDS[name]):
            checked[name] = tuple(value) if isinstance(value, list) else value
        elif name in _BOUNDS and isinstance(value, bool | str) and name in ("window_size", "num_classes"):
            continue
        elif ((name in _BOOLEANS or name in ("init_values", "swiglu_mlp")) and isinstance(value, bool)) or (
            name in _TEXTS and isinstance(value, str) and _TEXTS[name].fullmatch(value)
        ):
            checked[name] = value
        else:
            expected = "a number from {:g} to {:g}".format(*_BOUNDS[name]) if name in _BOUNDS else _kind(name)
            raise CheckpointError(
                f"{origin}: refused, its model argument {name[:60]!r} is {str(value)[:60]!r}; expected {expected} "
                "(--model NAME --model-args KEY=VALUE,… takes over what the file says)"
            )
    return checked


def parse_arguments(text: str) -> Arguments:
    """The arguments of `--model-args`, e.g. "num_heads=12,init_values=1e-5,window_size=7x7,qk_norm=true".

    Raises:
        CheckpointError: a part is no KEY=VALUE, or the argument is not one that can be set.
    """
    given: Arguments = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise CheckpointError(f"expected --model-args KEY=VALUE,KEY=VALUE, got {part[:60]!r}")
        if key in given:
            raise CheckpointError(f"expected each argument of --model-args once, got {printable(key, 60)} twice; remove one")
        given[key] = _value(value)
    return checked_arguments(given, "--model-args")


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return plain_number(text, kind)
    if re.fullmatch(r"\d+([x+]\d+)+", text):
        return tuple(int(number) for number in re.split(r"[x+]", text))
    return text


def _kind(name: str) -> str:
    if _NEVER.search(name):
        return "no argument that names files, weights or how to load them"
    if name in _BOOLEANS:
        return "true or false"
    if name in _TEXTS:
        return "a short word"
    return f"one of {some(sorted(_BOUNDS))} …"


def _number(value: Any, low: float, high: float) -> bool:
    if isinstance(value, list | tuple):
        return 0 < len(value) <= _MOST_ITEMS and all(_number(item, low, high) for item in value)
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


# What the tensors tell, by class of network. Each function gives the same keys for a file and for a model's own state dict;
# where the two differ, the file's value is the argument to build with.


def infer_from_tensors(shapes: Shapes, model: nn.Module, image_size: tuple[int, int] | None = None) -> Arguments:
    """Arguments that make a model of this class have a file's tensors; only those in which its own differ.

    `image_size` (height, width) tells a table of an oblong patch grid from one of a square grid without prefix tokens.
    Depth, width and the like are not among them: another depth is another architecture.
    """
    describe = next((function for kind, function in _TOLD.items() if isinstance(model, kind)), None)
    if describe is None:
        return {}
    own = describe({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    theirs = describe(shapes)
    if _is_oblong(shapes, image_size):
        theirs["no_embed_class"] = False
    return {key: value for key, value in theirs.items() if own.get(key) != value}


def _infer_vit(shapes: Shapes) -> Arguments:
    stem = shapes.get("patch_embed.proj.weight")
    inferred: Arguments = {}
    if stem is not None and len(stem) == 4 and stem[2] <= 256:
        inferred["patch_size"] = stem[2] if stem[2] == stem[3] else stem[2:]
    rows, prefix = shapes.get("pos_embed", (1, 0))[1], _prefix(shapes)
    norm, fc_norm = "norm.weight" in shapes, "fc_norm.weight" in shapes
    pooled = "map" if "attn_pool.latent" in shapes else "avg" if fc_norm or "cls_token" not in shapes else "token"
    inferred |= {
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in shapes else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "proj_bias": "blocks.0.attn.proj.bias" in shapes,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "scale_attn_norm": "blocks.0.attn.norm.weight" in shapes,
        "scale_mlp_norm": "blocks.0.mlp.norm.weight" in shapes,
        "class_token": "cls_token" in shapes,
        "reg_tokens": shapes.get("reg_token", (1, 0))[1],
        "pre_norm": "norm_pre.weight" in shapes,
        "no_embed_class": prefix > 0 and square_side(rows) is not None and square_side(rows - prefix) is None,
        "global_pool": pooled,
        "fc_norm": fc_norm,
        "final_norm": norm or fc_norm,
    }
    return inferred


def _infer_beit(shapes: Shapes) -> Arguments:
    return {
        "use_shared_rel_pos_bias": "rel_pos_bias.relative_position_bias_table" in shapes,
        "use_rel_pos_bias": "blocks.0.attn.relative_position_bias_table" in shapes,
        "use_abs_pos_emb": "pos_embed" in shapes,
        "qkv_bias": "blocks.0.attn.q_bias" in shapes,
        "init_values": 1e-5 if "blocks.0.gamma_1" in shapes else None,
        "global_pool": "token" if "norm.weight" in shapes else "avg",
    }


def _infer_eva(shapes: Shapes) -> Arguments:
    return {"global_pool": "token" if "norm.weight" in shapes else "avg"}


def _infer_swin(shapes: Shapes) -> Arguments:
    inferred: Arguments = {}
    stem = shapes.get("patch_embed.proj.weight")
    if stem is not None and len(stem) == 4 and stem[2] <= 256:
        inferred["patch_size"] = stem[2]
    heads = _stages(shapes, r"layers\.(\d+)\.blocks\.\d+\.attn\.(relative_position_bias_table|logit_scale)$", -1, 0)
    if heads:
        inferred["num_heads"] = heads
    return inferred


def _infer_pvt(shapes: Shapes) -> Arguments:
    hidden = _stages(shapes, r"stages\.(\d+)\.blocks\.0\.mlp\.fc1\.weight$", 0, 0)
    width = _stages(shapes, r"stages\.(\d+)\.blocks\.0\.mlp\.fc1\.weight$", 1, 1)
    return {"mlp_ratios": tuple(a / b for a, b in zip(hidden, width, strict=True))} if hidden else {}


def _stages(shapes: Shapes, expression: str, axis: int, other: int) -> tuple[int, ...]:
    """One size for each stage: along `axis` of tables (rows, heads), along `other` of scales (heads, 1, 1)."""
    found: dict[int, int] = {}
    for name, shape in shapes.items():
        match = re.match(expression, name)
        if match and shape:
            found.setdefault(int(match.group(1)), shape[other if len(shape) == 3 else axis])
    return tuple(found[stage] for stage in sorted(found))


_TOLD: dict[type[nn.Module], Callable[[Shapes], Arguments]] = {
    VisionTransformer: _infer_vit,
    Beit: _infer_beit,
    Eva: _infer_eva,
    SwinTransformer: _infer_swin,
    SwinTransformerV2: _infer_swin,
    PyramidVisionTransformerV2: _infer_pvt,
}

# A plain Vision Transformer of any width and depth.

_KNOWN_HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""By width; every published Vision Transformer with plain names has these, but for those that ask."""
_CANONICAL = {
    (192, 12, 16): "deit_tiny_patch16_224",
    (384, 12, 16): "deit_small_patch16_224",
    (768, 12, 16): "deit_base_patch16_224",
    (1024, 24, 16): "vit_large_patch16_224",
    (1280, 32, 14): "vit_huge_patch14_224",
}


def plain_vit(
    shapes: Shapes, heads: int | None, path: object, image_size: tuple[int, int] | None = None
) -> tuple[str, Arguments, list[str]] | None:
    """(architecture, arguments, assumptions) of a Vision Transformer with timm's names that no registered one equals.

    None where the tensors are not those of one. `heads` is what the file or the user says of them.

    Raises:
        CheckpointError: nothing says the number of heads.
    """
    stem, hidden = shapes.get("patch_embed.proj.weight", ()), shapes.get("blocks.0.mlp.fc1.weight", ())
    qkv = shapes.get("blocks.0.attn.qkv.weight", ())
    if len(stem) != 4 or len(hidden) != 2 or len(qkv) != 2 or qkv[0] != 3 * qkv[1] or "pos_embed" not in shapes:
        return None
    width, depth = stem[0], len({name.split(".")[1] for name in shapes if re.match(r"blocks\.\d+\.", name)})
    if qkv[1] != width or "dist_token" in shapes:
        return None
    inferred = _infer_vit(shapes)
    if _is_oblong(shapes, image_size):
        inferred["no_embed_class"] = False
    arguments = {key: value for key, value in inferred.items() if value != _PLAIN.get(key)}
    name = "VisionTransformer"
    assumed: list[str] = []
    if not inferred["final_norm"]:
        assumed.append("built without a last normalisation, as the file has none")
    if inferred["no_embed_class"]:
        side = square_side(shapes["pos_embed"][1])
        assumed.append(f"position table read as {side}x{side} patches without a row for the class token")
    size = stem[2] if stem[2] == stem[3] else None
    canonical = _CANONICAL.get((width, depth, size or 0))
    known = _KNOWN_HEADS.get(width) if (depth, hidden[0]) != (8, 3 * width) else None  # early timm's small one has 8 of 96
    if heads is None and (heads := known) is None:
        options = [str(number) for number in range(1, 65) if width % number == 0]
        raise CheckpointError(
            f"{path}: a Vision Transformer of width {width} and depth {depth}, whose number of heads no tensor shows; "
            f"give it with --model-args num_heads=N (it may be {', '.join(options[:16])})"
        )
    if canonical is not None and hidden[0] == 4 * width:
        name = canonical
        arguments.pop("patch_size", None)
        if heads != _KNOWN_HEADS[width]:
            arguments["num_heads"] = heads
        return name, arguments, assumed
    arguments |= {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": hidden[0] / width}
    arguments["patch_size"] = size or stem[2:]
    return name, arguments, assumed


def torchvision_maxvit(shapes: Shapes) -> Arguments | None:
    """Arguments of torchvision's MaxViT that has these tensors; None where they are not those of one."""
    layer = re.compile(r"blocks\.(\d+)\.layers\.(\d+)\.layers\.window_attention\.attn_layer\.1\.relative_position_bias_table")
    tables = {(int(m[1]), int(m[2])): shape for name, shape in shapes.items() if (m := layer.fullmatch(name)) and len(shape) == 2}
    stem = shapes.get("stem.0.0.weight", ())
    depths = [sum(place[0] == block for place in tables) for block in range(len({block for block, _ in tables}))]
    widths = [
        shapes.get(f"blocks.{block}.layers.0.layers.window_attention.attn_layer.0.weight", ()) for block in range(len(depths))
    ]
    side = square_side(next(iter(tables.values()))[0]) if tables else None
    if not all(depths) or not all(len(width) == 1 for width in widths) or len(stem) != 4 or side is None or side > 127:
        return None
    window = (side + 1) // 2
    inferred = {"stem_channels": stem[0], "block_channels": tuple(width[0] for width in widths), "block_layers": tuple(depths)}
    inferred |= {"partition_size": window, "head_dim": widths[0][0] // tables[0, 0][1]}
    return inferred | {"img_size": window * 2 ** (len(depths) + 1)}


_PLAIN: Arguments = {
    "qkv_bias": True, "proj_bias": True, "class_token": True, "reg_tokens": 0, "pre_norm": False,
    "no_embed_class": False, "global_pool": "token", "fc_norm": False, "final_norm": True, "init_values": None, "qk_norm": False,
    "scale_attn_norm": False, "scale_mlp_norm": False,
}  # fmt: skip
"""What `VisionTransformer` is without arguments; another patch size is given in any case."""


def _is_oblong(shapes: Shapes, image_size: tuple[int, int] | None) -> bool:
    """Whether the position table, rows of prefix tokens and all, covers an image of this (height, width)."""
    stem, table = shapes.get("patch_embed.proj.weight", ()), shapes.get("pos_embed", ())
    if image_size is None or len(stem) != 4 or len(table) != 3:
        return False
    return (image_size[0] // stem[2]) * (image_size[1] // stem[3]) == table[1] - _prefix(shapes)


def _prefix(shapes: Shapes) -> int:
    """Tokens in front of the patches."""
    return sum(shapes[name][1] for name in ("cls_token", "dist_token", "reg_token") if name in shapes and len(shapes[name]) == 3)


_FALLBACK_CLASSIFIERS = ("head", "head.fc", "fc", "classifier")


def trunk(model: nn.Module) -> tuple[nn.Module, str]:
    """The module that takes the image, and the prefix of its parameters' names.

    That is the backbone in a segmentation model with one of timm, else the model itself.
    """
    from overfocus.models.segmentation import TimmLevels

    backbone = getattr(model, "backbone", None)
    return (backbone.model, "backbone.model.") if isinstance(backbone, TimmLevels) else (model, "")


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the classifier's layers as timm knows them."""
    known = getattr(model, "pretrained_cfg", {}).get("classifier") or _FALLBACK_CLASSIFIERS
    return (known,) if isinstance(known, str) else tuple(known)


def classes_in(tensors: Mapping[str, Tensor], model: nn.Module) -> int:
    """Number of classes of the classifier in a state dict; 0 where it has none."""
    if any(name.startswith("pre_logits.") for name in tensors) and not hasattr(model, "pre_logits"):
        return 0  # a layer between pooling and classifier that timm no longer builds
    for name in (*classifiers(model), *_FALLBACK_CLASSIFIERS):
        weight = tensors.get(f"{name}.weight")
        if weight is not None and weight.ndim in (2, 4):
            return weight.shape[0]
    return 0


def channels_in(tensors: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """Input channels of the first convolution in a state dict, None where it is not found."""
    model, front = trunk(model)
    known = getattr(model, "pretrained_cfg", {}).get("first_conv") or "patch_embed.proj"
    names = (known,) if isinstance(known, str) else tuple(known)
    weight = tensors.get(f"{front}{names[0]}.weight")
    ours = dict(model.named_parameters()).get(f"{names[0]}.weight")
    if weight is None or ours is None or weight.ndim != 4 or weight.shape[1] == ours.shape[1]:
        return None
    return weight.shape[1]


def takes_image_size(model: nn.Module) -> bool:
    """Whether the architecture is built for one image size, given as `img_size`."""
    inside, _ = trunk(model)
    return hasattr(inside, "img_size") or "img_size" in inspect.signature(type(inside).__init__).parameters


def image_size_of(model: nn.Module) -> tuple[int, int]:
    """(height, width) that a model was built for, or timm's default for it."""
    model, _ = trunk(model)
    embed = getattr(model, "patch_embed", None)
    size = getattr(embed, "img_size", None) or getattr(model, "img_size", None)
    if size is None:
        size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def image_size_in(tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[int, int] | None:
    """(height, width) that the position table of a state dict was made for, None where no table says it.

    `model` is the architecture at its default size: its own table and patch grid tell how many prefix tokens the table
    counts and how large a patch is.
    """
    model, front = trunk(model)
    tensors = {name.removeprefix(front): tensor for name, tensor in tensors.items()}
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if is_table(name)}
    height, width = image_size_of(model)
    embed = getattr(model, "patch_embed", None)
    grid, patch = getattr(embed, "grid_size", None), getattr(embed, "patch_size", None)
    mask = tensors.get("layers.0.blocks.1.attn_mask")  # Swin's: (windows, pixels of one, pixels of one)
    side = square_side(mask.shape[0]) if mask is not None and mask.ndim == 3 else None
    if mask is not None and side and isinstance(patch, tuple):
        return side * math.isqrt(mask.shape[1]) * patch[0], side * math.isqrt(mask.shape[1]) * patch[1]
    for name, shape in ours.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found is None or len(found) != len(shape):
            continue
        if len(shape) == 4 and "pos_embed" in name:  # (1, rows, columns, channels)
            axes = (1, 2) if found[3] == shape[3] else (2, 3)
            return height * found[axes[0]] // shape[axes[0]], width * found[axes[1]] // shape[axes[1]]
        if name.endswith("att_mask"):  # RVT: (heads, tokens, tokens)
            side, own = square_side(found[-1]), square_side(shape[-1])
            if side and own:
                return height * side // own, width * side // own
        if grid is None or shape == found:
            continue
        rows, columns = grid
        if len(shape) == 3 and "pos_embed" in name:  # (1, prefix tokens + patches, channels)
            side = square_side(found[1] - (shape[1] - rows * columns))
        elif len(shape) == 2 and rows == columns and shape[0] - 3 == (2 * rows - 1) ** 2:  # BEiT: relative, whole grid
            side = ((square_side(found[0] - 3) or -1) + 1) // 2
        else:
            continue
        if side:
            return height * side // rows, width * side // columns
    return None


def window_in(tensors: Mapping[str, Tensor], model: nn.Module) -> tuple[int, int] | None:
    """(window in a state dict, window of the architecture) where Swin's relative tables say that they differ."""
    model, front = trunk(model)
    tensors = {name.removeprefix(front): tensor for name, tensor in tensors.items()}
    if "window_size" not in inspect.signature(type(model).__init__).parameters:
        return None
    for name, tensor in model.state_dict().items():
        if name.endswith("relative_position_bias_table") and name in tensors and tensor.shape != tensors[name].shape:
            ours, found = square_side(tensor.shape[0]), square_side(tensors[name].shape[0])
            return ((found + 1) // 2, (ours + 1) // 2) if ours and found else None
    return None


def fitting_arguments(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    given: Mapping[str, Any],
    *,
    image_size: tuple[int, int] | None,
    num_classes: int | None,
) -> dict[str, Any]:
    """Arguments for the real model, from its skeleton, what the checkpoint says and what the user asked for."""
    arguments = dict(given)
    arguments["num_classes"] = classes_in(tensors, model) if num_classes is None else num_classes
    channels = channels_in(tensors, model)
    if channels is not None:
        arguments["in_chans"] = channels
    size = image_size or image_size_in(tensors, model)
    windows = window_in(tensors, model) if "window_size" not in given else None
    if windows is not None:
        arguments["window_size"] = windows[0]
        height, width = image_size_of(model)
        size = size or (height * windows[0] // windows[1], width * windows[0] // windows[1])
    if size is not None and takes_image_size(model):
        arguments["img_size"] = size
    return arguments
