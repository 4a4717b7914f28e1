"""Names that authors and libraries give to the tensors of a network, brought to timm's.

timm converts most releases itself, once it knows the architecture (`recognise` tries that on tensors without memory). Here
is what it does not: layouts that say nothing but names. A spelling that could be read in two ways gives two readings.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
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
    """Original names that have no part in the network."""


def readings(tensors: Mapping[str, Tensor]) -> list[Reading]:
    """The ways to read a state dict, the one as it stands first."""
    plain = _unchunked(dict(tensors))
    found = [Reading(dict(tensors))]
    if plain.keys() != tensors.keys():
        found.append(Reading(plain, CHUNKED))
    if "register_tokens" in plain and "mask_token" not in plain:  # with a mask token timm renames them itself
        renamed = {name.replace("register_tokens", "reg_token"): tensor for name, tensor in plain.items()}
        found.append(Reading(renamed, "DINOv2"))
    if "blocks.0.gamma_1" in plain and "blocks.0.attn.qkv.bias" in plain:
        renamed = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): tensor for name, tensor in plain.items()}
        found.append(Reading(renamed, "DeiT-III"))
    for mark, read in _DIALECTS:
        if any(re.search(mark, name) for name in tensors):
            found.append(read(dict(tensors)))
    return found


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


def _renamed(tensors: Tensors, rules: list[tuple[str, str]]) -> Tensors:
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
    projection = result.pop("proj", None)
    if projection is not None and projection.ndim == 2:
        result["head.weight"] = projection.T
        result["head.bias"] = torch.zeros(projection.shape[1], dtype=projection.dtype, device=projection.device)
    return Reading(result, "CLIP", 1e-5)


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
    rules = [
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
    result = {name: tensor for name, tensor in result.items() if name not in dropped}
    moved: Tensors = {}
    for name, tensor in result.items():  # merging of patches: at a stage's end there, at the start of the next in timm
        match = re.match(r"layers\.(\d+)\.downsample\.(reduction|norm)\.(.*)", name)
        if match is None:
            moved[name] = tensor
            continue
        moved[f"layers.{int(match[1]) + 1}.downsample.{match[2]}.{match[3]}"] = _unfolded(tensor)
    return Reading(moved, "OpenMMLab", None, dropped)


def _unfolded(tensor: Tensor) -> Tensor:
    """OpenMMLab merges patches by `nn.Unfold`, channel by channel; Swin takes corner by corner, columns before rows."""
    channels = tensor.shape[-1] // 4
    apart = tensor.reshape(*tensor.shape[:-1], channels, 4)[..., [0, 2, 1, 3]]
    return apart.transpose(-1, -2).reshape(tensor.shape)


def _transformers_vit(tensors: Tensors) -> Reading:
    """ViT and DeiT of transformers, where its configuration is not beside the file."""
    result = _renamed(
        tensors,
        [
            (r"^embeddings\.cls_token$", "cls_token"),
            (r"^embeddings\.distillation_token$", "dist_token"),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.mask_token$", "mask_token"),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
            (r"\.attention\.attention\.", ".attn."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"^layernorm\.", "norm."),
        ],
    )
    return Reading(_packed(result, ("query", "key", "value")), "transformers", 1e-12)


def _packed(tensors: Tensors, parts: tuple[str, str, str]) -> Tensors:
    """Queries, keys and values of each block in one tensor."""
    result = dict(tensors)
    for name in tensors:
        match = re.match(rf"(.*)\.{parts[0]}\.(weight|bias)$", name)
        triple = [f"{match[1]}.{part}.{match[2]}" for part in parts] if match else []
        if match and all(one in result for one in triple):
            result[f"{match[1]}.qkv.{match[2]}"] = torch.cat([result.pop(one) for one in triple])
    return result


_DIALECTS: tuple[tuple[str, Callable[[Tensors], Reading]], ...] = (
    (r"^class_embedding$", _clip),
    (r"^encoder\.layers\.encoder_layer_\d+\.", _torchvision_vit),
    (r"\.ffn\.layers\.0\.0\.", _openmmlab),
    (r"^encoder\.layer\.\d+\.attention\.attention\.query\.", _transformers_vit),
)
