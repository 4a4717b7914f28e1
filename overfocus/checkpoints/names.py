"""Names that authors and libraries give to the tensors of a network, brought to timm's.

timm converts most releases itself, once it knows the architecture (`recognise` tries that on tensors without memory). Here
is what it does not: layouts that say nothing but names. A spelling that could be read in two ways gives two readings.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor

Tensors = dict[str, Tensor]
PARTS = "parts behind prefixes of their own"
"""Origin of a reading whose parts (patches, blocks, last norm, classifier) stood behind different prefixes."""
_VIT_PART = re.compile(
    r"(?<![^.])((patch_embed|blocks)\.|(cls_token|pos_embed|reg_token|dist_token)$|(norm|fc_norm|norm_pre|head)\.(weight|bias)$)"
)
CLIP_PREPROCESSING = {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}
SIGLIP_PREPROCESSING = {"mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD}
CLIP = "CLIP"
"""Origin of OpenAI's CLIP and of OpenCLIP, whose tensors do not say whether the activation is QuickGELU."""
TRANSFORMERS = "transformers"
"""Origin of Hugging Face's names, whose networks differ in an eps that no tensor shows."""
MASKED = "pre-training by masked patches"
"""Origin of a reading without the parts that only such a training needs, which timm's conversions take as a sign."""
CHUNKED = "DINO trained in chunks"
"""Origin of a reading whose blocks were numbered by chunks."""


@dataclass(frozen=True)
class Reading:
    """A state dict with names that timm may know, and what its origin says that no tensor does."""

    tensors: Tensors = field(repr=False)
    origin: str = ""
    """The library or release whose names these were; empty for names left as they were."""
    norm_eps: float | None = None
    dropped: tuple[str, ...] = ()
    """Names without part in the network: normalisation of stages for other heads, MobileSAM's neck."""
    architectures: tuple[str, ...] = ()
    """Names that timm has for what these names belong to, where they say it."""
    preprocessing: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Mean and standard deviation that all models of this origin take."""


def readings(tensors: Mapping[str, Tensor]) -> list[Reading]:
    """The ways to read a state dict, the unchanged one first."""
    plain = _unchunked(dict(tensors))
    found = [Reading(dict(tensors))]
    if plain.keys() != tensors.keys():
        found.append(Reading(plain, CHUNKED))
    if "register_tokens" in plain:
        found.append(Reading(_with_registers(plain), "DINOv2"))
    if "blocks.0.gamma_1" in plain and "blocks.0.attn.qkv.bias" in plain:
        renamed = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): tensor for name, tensor in plain.items()}
        found.append(Reading(renamed, "DeiT-III"))
    for mark, read in _DIALECTS:
        if any(re.search(mark, name) for name in tensors):
            found.append(read(dict(tensors)))
    apart = _without_parts(tensors)
    if apart is not None:
        found.append(Reading(apart, PARTS))
    return found


def _without_parts(tensors: Mapping[str, Tensor]) -> Tensors | None:
    """Names cut down to where timm's Vision Transformer begins, for networks whose parts have different prefixes.

    None where nothing changes, or where two names become one.
    """
    cut: Tensors = {}
    for name, tensor in tensors.items():
        match = _VIT_PART.search(name)
        short = name[match.start() :] if match else name
        if short in cut:
            return None
        cut[short] = tensor
    return cut if cut.keys() != tensors.keys() else None


def _with_registers(tensors: Tensors) -> Tensors:
    """DINOv2 with registers: its table has a row for the class token, which timm adds to that token; SwiGLU's names."""
    rules: Rules = [(r"^register_tokens$", "reg_token"), (r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")]
    result = {name: tensor for name, tensor in _renamed(tensors, rules).items() if name != "mask_token"}
    table, token = result.get("pos_embed"), result.get("cls_token")
    if (
        table is not None
        and token is not None
        and table.ndim == 3
        and math.isqrt(max(table.shape[1] - 1, 0)) ** 2 == table.shape[1] - 1
    ):
        result |= {"cls_token": token + table[:, :1], "pos_embed": table[:, 1:]}
    return result


def _unchunked(tensors: Tensors) -> Tensors:
    """DINOv2 and v3 trained under FSDP number their blocks `blocks.CHUNK.BLOCK.`; the second number counts through."""
    chunked = [name for name in tensors if re.match(r"blocks\.\d+\.\d+\.attn\.qkv\.", name)]
    if not chunked or any(re.match(r"blocks\.\d+\.(attn|norm1)\.", name) for name in tensors):
        return tensors
    places = sorted({tuple(map(int, name.split(".")[1:3])) for name in tensors if re.match(r"blocks\.\d+\.\d+\.", name)})
    counts_through = len({block for _, block in places}) == len(places)
    number = {place: place[1] if counts_through else index for index, place in enumerate(places)}

    def renamed(name: str) -> str:
        match = re.match(r"blocks\.(\d+)\.(\d+)\.(.*)", name)
        return f"blocks.{number[int(match[1]), int(match[2])]}.{match[3]}" if match else name

    return {renamed(name): tensor for name, tensor in tensors.items()}


Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]


def _renamed(tensors: Tensors, rules: Rules) -> Tensors:
    """The tensors with every rule applied to their names, in order."""
    compiled = [(re.compile(old), new) for old, new in rules]
    result: Tensors = {}
    for name, tensor in tensors.items():
        for old, new in compiled:
            name = old.sub(new, name)
        result[name] = tensor
    return result


def _clip(tensors: Tensors) -> Reading:
    """OpenAI's CLIP and OpenCLIP's own Vision Transformer; `proj` becomes a classifier without bias."""
    result = _renamed(
        tensors,
        [
            (r"^class_embedding$", "cls_token"),
            (r"^positional_embedding$", "pos_embed"),
            (r"^conv1\.", "patch_embed.proj."),
            (r"^ln_pre\.", "norm_pre."),
            (r"^ln_post\.", "norm."),
            (r"^transformer\.resblocks\.", "blocks."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.attn\.in_proj_", ".attn.qkv."),
            (r"\.attn\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.c_fc\.", ".mlp.fc1."),
            (r"\.mlp\.c_proj\.", ".mlp.fc2."),
            (r"\.ls_([12])\.gamma$", r".ls\1.gamma"),
        ],
    )
    for name, shape in (("cls_token", (1, 1, -1)), ("pos_embed", (1, -1, result["cls_token"].shape[-1]))):
        if name in result and result[name].ndim < 3:
            result[name] = result[name].reshape(shape)
    if "norm_pre.weight" not in result:  # CLIPA; timm's patch projection has a bias then
        width = result["cls_token"].shape[-1]
        result["patch_embed.proj.bias"] = torch.zeros(width, dtype=result["cls_token"].dtype, device=result["cls_token"].device)
    projection = result.pop("proj", None)
    if projection is not None and projection.ndim == 2:
        result["head.weight"] = projection.T
        result["head.bias"] = torch.zeros(projection.shape[1], dtype=projection.dtype, device=projection.device)
    return Reading(result, CLIP, 1e-5, preprocessing=CLIP_PREPROCESSING)


def _transformers_clip(tensors: Tensors) -> Reading:
    """CLIP's image tower of transformers, where the configuration is not beside the file."""
    renamed = _renamed(
        {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")},
        [
            (r"^embeddings\.class_embedding$", "class_embedding"),
            (r"^embeddings\.patch_embedding\.", "conv1."),
            (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
            (r"^pre_layrnorm\.", "ln_pre."),
            (r"^post_layernorm\.", "ln_post."),
            (r"^encoder\.layers\.", "transformer.resblocks."),
            (r"\.layer_norm([12])\.", r".ln_\1."),
            (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
            (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
            (r"\.mlp\.fc1\.", ".mlp.c_fc."),
            (r"\.mlp\.fc2\.", ".mlp.c_proj."),
        ],
    )
    return _clip(_renamed(_packed(renamed, ("q", "k", "v")), [(r"\.attn\.qkv\.", ".attn.in_proj_")]))


def _torchvision_vit(tensors: Tensors) -> Reading:
    result = _renamed(
        tensors,
        [
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"^encoder\.ln\.", "norm."),
            (r"^heads\.head\.", "head."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
        ],
    )
    return Reading(result, "torchvision", 1e-6)


def _openmmlab(tensors: Tensors) -> Reading:
    """Vision Transformers of mmpretrain, mmsegmentation and mmdetection, and their Swin."""
    swin = any(".w_msa." in name for name in tensors)
    rules: Rules = [
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    ]
    if swin:
        rules += [(r"^stages\.", "layers."), (r"\.attn\.w_msa\.", ".attn."), (r"^norm3\.", "norm.")]
    else:
        rules += [
            (r"^layers\.", "blocks."),
            (r"\.ln([12])\.", r".norm\1."),
            (r"^ln1\.", "norm."),
            (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
            (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
            (r"\.gamma([12])\.weight$", r".ls\1.gamma"),
            (r"\.ffn\.gamma2\.weight$", ".ls2.gamma"),
        ]
    result = _renamed(tensors, rules)
    if not swin:
        return Reading(result, "OpenMMLab", 1e-6)
    dropped = tuple(name for name in result if re.match(r"norm[012]\.", name))
    merged = re.compile(r"layers\.\d+\.downsample\.(reduction|norm)\.")
    kept = {name: _unfolded(tensor) if merged.match(name) else tensor for name, tensor in result.items() if name not in dropped}
    return Reading(kept, "OpenMMLab", None, dropped)


def _unfolded(tensor: Tensor) -> Tensor:
    """OpenMMLab merges patches by `nn.Unfold`, channel by channel; Swin takes corner by corner, columns before rows."""
    channels = tensor.shape[-1] // 4
    apart = tensor.reshape(*tensor.shape[:-1], channels, 4)[..., [0, 2, 1, 3]]
    return apart.transpose(-1, -2).reshape(tensor.shape)


def _transformers_vit(tensors: Tensors) -> Reading:
    """ViT, DeiT and DINOv2 of transformers, before and since its version 5, where the configuration is not beside the file."""
    result = _renamed(
        tensors,
        [
            (r"^embeddings\.cls_token$", "cls_token"),
            (r"^embeddings\.distillation_token$", "dist_token"),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.(mask_token|register_tokens)$", r"\1"),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
            (r"\.attention\.attention\.", ".attn."),
            (r"\.attention\.([qkv])_proj\.", lambda m: f".attn.{ {'q': 'query', 'k': 'key', 'v': 'value'}[m[1]] }."),
            (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
            (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"^layernorm\.", "norm."),
            (r"^classifier\.", "head."),
        ],
    )
    result = _packed(_with_registers(result) if "register_tokens" in result else result, ("query", "key", "value"))
    younger = "blocks.0.ls1.gamma" in result or "cls_token" not in result  # DINOv2, I-JEPA
    pooler = tuple(name for name in result if name.startswith("pooler.dense.") and "head.weight" not in result)
    result = {name: tensor for name, tensor in result.items() if name not in pooler}
    return Reading(result, TRANSFORMERS, 1e-6 if younger else 1e-12, pooler)


def _packed(tensors: Tensors, parts: tuple[str, str, str]) -> Tensors:
    """Queries, keys and values of each block in one tensor."""
    result = dict(tensors)
    for name in tensors:
        match = re.match(rf"(.*)\.{parts[0]}\.(weight|bias)$", name)
        triple = [f"{match[1]}.{part}.{match[2]}" for part in parts] if match else []
        if match and all(one in result for one in triple):
            result[f"{match[1]}.qkv.{match[2]}"] = torch.cat([result.pop(one) for one in triple])
    return result


def _torchvision_swin(tensors: Tensors) -> Reading:
    """Swin and Swin v2 of torchvision: stages and merging in one list; v2 has one bias whose part for the keys counts as zero."""
    result = _renamed(
        tensors,
        [
            (r"^features\.0\.0\.", "patch_embed.proj."),
            (r"^features\.0\.2\.", "patch_embed.norm."),
            (r"^features\.([1357])\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}."),
            (r"^features\.([246])\.", lambda m: f"layers.{int(m[1]) // 2 - 1}.downsample."),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.3\.", ".mlp.fc2."),
        ],
    )
    second = any("cpb_mlp" in name for name in result)
    for name in [name for name in result if second and name.endswith(".attn.qkv.bias")]:
        queries, _, values = result.pop(name).chunk(3)
        front = name.removesuffix("qkv.bias")
        result |= {f"{front}q_bias": queries, f"{front}v_bias": values}
    for name, tensor in result.items():
        if name.endswith("relative_position_index") and tensor.ndim == 1:
            side = round(len(tensor) ** 0.5)
            result[name] = tensor.reshape(side, side)
    return Reading(result, "torchvision")


def _levit(tensors: Tensors) -> Reading:
    """LeViT of its authors: one list of residual blocks for all stages, `c` for a convolution or linear layer."""
    numbers = sorted({int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))})
    places: dict[int, str] = {}
    stage = block = 0
    merging = False
    for number in numbers:
        if f"blocks.{number}.kv.c.weight" in tensors:
            stage, block, merging = stage + 1, 0, True
            places[number] = f"stages.{stage}.downsample.attn_downsample"
        elif f"blocks.{number}.m.qkv.c.weight" in tensors:
            places[number] = f"stages.{stage}.blocks.{block}.attn"
        else:
            places[number] = f"stages.{stage}.downsample.mlp" if merging else f"stages.{stage}.blocks.{block}.mlp"
            block, merging = block + (not merging), False
    result = _renamed(
        tensors,
        [
            (r"^patch_embed\.(\d)\.", lambda m: f"stem.conv{int(m[1]) // 2 + 1}."),
            (r"^blocks\.(\d+)\.(m\.)?", lambda m: f"{places[int(m[1])]}."),
            (r"\.mlp\.0\.", ".mlp.ln1."),
            (r"\.mlp\.2\.", ".mlp.ln2."),
            (r"\.(q|proj)\.1\.", r".\1.ln."),
            (r"^(head|head_dist)\.l\.", r"\1.linear."),
            (r"\.c\.weight$", ".linear.weight"),
        ],
    )
    return Reading(result, "LeViT")


def _tinyvit(tensors: Tensors) -> Reading:
    """TinyViT of its authors, alone or as MobileSAM's image encoder: merging at a stage's end, there at the start of the next."""
    result = _renamed(
        tensors,
        [
            (r"^patch_embed\.seq\.(\d)\.", lambda m: f"patch_embed.conv{int(m[1]) // 2 + 1}."),
            (r"^layers\.(\d)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
            (r"^layers\.", "stages."),
            (r"\.c\.weight$", ".conv.weight"),
            (r"^norm_head\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
    )
    head = result.get("head.fc.weight")
    neck = {name: tensor for name, tensor in result.items() if name.startswith("neck.")}
    between = head is not None and any(tensor.shape[:1] == head.shape[1:] for tensor in neck.values())
    dropped = () if between else tuple(neck)
    return Reading({name: tensor for name, tensor in result.items() if name not in dropped}, "TinyViT", None, dropped)


def has_moco_positions(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a ViT-S has the fixed sines and cosines of MoCo v3, rows before columns (MAE's and others': columns first)."""
    table = tensors.get("pos_embed")
    side = math.isqrt(table.shape[1] - 1) if table is not None and table.ndim == 3 and table.shape[1] > 4 else 0
    if table is None or tuple(table.shape) != (1, side * side + 1, 384):
        return False
    frequencies = 10_000 ** -(torch.arange(96) / 96)
    rows, columns = (axis.flatten()[:, None] * frequencies for axis in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    expected = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], 1)
    return torch.allclose(table[0].float(), torch.cat([torch.zeros(1, 384), expected]), atol=0.01)


def _sam(tensors: Tensors) -> Reading:
    return Reading(_renamed(tensors, [(r"\.mlp\.lin([12])\.", r".mlp.fc\1.")]), "SAM")


def _beit(tensors: Tensors) -> Reading:
    """BEiT before fine-tuning, when all blocks share one table of relative positions."""
    size = {12: "base", 16: "large"}.get((*tensors["rel_pos_bias.relative_position_bias_table"].shape, 0)[1])
    return Reading(tensors, "BEiT", architectures=(f"beit_{size}_patch16_224", f"beitv2_{size}_patch16_224") if size else ())


def _without(expression: str, origin: str) -> Callable[[Tensors], Reading]:
    """The names as they are, without those of parts that the network at rest does not use."""

    def read(tensors: Tensors) -> Reading:
        dropped = tuple(name for name in tensors if re.match(expression, name))
        return Reading({name: tensor for name, tensor in tensors.items() if name not in dropped}, origin, dropped=dropped)

    return read


_MIT: dict[tuple[int, ...], int] = {(2, 2, 2, 2): 1, (3, 4, 6, 3): 2, (3, 4, 18, 3): 3, (3, 8, 27, 3): 4, (3, 6, 40, 3): 5}


def _mix_transformer(tensors: Tensors) -> Reading:
    """SegFormer's encoder: the layers of a PVT v2, with names of its own and other widths in the MLP."""
    depths = tuple(len({n.split(".")[1] for n in tensors if n.startswith(f"block{stage}.")}) for stage in (1, 2, 3, 4))
    size = _MIT.get(depths, 0)
    narrow = size == 1 and tensors["patch_embed1.proj.weight"].shape[0] == 32
    result = _renamed(
        tensors,
        [
            (r"^patch_embed1\.", "patch_embed."),
            (r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
            (r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
            (r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
            (r"\.dwconv\.dwconv\.", ".dwconv."),
        ],
    )
    return Reading(result, "SegFormer or PVT v2", architectures=(f"pvt_v2_b{0 if narrow else size}",) if size else ())


_DIALECTS: tuple[tuple[str, Callable[[Tensors], Reading]], ...] = (
    (r"^class_embedding$", _clip),
    (r"^embeddings\.class_embedding$", _transformers_clip),
    (r"^encoder\.layers\.encoder_layer_\d+\.", _torchvision_vit),
    (r"\.ffn\.layers\.0\.0\.", _openmmlab),
    (r"^(encoder\.layer|layers)\.\d+\.attention\.(attention\.query|q_proj)\.", _transformers_vit),
    (r"^features\.1\.0\.attn\.qkv\.", _torchvision_swin),
    (r"^blocks\.0\.m\.qkv\.c\.", _levit),
    (r"^patch_embed\.seq\.0\.c\.", _tinyvit),
    (r"\.mlp\.lin1\.", _sam),
    (r"^rel_pos_bias\.relative_position_bias_table$", _beit),
    (r"^block1\.0\.attn\.kv\.", _mix_transformer),
    (r"^lm_head\.", _without(r"mask_token$|lm_head\.", MASKED)),
    (r"^serial_blocks1\.0\.", _without(r"norm1\.", "CoaT")),
    (r"^serial_blocks1\.0\.", _without(r"norm[123]\.", "CoaT-Lite")),
)

# Google's JAX code (ViT, AugReg, SAM; big_vision) keeps trees of kernels: transposed, with an axis of heads, sometimes all
# blocks in one array.

_JAX_FRONT = re.compile(r"^(.*?)embedding/kernel$")


def from_jax(arrays: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, str]] | None:
    """The tensors of a Vision Transformer of JAX in timm's names, and what its arrays say beside: `num_heads`, mean and std.

    None where the arrays are not those of one.

    Raises:
        KeyError, IndexError, RuntimeError: arrays are missing or have other shapes.
    """
    fronts = [match[1] for name in arrays if (match := _JAX_FRONT.match(name))]
    front = next((f for f in fronts if any(name.startswith(f"{f}Transformer/encoderblock") for name in arrays)), None)
    if front is None or arrays[f"{front}embedding/kernel"].ndim != 4:
        return None
    result: Tensors = {}
    own = {name.removeprefix(front): tensor for name, tensor in arrays.items() if name.startswith(front)}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in own.items():
        match = re.match(r"Transformer/encoderblock(?:_(\d+))?/(.*)", name)
        if match is None:
            parts.setdefault("", {})[name] = tensor
        elif match[1] is not None:
            parts.setdefault(match[1], {})[match[2]] = tensor
        else:
            for number, slice_ in enumerate(tensor):
                parts.setdefault(str(number), {})[match[2]] = slice_
    for place, block in parts.items():
        result |= _jax_part(block, f"blocks.{place}." if place else "")
    queries = next(tensor for name, tensor in parts["0"].items() if name.endswith("/query/kernel"))
    beside = {
        name.replace("/", "."): tensor for name, tensor in arrays.items() if not name.startswith(front) and tensor.numel() > 1
    }
    result = {front.replace("/", ".") + name: tensor for name, tensor in result.items()} | beside
    return result, {"origin": "JAX", "num_heads": str(queries.shape[1])}


_JAX_NAMES: Rules = [
    (r"^Transformer/posembed_input/pos_embedding$|^pos_embedding$", "pos_embed"),
    (r"^cls$", "cls_token"),
    (r"^embedding/", "patch_embed.proj."),
    (r"^Transformer/encoder_norm/", "norm."),
    (r"^LayerNorm_0/", "norm1."),
    (r"^LayerNorm_[12]/", "norm2."),
    (r"^MAPHead_0/probe$", "attn_pool.latent"),
    (r"^MAPHead_0/LayerNorm_0/", "attn_pool.norm."),
    (r"^MAPHead_0/MlpBlock_0/Dense_([01])/", lambda m: f"attn_pool.mlp.fc{int(m[1]) + 1}."),
    (r"^MlpBlock_\d/Dense_([01])/", lambda m: f"mlp.fc{int(m[1]) + 1}."),
    (r"^pre_logits/", "pre_logits.fc."),
    (r"scale$", "weight"),
    (r"kernel$", "weight"),
    (r"/", "."),
]


def _jax_part(part: dict[str, Tensor], front: str) -> Tensors:
    """One block, or what stands outside the blocks: kernels the other way round, queries, keys and values in one."""
    part, result = dict(part), {}
    for attention in {name.split("/query/")[0] for name in part if "/query/kernel" in name}:
        pooling = attention.startswith("MAPHead")
        place = "attn_pool." if pooling else "attn."
        for kind, target in (("kernel", "weight"), ("bias", "bias")):
            flat = []
            for one in ("query", "key", "value"):
                tensor = part.pop(f"{attention}/{one}/{kind}")
                flat.append(tensor.reshape(tensor.shape[0], -1).T if kind == "kernel" else tensor.reshape(-1))
            out = part.pop(f"{attention}/out/{kind}")
            result[f"{place}proj.{target}"] = out.reshape(-1, out.shape[-1]).T if kind == "kernel" else out
            if pooling:
                result |= {f"{place}q.{target}": flat[0], f"{place}kv.{target}": torch.cat(flat[1:])}
            else:
                result[f"{place}qkv.{target}"] = torch.cat(flat)
    for name, tensor in part.items():
        kernel = name.endswith("kernel")
        turned = (
            tensor.permute(3, 2, 0, 1) if kernel and tensor.ndim == 4 else tensor.T if kernel and tensor.ndim == 2 else tensor
        )
        result |= _renamed({name: turned}, _JAX_NAMES)
    return {front + name: tensor.contiguous() for name, tensor in result.items()}
