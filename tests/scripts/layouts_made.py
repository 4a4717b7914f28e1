"""Checkpoints in other people's layouts, made from small models whose outputs are known.

A model of torchvision, transformers or OpenCLIP is the original itself. Where the authors' code is in no package, the original
names are written down here as the inverse of a renaming, over the tensors of a model of timm that computes the same.
"""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

State = dict[str, Tensor]
SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 192,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
}


@dataclass(frozen=True)
class Made:
    """A checkpoint that was written, and how far a model is from what its original computes."""

    path: Path
    difference: Callable[[nn.Module], float] | None
    """Largest difference relative to the largest value, infinite for another shape; None where the file must be refused."""


def compare(original: Callable[[Tensor], Tensor] | nn.Module) -> Callable[[nn.Module], float]:
    """How far a model's logits, or its tokens where the original has none, are from those of the original."""

    def difference(model: nn.Module) -> float:
        config = getattr(model, "config", None)
        size = getattr(getattr(model, "patch_embed", None), "img_size", None) or getattr(config, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        channels = int(getattr(model, "in_chans", None) or getattr(config, "num_channels", 3))
        images = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected, found = original(images), model(images)
            if getattr(model, "num_classes", 1) == 0 and found.shape != expected.shape:
                found = model.forward_features(images)  # type: ignore[operator]
        return float((found - expected).abs().max() / expected.abs().max()) if found.shape == expected.shape else float("inf")

    return difference


def random_values(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and running statistic random, so that none is without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and (isinstance(tensor, nn.Parameter) or "running_" in name):
                noise = torch.randn(tensor.shape, generator=generator)
                one = tensor.ndim == 1 and not name.endswith("bias")
                spread = 0.2 if tensor.ndim < 2 else 0.8 / tensor[0].numel() ** 0.5
                tensor.copy_((spread * noise).abs() + 0.5 if "running_var" in name else spread * noise + one)
    return model.eval()


def vit(**arguments: Any) -> nn.Module:
    """A small Vision Transformer of timm."""
    return random_values(VisionTransformer(**(SMALL | arguments)))


def of_timm(name: str, **arguments: Any) -> nn.Module:
    """A model by timm's name."""
    return random_values(timm.create_model(name, **arguments))


def renamed(state: State, *rules: tuple[str, str]) -> State:
    """The tensors with every rule applied to their names, in order."""
    result = {}
    for name, tensor in state.items():
        for old, new in rules:
            name = re.sub(old, new, name)
        result[name] = tensor
    return result


def behind(state: State, front: str) -> State:
    """The names behind a prefix."""
    return {front + name: tensor for name, tensor in state.items()}


def shifted(state: State) -> State:
    """The copy that must not be taken."""
    return {name: tensor + 0.5 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def without(state: State, expression: str) -> State:
    """Without the names that match."""
    return {name: tensor for name, tensor in state.items() if not re.search(expression, name)}


def head_of_dino(front: str, width: int = 192) -> State:
    """A projection head of DINO and iBOT."""
    shapes = {"mlp.0.weight": (64, width), "mlp.0.bias": (64,), "mlp.2.weight": (16, 64), "mlp.2.bias": (16,)}
    shapes |= {"last_layer.weight_g": (99, 1), "last_layer.weight_v": (99, 16)}
    return {front + name: torch.ones(shape) for name, shape in shapes.items()}


MAKERS: dict[str, Callable[[Path], Made]] = {}


def layout(name: str) -> Callable[[Callable[[Path], Made]], Callable[[Path], Made]]:
    """Put a maker into the table of layouts."""

    def keep(maker: Callable[[Path], Made]) -> Callable[[Path], Made]:
        MAKERS[name] = maker
        return maker

    return keep


def saved(folder: Path, content: Any, original: Callable[[Tensor], Tensor] | nn.Module | None, name: str = "weights.pth") -> Made:
    """Write a checkpoint with torch."""
    torch.save(content, folder / name)
    return Made(folder / name, original and compare(original))


def tokens(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What an encoder of timm gives without its classifier."""
    return lambda images: model.forward_features(images)  # type: ignore[operator,no-any-return]


# A small Vision Transformer with parts, with what no architecture has, and without what every one has.

PARTS: dict[str, dict[str, Any]] = {
    "plain ViT of width 192": {},
    "LayerScale": {"init_values": 1e-5}, "QK-norm": {"qk_norm": True}, "registers": {"reg_tokens": 4},
    "layer scale, QK-norm, registers": {"init_values": 0.1, "qk_norm": True, "reg_tokens": 4},
    "no class token": {"class_token": False, "global_pool": "avg"}, "pooled, fc_norm": {"global_pool": "avg"},
    "no class token, norm before pooling": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "attention pooling": {"global_pool": "map"}, "class token without position": {"no_embed_class": True},
    "registers without position": {"no_embed_class": True, "reg_tokens": 2},
    "norm before the blocks": {"pre_norm": True}, "no bias of queries, keys, values": {"qkv_bias": False},
    "no bias of projections": {"proj_bias": False},
    "norms in attention and MLP": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "no last norm": {"final_norm": False}, "patch 4 at 32 pixels": {"patch_size": 4}, "patch 2 at 32 pixels": {"patch_size": 2},
    "MLP of ratio 3": {"mlp_ratio": 3.0, "depth": 3}, "width 384": {"embed_dim": 384, "num_heads": 6, "depth": 1},
    "grey input": {"in_chans": 1}, "no classifier": {"num_classes": 0},
}  # fmt: skip
LEFT_OVER: dict[str, dict[str, tuple[int, ...]]] = {
    "layer scale of one block": {"blocks.1.ls1.gamma": (192,)},
    "LoRA": {"blocks.0.attn.qkv.lora_A.weight": (4, 192), "blocks.0.attn.qkv.lora_B.weight": (576, 4)},
    "LoRA of another library": {"blocks.0.attn.qkv.linear_a_q.weight": (4, 192)},
    "adapter": {"blocks.0.adapter.down.weight": (2, 192), "blocks.0.adapter.up.weight": (192, 2)},
    "prompt tokens": {"prompt_embeddings": (1, 3, 192)},
    "scale and shift": {"blocks.0.ssf_scale_1": (192,), "blocks.0.ssf_shift_1": (192,)},
    "relative positions": {"blocks.0.attn.relative_position_bias_table": (49, 3)},
    "talking heads": {"blocks.0.attn.proj_l.weight": (3, 3), "blocks.0.attn.proj_w.weight": (3, 3)},
    "temperature of a head": {"blocks.0.attn.temperature": (3, 1, 1)},
    "gate": {"blocks.0.attn.gate": (1,)},
    "a norm more": {"blocks.0.norm3.weight": (192,), "blocks.0.norm3.bias": (192,)},
    "a second patch embedding": {"patch_embed2.proj.weight": (192, 3, 4, 4)},
    "another position table": {"pos_embed_spatial": (1, 16, 192)},
    "one value": {"alpha": ()},
    "rotary positions": {"rope.inv_freq": (32,)},
    "rotary tables of a block": {"blocks.0.attn.rope.freqs_cos": (16, 64)},
    "a mask": {"blocks.0.attn_mask": (17, 17)},
    "attention sink": {"blocks.0.attn.sink": (3,)},
    "attention over time": {"blocks.0.temporal_attn.qkv.weight": (576, 192)},
    "relative rows": {"blocks.0.attn.rel_pos_h": (7, 64)},
    "a pyramid": {"fpn1.0.weight": (192, 192, 2, 2)},
    "side information": {"sie_embed": (3, 1, 192)},
    "scales of a quantiser": {"blocks.0.attn.qkv.weight_fake_quant.scale": (1,)},
}
FIRST = "^(patch_embed|pos_embed|cls_token)"
ALIKE: dict[str, tuple[str, dict[str, tuple[int, ...]], str]] = {
    "T2T": (FIRST, {"tokens_to_token.attention1.qkv.weight": (192, 147), "tokens_to_token.project.weight": (192, 576)}, ""),
    "data2vec 2": (FIRST, {"modality_encoders.IMAGE.local_encoder.proj.weight": (192, 3, 8, 8)}, ""),
    "AIM": (FIRST, {"preprocessor.patchifier.proj.weight": (192, 3, 8, 8), "preprocessor.pos_embed": (1, 16, 192)}, ""),
    "RADIO": (FIRST, {"patch_generator.embedder.weight": (192, 192), "patch_generator.pos_embed": (1, 16, 192)}, ""),
    "MAE of videos": ("pos_embed", {"pos_embed_spatial": (1, 16, 192), "patch_embed.proj.weight": (192, 3, 2, 8, 8)}, ""),
    "one frame": ("", {"patch_embed.proj.weight": (192, 3, 1, 8, 8)}, ""),
    "ViTDet": (r"^norm\.", {"simfp_2.0.weight": (192, 96, 2, 2)}, ""),
    "ViTDet beside": (r"^norm\.", {"../simfp_2.0.weight": (192, 96, 2, 2)}, "attend in windows"),
    "tensor parallel": ("", {"blocks.0.attn.qkv.weight": (288, 192), "blocks.0.attn.qkv.bias": (288,)}, ""),
    "emptied by ZeRO-3": ("", {"blocks.0.attn.qkv.weight": (0,), "patch_embed.proj.weight": (0,)}, ""),
    "weight normalisation": (
        "qkv.weight", {f"blocks.0.attn.qkv.parametrizations.weight.original{n}": (576, m) for n, m in ((0, 1), (1, 192))}, ""
    ),
    "pruned by a mask": ("qkv.weight", {f"blocks.0.attn.qkv.weight_{n}": (576, 192) for n in ("orig", "mask")}, ""),
    "RMSNorm": (r"norm\d?\.bias", {}, "missing blocks.0.norm1.bias"),
    "SwiGLU in one tensor": ("", {f"blocks.{n}.mlp.fc2.weight": (192, 384) for n in (0, 1)}, "fc2.weight has shape"),
    "queries of full width": ("", {f"blocks.{n}.attn.{q}_norm.weight": (192,) for n in (0, 1) for q in "qk"}, ""),
    "table of two axes": ("", {"pos_embed": (17, 192)}, "pos_embed has shape"),
    "two last norms": ("", {"fc_norm.weight": (192,), "fc_norm.bias": (192,)}, "norm.weight"),
    "flattened by FSDP": (".", {"_flat_param": (999,), "blocks.0._fsdp_wrapped_module._flat_param": (99,)}, "flattened by FSDP"),
    "bitsandbytes int8": ("", {"blocks.0.attn.qkv.SCB": (576,)}, "quantised weights"),
    "tokens pruned": ("", {"score_predictor.0.in_conv.1.weight": (192, 192), "score_predictor.0.out_conv.4.weight": (2, 48)}, ""),
    "tokens pruned beside": ("", {"../policy.mlp.weight": (2, 192)}, "policy.mlp.weight beside"),
    "colours mixed before": ("", {"../to_rgb.weight": (3, 1, 1, 1), "../to_rgb.bias": (3,)}, "to_rgb.weight, "),
    "layers before the image": ("", {"../first.0.weight": (16, 2, 3, 3), "../first.2.weight": (3, 16, 3, 3)}, "first.0.weight"),
    "a branch of the image": ("", {"../spatial.0.weight": (64, 3, 3, 3), "../spatial.2.weight": (192, 64, 3, 3)}, ""),
    "an image added": ("", {"../program.w": (3, 32, 32)}, "program.w beside"),
    "the image normalised by a layer": ("", {"../bn_in.weight": (3,), "../bn_in.running_var": (3,)}, "bn_in.weight"),
    "cameras": ("", {"../camera_embed.weight": (6, 192)}, "camera_embed.weight beside"),
    "conditions": ("", {"../film.0.weight": (64, 48), "../film.2.weight": (384, 64)}, "film.0.weight, .*film.2.weight beside"),
    "10 channels": ("", {"patch_embed.proj.weight": (192, 10, 8, 8)}, "takes 10 input channels"),
}  # fmt: skip


def alike(kind: str, state: State) -> State:
    """The names and shapes of `ALIKE`, behind a prefix; `../` stands beside the network."""
    lost, more, _ = ALIKE[kind]
    kept = behind(without(state, lost) if lost else state, "backbone.net.")
    return kept | {f"backbone.net.{name}".replace("net.../", ""): torch.rand(shape) for name, shape in more.items()}


# Vision Transformers of timm's names, in the files that self-supervised trainers write.


@layout("DeiT, distilled (facebookresearch/deit)")
def deit_distilled(folder: Path) -> Made:
    model = of_timm("deit_tiny_distilled_patch16_224")
    return saved(folder, {"model": model.state_dict()}, model)


@layout("DINO, full training file with heads")
def dino(folder: Path) -> Made:
    model = vit(num_classes=0)
    student = behind(shifted(model.state_dict()), "module.backbone.") | head_of_dino("module.head.")
    teacher = behind(model.state_dict(), "backbone.") | head_of_dino("head.")
    args = argparse.Namespace(arch="vit_small", patch_size=8, out_dim=65536, momentum_teacher=0.996)
    loss = {"center": torch.ones(1, 99)}
    content = {"student": student, "teacher": teacher, "optimizer": {"state": {}}, "epoch": 3, "args": args, "dino_loss": loss}
    return saved(folder, content, tokens(model), "checkpoint.pth")


@layout("iBOT, full training file (bytedance/ibot)")
def ibot(folder: Path) -> Made:
    model = vit(num_classes=0)
    more = {"masked_embed": torch.ones(1, 192)}
    student = behind(shifted(model.state_dict()) | more, "module.backbone.") | head_of_dino("module.head.")
    teacher = behind(model.state_dict() | more, "backbone.") | head_of_dino("head.")
    loss = {"center": torch.ones(1, 99), "center2": torch.ones(1, 1, 99)}
    return saved(folder, {"student": student, "teacher": teacher, "epoch": 3, "ibot_loss": loss}, tokens(model), "checkpoint.pth")


@layout("MSN (facebookresearch/msn)")
def msn(folder: Path) -> Made:
    model = vit(num_classes=0)
    head = {
        "module.fc.fc1.weight": torch.ones(48, 192),
        "module.fc.bn1.weight": torch.ones(48),
        "module.fc.fc2.weight": torch.ones(9, 48),
    }
    content = {
        "encoder": behind(shifted(model.state_dict()), "module.") | head,
        "target_encoder": behind(model.state_dict(), "module.") | head,
        "prototypes": torch.ones(9, 9),
        "opt": {"state": {}},
        "epoch": 3,
        "loss": 0.1,
        "batch_size": 8,
    }
    return saved(folder, content, tokens(model), "vits16_800ep.pth.tar")


@layout("I-JEPA (facebookresearch/ijepa)")
def ijepa(folder: Path) -> Made:
    model = vit(num_classes=0, class_token=False, global_pool="avg", fc_norm=False)
    own = behind(model.state_dict(), "module.")
    predictor = behind(vit(num_classes=0, embed_dim=384, num_heads=6).state_dict(), "module.predictor_")
    predictor = without(predictor, "patch_embed|cls_token")
    content = {"encoder": shifted(own), "predictor": predictor, "opt": {}, "scaler": None, "target_encoder": own, "epoch": 2}
    return saved(folder, content, tokens(model), "jepa-latest.pth.tar")


@layout("DINOv2, teacher in chunks")
def dinov2(folder: Path) -> Made:
    model = vit(num_classes=0, init_values=1e-5, reg_tokens=4, no_embed_class=True, depth=4)
    state = renamed(model.state_dict(), (r"^reg_token$", "register_tokens"), (r"^blocks\.([01])\.", r"blocks.0.\1."))
    state = renamed(state, (r"^blocks\.([23])\.", r"blocks.1.\1.")) | {"mask_token": torch.ones(1, 192)}
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 192), state["pos_embed"]], 1)
    return saved(
        folder, {"teacher": behind(state, "backbone.") | head_of_dino("dino_head.")}, tokens(model), "teacher_checkpoint.pth"
    )


@layout("MAE, pre-trained with decoder")
def mae(folder: Path) -> Made:
    model = vit(num_classes=0)
    decoder = behind(
        without(vit(embed_dim=384, num_heads=6, num_classes=0).state_dict(), "patch_embed|cls_token|^norm"), "decoder_"
    )
    decoder |= {"decoder_embed.weight": torch.ones(384, 192), "mask_token": torch.ones(1, 1, 384)}
    content = {"model": model.state_dict() | decoder, "optimizer": {}, "epoch": 3, "scaler": {}, "args": argparse.Namespace(lr=1)}
    return saved(folder, content, tokens(model), "checkpoint-799.pth")


@layout("MAE, fine-tuned")
def mae_finetuned(folder: Path) -> Made:
    model = vit(global_pool="avg")
    args = argparse.Namespace(model="vit_base_patch16", global_pool=True, nb_classes=5)
    return saved(folder, {"model": model.state_dict(), "args": args}, model, "checkpoint-99.pth")


@layout("MoCo v3, full training file")
def moco(folder: Path) -> Made:
    model = of_timm("vit_small_patch16_224", num_heads=12, depth=12, num_classes=0)
    head = {"0.weight": torch.ones(64, 384), "1.weight": torch.ones(64), "3.weight": torch.ones(16, 64)}
    state = behind(model.state_dict() | behind(head, "head."), "module.base_encoder.")
    state |= behind(shifted(model.state_dict()) | behind(head, "head."), "module.momentum_encoder.")
    state |= behind(head, "module.predictor.")
    return saved(
        folder,
        {"epoch": 3, "arch": "vit_small", "state_dict": state, "optimizer": {}, "scaler": {}},
        tokens(model),
        "vit-s.pth.tar",
    )


@layout("AugReg, Google's JAX (.npz)")
def augreg(folder: Path) -> Made:
    model = vit()
    np.savez(folder / "Ti_16.npz", **jax_names(model.state_dict(), 3))
    return Made(folder / "Ti_16.npz", compare(model))


@layout("AugReg of timm's vit_tiny_patch16_224 (.npz)")
def augreg_tiny(folder: Path) -> Made:
    model = of_timm("vit_tiny_patch16_224", num_classes=7)
    np.savez(folder / "Ti_16-i21k-300ep.npz", **jax_names(model.state_dict(), 3))
    return Made(folder / "Ti_16-i21k-300ep.npz", compare(model))


@layout("SigLIP of big_vision (.npz)")
def big_vision(folder: Path) -> Made:
    model = vit(global_pool="map", class_token=False, num_classes=0)
    arrays = {f"params/img/{name}": array for name, array in jax_names(model.state_dict(), 3, big=True).items()}
    arrays |= {"params/t": np.ones(1), "params/b": np.ones(1), "params/txt/Embed_0/embedding": np.ones((9, 192), np.float32)}
    np.savez(folder / "siglip.npz", **arrays)
    return Made(folder / "siglip.npz", compare(model))


def jax_names(state: State, heads: int, *, big: bool = False) -> dict[str, np.ndarray]:
    """A Vision Transformer of timm as Google's JAX code keeps it: kernels transposed, heads on an axis of their own."""
    arrays: dict[str, np.ndarray] = {}
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    width = state["patch_embed.proj.weight"].shape[0]

    def block(number: int) -> dict[str, np.ndarray]:
        own = {
            name.removeprefix(f"blocks.{number}."): tensor.numpy()
            for name, tensor in state.items()
            if name.startswith(f"blocks.{number}.")
        }
        attention = "MultiHeadDotProductAttention_0" if big else "MultiHeadDotProductAttention_1"
        norm2, mlp = ("LayerNorm_1", "MlpBlock_0") if big else ("LayerNorm_2", "MlpBlock_3")
        found = {"LayerNorm_0/scale": own["norm1.weight"], "LayerNorm_0/bias": own["norm1.bias"]}
        found |= {f"{norm2}/scale": own["norm2.weight"], f"{norm2}/bias": own["norm2.bias"]}
        for part, kernel, bias in zip(
            ("query", "key", "value"), np.split(own["attn.qkv.weight"], 3), np.split(own["attn.qkv.bias"], 3), strict=True
        ):
            found[f"{attention}/{part}/kernel"] = kernel.T.reshape(width, heads, width // heads)
            found[f"{attention}/{part}/bias"] = bias.reshape(heads, width // heads)
        found[f"{attention}/out/kernel"] = own["attn.proj.weight"].T.reshape(heads, width // heads, width)
        found[f"{attention}/out/bias"] = own["attn.proj.bias"]
        for layer in (0, 1):
            found[f"{mlp}/Dense_{layer}/kernel"] = own[f"mlp.fc{layer + 1}.weight"].T
            found[f"{mlp}/Dense_{layer}/bias"] = own[f"mlp.fc{layer + 1}.bias"]
        return found

    arrays["embedding/kernel"] = state["patch_embed.proj.weight"].permute(2, 3, 1, 0).numpy()
    arrays["embedding/bias"] = state["patch_embed.proj.bias"].numpy()
    arrays["pos_embedding" if big else "Transformer/posembed_input/pos_embedding"] = state["pos_embed"].numpy()
    arrays["Transformer/encoder_norm/scale"], arrays["Transformer/encoder_norm/bias"] = (
        state[f"norm.{kind}"].numpy() for kind in ("weight", "bias")
    )
    if "cls_token" in state:
        arrays["cls"] = state["cls_token"].numpy()
    if "head.weight" in state:
        arrays["head/kernel"], arrays["head/bias"] = state["head.weight"].T.numpy(), state["head.bias"].numpy()
    for number in range(depth):
        arrays |= {f"Transformer/encoderblock_{number}/{name}": array for name, array in block(number).items()}
    if "attn_pool.latent" in state:
        pool = {
            name.removeprefix("attn_pool."): tensor.numpy() for name, tensor in state.items() if name.startswith("attn_pool.")
        }
        arrays["MAPHead_0/probe"] = pool["latent"]
        kernels = np.concatenate([pool["q.weight"], pool["kv.weight"]]), np.concatenate([pool["q.bias"], pool["kv.bias"]])
        at = "MAPHead_0/MultiHeadDotProductAttention_0"
        for part, kernel, bias in zip(("query", "key", "value"), np.split(kernels[0], 3), np.split(kernels[1], 3), strict=True):
            arrays[f"{at}/{part}/kernel"], arrays[f"{at}/{part}/bias"] = (
                kernel.T.reshape(width, heads, -1),
                bias.reshape(heads, -1),
            )
        arrays[f"{at}/out/kernel"], arrays[f"{at}/out/bias"] = pool["proj.weight"].T.reshape(heads, -1, width), pool["proj.bias"]
        arrays["MAPHead_0/LayerNorm_0/scale"], arrays["MAPHead_0/LayerNorm_0/bias"] = pool["norm.weight"], pool["norm.bias"]
        for layer in (0, 1):
            arrays[f"MAPHead_0/MlpBlock_0/Dense_{layer}/kernel"] = pool[f"mlp.fc{layer + 1}.weight"].T
            arrays[f"MAPHead_0/MlpBlock_0/Dense_{layer}/bias"] = pool[f"mlp.fc{layer + 1}.bias"]
    return arrays


# Other families in their authors' names.


@layout("BEiT, pre-trained (microsoft/unilm)")
def beit_pretrained(folder: Path) -> Made:
    model = of_timm(
        "beit_base_patch16_224",
        num_classes=0,
        depth=12,
        use_shared_rel_pos_bias=True,
        use_rel_pos_bias=False,
        global_pool="token",
    )
    more = {"mask_token": torch.ones(1, 1, 768), "lm_head.weight": torch.ones(99, 768), "lm_head.bias": torch.ones(99)}
    more |= buffers(model, "relative_position_index")
    return saved(folder, {"model": model.state_dict() | more}, tokens(model), "beit_base_patch16_224_pt22k.pth")


@layout("BEiT-2, pre-trained")
def beit2_pretrained(folder: Path) -> Made:
    model = of_timm(
        "beitv2_base_patch16_224", num_classes=0, use_shared_rel_pos_bias=True, use_rel_pos_bias=False, global_pool="token"
    )
    more = {"mask_token": torch.ones(1, 1, 768), "lm_head.weight": torch.ones(99, 768), "lm_head.bias": torch.ones(99)}
    block = {name.replace("blocks.0.", ""): tensor for name, tensor in model.state_dict().items() if name.startswith("blocks.0.")}
    more |= behind(block, "cls_pt_layers.0.")
    return saved(folder, {"model": model.state_dict() | more}, tokens(model), "beitv2_base_patch16_224_pt1k.pth")


@layout("BEiT, fine-tuned")
def beit_finetuned(folder: Path) -> Made:
    model = of_timm("beit_base_patch16_224", num_classes=7)
    index = buffers(model, "relative_position_index")
    return saved(folder, {"model": model.state_dict() | index}, model, "beit_base_patch16_224_pt22k_ft1k.pth")


def rotary_tables(model: nn.Module) -> State:
    """Sines and cosines of the positions as EVA keeps them, for the network and for each block."""
    sine, cosine = dict(model.named_buffers())["rope.pos_embed"].chunk(2, -1)
    places = ["", *(f"blocks.{number}.attn." for number in range(12))]
    return {f"{place}rope.freqs_{kind}": table for place in places for kind, table in (("sin", sine), ("cos", cosine))}


def buffers(model: nn.Module, ending: str) -> State:
    """Buffers that the original keeps in its state dict and timm does not."""
    return {name: tensor for name, tensor in model.named_buffers() if name.endswith(ending)}


@layout("EVA-02 (baaivision/EVA)")
def eva02(folder: Path) -> Made:
    model = of_timm("eva02_tiny_patch14_224", num_classes=7)
    state = renamed(
        model.state_dict(),
        (r"mlp\.fc1_g", "mlp.w1"),
        (r"mlp\.fc1_x", "mlp.w2"),
        (r"mlp\.fc2", "mlp.w3"),
        (r"mlp\.norm", "mlp.ffn_ln"),
        (r"attn\.norm", "attn.inner_attn_ln"),
        (r"q_proj\.bias", "q_bias"),
        (r"v_proj\.bias", "v_bias"),
    )
    state |= rotary_tables(model)
    return saved(folder, {"model": state}, model, "eva02_Ti.pt")


@layout("TNT (huawei-noah)")
def tnt(folder: Path) -> Made:
    model = of_timm("tnt_s_legacy_patch16_224", num_classes=7)
    state = renamed(
        model.state_dict(),
        (r"^patch_pos$", "outer_pos"),
        (r"^pixel_pos$", "inner_pos"),
        (r"^pixel_embed\.", "patch_embed."),
        (r"^norm1_proj", "proj_norm1"),
        (r"^norm2_proj", "proj_norm2"),
        (r"\.norm_in\.", ".inner_norm1."),
        (r"\.attn_in\.", ".inner_attn."),
        (r"\.norm_mlp_in\.", ".inner_norm2."),
        (r"\.mlp_in\.", ".inner_mlp."),
        (r"\.norm1_proj\.", ".proj_norm1."),
        (r"\.norm2_proj\.", ".proj_norm2."),
        (r"\.norm_out\.", ".outer_norm1."),
        (r"\.attn_out\.", ".outer_attn."),
        (r"\.norm_mlp\.", ".outer_norm2."),
        (r"\.mlp\.", ".outer_mlp."),
    )
    return saved(folder, state | {"outer_tokens": torch.zeros(1, 196, 640)}, model, "tnt_s_patch16_224.pth.tar")


@layout("LeViT (facebookresearch)")
def levit(folder: Path) -> Made:
    model = of_timm("levit_128s", num_classes=7)
    return saved(folder, {"model": levit_names(model, (2, 3, 4))}, model, "LeViT-128S-96703c44.pth")


def levit_names(model: nn.Module, depths: tuple[int, ...]) -> State:
    """LeViT's own names: one list of residual blocks, linear and convolution both `c`."""
    places, number = {}, 0
    for stage, depth in enumerate(depths):
        if stage:
            places[f"stages.{stage}.downsample.attn_downsample."], places[f"stages.{stage}.downsample.mlp."] = (
                f"blocks.{number}.",
                f"blocks.{number + 1}.m.",
            )
            number += 2
        for block in range(depth):
            places[f"stages.{stage}.blocks.{block}.attn."], places[f"stages.{stage}.blocks.{block}.mlp."] = (
                f"blocks.{number}.m.",
                f"blocks.{number + 1}.m.",
            )
            number += 2
    state = {}
    for name, tensor in model.state_dict().items():
        for old, new in places.items():
            if name.startswith(old):
                name = name.replace(old, new, 1)
                name = re.sub(r"(blocks\.\d+\.m)\.ln([12])\.", lambda m: f"{m[1]}.{0 if m[2] == '1' else 2}.", name)
        name = re.sub(r"^stem\.conv(\d)\.", lambda m: f"patch_embed.{2 * (int(m[1]) - 1)}.", name)
        name = re.sub(r"\.proj\.ln\.", ".proj.1.", re.sub(r"\.q\.ln\.", ".q.1.", name))
        name = name.replace(".linear.", ".c.") if not name.startswith("head") else name.replace(".linear.", ".l.")
        state[name] = tensor
    return state


@layout("SegFormer's MiT-B0, classifier (NVlabs)")
def segformer(folder: Path) -> Made:
    model = segformer_of_transformers()
    return saved(folder, nvlabs_names(model.state_dict()), lambda images: model(images).logits, "mit_b0.pth")


@layout("SegFormer's MiT-B0 with head (NVlabs)")
def segformer_whole(folder: Path) -> Made:
    model = segformer_of_transformers()
    state = behind(without(nvlabs_names(model.state_dict()), r"^head\."), "backbone.")
    head = {f"decode_head.linear_c{n}.proj.weight": torch.ones(256, width) for n, width in enumerate((32, 64, 160, 256), 1)}
    head |= {"decode_head.linear_pred.weight": torch.ones(19, 256, 1, 1), "decode_head.linear_pred.bias": torch.ones(19)}
    return saved(
        folder,
        {"meta": {"CLASSES": ("a",) * 19}, "state_dict": state | head},
        lambda images: model.segformer(images).last_hidden_state,
        "segformer.b0.pth",
    )


def segformer_of_transformers() -> nn.Module:
    """MiT-B0 of transformers with a classifier of seven classes."""
    import transformers

    return random_values(transformers.SegformerForImageClassification(transformers.SegformerConfig(num_labels=7)))


def nvlabs_names(state: State) -> State:
    """MiT's own names for the tensors of transformers' SegFormer; keys and values in one."""
    state = renamed(
        state,
        (r"^segformer\.stages\.(\d)\.patch_embeddings\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
        (r"^classifier\.", "head."),
        (r"^segformer\.stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
        (r"layernorm_before", "norm1"),
        (r"^segformer\.stages\.(\d)\.layer_norm\.", lambda m: f"norm{int(m[1]) + 1}."),
        (r"layernorm_after", "norm2"),
        (r"sequence_reduction\.sequence_reduction", "sr"),
        (r"sequence_reduction\.", ""),
        (r"attention\.", "attn."),
        (r"\.q_proj", ".q"),
        (r"o_proj", "proj"),
        (r"layer_norm", "norm"),
    )
    for name in [name for name in state if ".k_proj." in name]:
        state[name.replace("k_proj", "kv")] = torch.cat([state.pop(name), state.pop(name.replace("k_proj", "v_proj"))])
    return state


@layout("SAM, image encoder of ViT-B")
def sam(folder: Path) -> Made:
    model = of_timm("samvit_base_patch16_224")
    state = renamed(model.state_dict(), (r"mlp\.fc", "mlp.lin"))
    more = {"prompt_encoder.point_embeddings.0.weight": torch.ones(1, 256), "mask_decoder.iou_token.weight": torch.ones(1, 256)}
    more["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = torch.ones(2, 128)
    return saved(folder, behind(without(state, "^head"), "image_encoder.") | more, tokens(model), "sam_vit_b_01ec64.pth")


@layout("MobileSAM, image encoder of TinyViT")
def mobile_sam(folder: Path) -> Made:
    model = of_timm("tiny_vit_5m_224", num_classes=7)
    state = tinyvit_names(model.state_dict())
    neck = {
        "neck.0.weight": torch.ones(256, 320, 1, 1),
        "neck.1.weight": torch.ones(256),
        "neck.2.weight": torch.ones(256, 256, 3, 3),
    }
    more = {"prompt_encoder.not_a_point_embed.weight": torch.ones(1, 256), "mask_decoder.iou_token.weight": torch.ones(1, 256)}
    return saved(folder, behind(state | neck, "image_encoder.") | more, model, "mobile_sam.pt")


@layout("TinyViT (microsoft/Cream)")
def tinyvit(folder: Path) -> Made:
    model = of_timm("tiny_vit_5m_224", num_classes=7)
    index = buffers(model, "attention_bias_idxs")
    return saved(folder, {"model": tinyvit_names(model.state_dict() | index)}, model, "tiny_vit_5m_22kto1k_distill.pth")


def tinyvit_names(state: State) -> State:
    """TinyViT's own names."""
    return renamed(
        state,
        (r"^patch_embed\.conv1\.", "patch_embed.seq.0."),
        (r"^patch_embed\.conv2\.", "patch_embed.seq.2."),
        (r"^stages\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),
        (r"^stages\.", "layers."),
        (r"^head\.norm\.", "norm_head."),
        (r"^head\.fc\.", "head."),
        (r"\.conv\.weight$", ".c.weight"),
    )


# Families whose authors' names differ by a renaming alone: timm's name of the model, arguments, renaming, what stands around it.
RENAMED: dict[str, tuple[str, dict[str, Any], list[tuple[str, Any]], Callable[[State], Any]]] = {
    "CaiT (facebookresearch/deit)": ("cait_xxs24_224", {}, [(r"^", "module.")], lambda state: {"model": state}),
    "ConViT (facebookresearch)": ("convit_tiny", {}, [], lambda state: {"model": state}),
    "CrossViT (IBM)": ("crossvit_9_240", {}, [(r"^pos_embed_(\d)$", r"pos_embed.\1")], dict),
    "Twins-SVT (Meituan-AutoML)": ("twins_svt_small", {}, [], dict),
    "PiT (naver-ai)": (
        "pit_ti_224", {}, [(r"^transformers\.(\d)\.pool\.", lambda m: f"pools.{int(m[1]) - 1}.")], dict,
    ),
    "CoaT-Lite (mlpc-ucsd)": (
        "coat_lite_tiny", {}, [], lambda state: {"model": state | {f"norm{n}.bias": torch.ones(64) for n in (1, 2, 3)}},
    ),
    "VOLO (sail-sg)": ("volo_d1_224", {}, [], dict),
    "MViTv2 (facebookresearch/mvit)": (
        "mvitv2_tiny", {},
        [(r"^stages\.(\d)\.blocks\.(\d)\.", lambda m: f"blocks.{(0, 1, 3, 8)[int(m[1])] + int(m[2])}."),
         (r"\.shortcut_proj_attn\.", ".proj."), (r"^head\.fc\.", "head.projection.")],
        lambda state: {"model_state": state, "epoch": 3, "cfg": "MODEL: {}"},
    ),
    "Hiera (facebookresearch)": (
        "hiera_tiny_224", {}, [(r"^head\.fc\.", "head.projection."), (r"^head\.norm\.", "norm.")],
        lambda state: {"model_state": state},
    ),
    "DaViT (microsoft/Florence)": (
        "davit_tiny", {},
        [(r"^stem\.", "patch_embeds.0."), (r"^stages\.(\d)\.downsample\.", r"patch_embeds.\1."),
         (r"^(patch_embeds\.\d)\.conv\.", r"\1.proj."), (r"^stages\.(\d)\.blocks\.", r"main_blocks.\1."),
         (r"\.cpe([12])\.", lambda m: f".cpe.{int(m[1]) - 1}."), (r"^head\.fc\.", "head."), (r"^head\.norm\.", "norms.")],
        lambda state: {"state_dict": state},
    ),
    "EfficientFormer (snap-research)": (
        "efficientformer_l1", {},
        [(r"^stem\.(conv|norm)(\d)\.", lambda m: f"patch_embed.{3 * int(m[2]) - 3 + (m[1] == 'norm')}."),
         (r"^stages\.(\d)\.blocks\.", lambda m: f"network.{2 * int(m[1])}."),
         (r"^stages\.(\d)\.downsample\.(conv|norm)\.",
          lambda m: f"network.{2 * int(m[1]) - 1}.{'proj' if m[2] == 'conv' else 'norm'}."),
         (r"\.ls([12])\.gamma$", r".layer_scale_\1"), (r"^head_dist\.", "dist_head.")],
        lambda state: {"model": state},
    ),
    "EdgeNeXt (mmaaz60)": (
        "edgenext_xx_small", {},
        [(r"^stem\.", "downsample_layers.0."), (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
         (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."), (r"conv_dw", "dwconv"), (r"\.mlp\.fc", ".pwconv"),
         (r"^head\.fc\.", "head."), (r"^head\.norm\.", "norm.")],
        lambda state: {"state_dict": state},
    ),
    "CAFormer (sail-sg)": (
        "caformer_s18", {},
        [(r"^stem\.conv\.", "downsample_layers.0.conv."), (r"^stem\.norm\.", "downsample_layers.0.post_norm."),
         (r"^stages\.(\d)\.downsample\.norm\.", r"downsample_layers.\1.pre_norm."),
         (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."), (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
         (r"^head\.norm\.", "norm."), (r"^head\.fc\.", "head.")],
        dict,
    ),
    "Swin v2 CR, headless names": ("swinv2_cr_tiny_ns_224", {}, [(r"^head\.fc\.", "head.")], dict),
    "EsViT (microsoft), Swin with two heads": (
        "swin_tiny_patch4_window7_224", {"num_classes": 0},
        [(r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.")],
        lambda state: {
            "student": behind(shifted(state), "module.") | head_of_dino("module.head.", 768),
            "teacher": state | head_of_dino("head.", 768) | head_of_dino("head_dense.", 768), "epoch": 3,
        },
    ),
    "SimMIM (microsoft), Swin": (
        "swin_tiny_patch4_window7_224", {"num_classes": 0},
        [(r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."), (r"^", "encoder.")],
        lambda state: {"model": state | {
            "encoder.mask_token": torch.ones(1, 1, 96), "decoder.0.weight": torch.ones(3072, 768, 1, 1),
            "decoder.0.bias": torch.ones(3072),
        }},
    ),
    "Depth Anything, trunk of DINOv2": (
        "vit_small_patch14_dinov2", {"img_size": 518, "num_classes": 0}, [(r"^", "pretrained.")],
        lambda state: state | {
            "pretrained.mask_token": torch.ones(1, 384), "depth_head.projects.0.weight": torch.ones(48, 384, 1, 1),
            "depth_head.scratch.layer1_rn.weight": torch.ones(64, 48, 3, 3),
        },
    ),
}  # fmt: skip


def renamed_by(timm_name: str, arguments: dict[str, Any], rules: list[tuple[str, Any]], around: Callable[[State], Any]) -> Any:
    """The maker of a layout that a renaming gives."""

    def maker(folder: Path) -> Made:
        model = of_timm(timm_name, **arguments)
        original = tokens(model) if arguments.get("num_classes") == 0 else model
        return saved(folder, around(renamed(model.state_dict(), *rules)), original)

    return maker


MAKERS |= {name: renamed_by(*facts) for name, facts in RENAMED.items()}


@layout("XCiT (facebookresearch)")
def xcit(folder: Path) -> Made:
    model = of_timm("xcit_nano_12_p16_224")
    state = renamed(model.state_dict(), (r"^pos_embed\.", "pos_embeder."))
    for front in {name[:23] for name in state if re.match(r"cls_attn_blocks\.\d\.attn\.q\.", name)}:
        for kind in ("weight", "bias"):
            state[f"{front}qkv.{kind}"] = torch.cat([state.pop(f"{front}{part}.{kind}") for part in "qkv"])
    return saved(folder, {"model": state}, model, "xcit_nano_12_p16_224.pth")


@layout("EVA-02, pre-trained")
def eva02_pretrained(folder: Path) -> Made:
    model = of_timm("eva02_tiny_patch14_224", num_classes=0, global_pool="token")
    more = {"mask_token": torch.ones(1, 1, 192), "lm_head.weight": torch.ones(99, 192), "lm_head.bias": torch.ones(99)}
    return saved(folder, {"module": model.state_dict() | more | rotary_tables(model)}, tokens(model), "eva02_Ti_pt_in21k_p14.pt")


@layout("DPT (MiDaS), trunk of a ViT")
def dpt(folder: Path) -> Made:
    model = vit(num_classes=0)
    more = {
        "pretrained.act_postprocess1.0.project.0.weight": torch.ones(192, 384),
        "scratch.layer1_rn.weight": torch.ones(9, 192, 3, 3),
    }
    return saved(folder, behind(model.state_dict(), "pretrained.model.") | more, tokens(model), "dpt_custom.pt")


@layout("Segmenter (rstrudel)")
def segmenter(folder: Path) -> Made:
    model = vit()
    more = {"decoder.cls_emb": torch.ones(1, 9, 192), "decoder.mask_norm.weight": torch.ones(9)}
    more |= behind(without(vit().state_dict(), "^(head|norm|patch|cls|pos)"), "decoder.")
    return saved(folder, {"model": behind(model.state_dict(), "encoder.") | more}, model, "checkpoint.pth")


@layout("Composer, with its optimiser")
def composer(folder: Path) -> Made:
    model = vit()
    state = behind(model.state_dict(), "module.")
    moments = {name: {"exp_avg": torch.zeros_like(t), "exp_avg_sq": torch.ones_like(t)} for name, t in state.items()}
    inside = {"model": state, "optimizers": {"DecoupledAdamW": {"state": moments}}, "timestamp": {"Timestamp": {"epoch": 3}}}
    return saved(folder, {"state": inside, "rng": [{"python": (3, (1, 2), None)}]}, model, "ep3-ba9-rank0.pt")


@layout("averaged by ema_pytorch, online beside it")
def ema_pytorch(folder: Path) -> Made:
    model = vit()
    state = behind(shifted(model.state_dict()), "online_model.") | behind(model.state_dict(), "ema_model.")
    return saved(folder, state | {"initted": torch.ones(()), "step": torch.tensor(9)}, model)


@layout("averaged by torch.optim.swa_utils, plain beside it")
def swa(folder: Path) -> Made:
    model = vit()
    averaged = behind(model.state_dict(), "module.") | {"n_averaged": torch.tensor(5)}
    return saved(folder, {"model": shifted(model.state_dict()), "swa_model": averaged}, model)


@layout("compiled, checkpointed and sharded block by block")
def wrapped(folder: Path) -> Made:
    model = vit()
    inside = "_fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod."
    state = renamed(model.state_dict(), (r"^(blocks\.\d\.)", rf"\1{inside}"), (r"^", "_fsdp_wrapped_module."))
    return saved(folder, {"model": state}, model)


@layout("DeepSpeed, one rank with the whole network")
def deepspeed(folder: Path) -> Made:
    model = vit()
    content = {
        "module": model.state_dict(),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [{"cls_token": torch.Size([1, 1, 192])}],
    }
    return saved(folder, content | {"ds_config": {"zero_optimization": {"stage": 1}}, "dp_world_size": 1}, model, "mp_rank_00.pt")


@layout("CLIPA: no first norm, patches averaged, last norm after it")
def clipa(folder: Path) -> Made:
    from safetensors.torch import save_file

    vision = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    model = clip(**vision)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {"vision_cfg": {"image_size": 32, "layers": 2, "width": 192, "patch_size": 8, "head_width": 64} | vision}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return Made(folder, compare(model.encode_image))


@layout("OpenCLIP, training file of a QuickGELU model")
def openclip_quick(folder: Path) -> Made:
    model = clip(quick=True)
    content = {"epoch": 3, "name": "2024-ViT-B-32-quickgelu", "state_dict": behind(model.state_dict(), "module.")}
    return saved(folder, content, model.encode_image, "epoch_32.pt")


@layout("PVTv2 (whai362/PVT)")
def pvtv2(folder: Path) -> Made:
    model = of_timm("pvt_v2_b0", num_classes=7)
    state = renamed(
        model.state_dict(),
        (r"^patch_embed\.", "patch_embed1."),
        (r"^stages\.(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
        (r"^stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
        (r"^stages\.(\d)\.norm\.", lambda m: f"norm{int(m[1]) + 1}."),
        (r"mlp\.dwconv\.", "mlp.dwconv.dwconv."),
    )
    return saved(folder, state, model, "pvt_v2_b0.pth")


def swin_names(state: State) -> State:
    """The names of microsoft/Swin-Transformer: merging at a stage's end, a bare head."""
    return renamed(
        state, (r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."), (r"^head\.fc\.", "head.")
    )


@layout("Swin (microsoft)")
def swin(folder: Path) -> Made:
    model = of_timm("swin_tiny_patch4_window7_224", num_classes=7)
    state = swin_names(model.state_dict())
    state |= buffers(model, "relative_position_index") | buffers(model, "attn_mask")
    return saved(folder, {"model": state}, model, "swin_tiny_patch4_window7_224.pth")


@layout("Swin (microsoft), without classifier")
def swin_headless(folder: Path) -> Made:
    model = of_timm("swin_tiny_patch4_window7_224", num_classes=0)
    return saved(folder, {"model": swin_names(model.state_dict())}, tokens(model), "swin_tiny.pth")


@layout("Swin of timm, without classifier")
def swin_of_timm(folder: Path) -> Made:
    model = of_timm("swin_tiny_patch4_window7_224", num_classes=0)
    return saved(folder, model.state_dict(), tokens(model), "swin_tiny.pth")


OPENMMLAB = [
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^blocks\.", "layers."),
    (r"\.norm([12])\.", r".ln\1."),
    (r"^norm\.", "ln1."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
]


@layout("mmpretrain, ViT")
def mmpretrain_vit(folder: Path) -> Made:
    model = vit()
    state = renamed(
        without(model.state_dict(), "^head"),
        *OPENMMLAB,
    )
    head = {f"head.layers.head.{kind}": model.state_dict()[f"head.{kind}"] for kind in ("weight", "bias")}
    meta = {"CLASSES": ["a", "b", "c", "d", "e"], "epoch": 3}
    return saved(folder, {"meta": meta, "state_dict": behind(state, "backbone.") | head}, model, "vit_mm.pth")


@layout("mmsegmentation, ViT")
def mmseg_vit(folder: Path) -> Made:
    model = vit(num_classes=0)
    state = renamed(
        model.state_dict(),
        *OPENMMLAB,
        (r"\.attn\.qkv\.", ".attn.attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.attn.out_proj."),
    )
    head = {"decode_head.conv_seg.weight": torch.ones(9, 192, 1, 1), "auxiliary_head.conv_seg.bias": torch.ones(9)}
    return saved(folder, {"meta": {}, "state_dict": behind(state, "backbone.") | head}, tokens(model), "upernet_vit.pth")


@layout("mmpretrain, Swin")
def mmpretrain_swin(folder: Path) -> Made:
    model = of_timm("swin_tiny_patch4_window7_224", num_classes=7)
    state = renamed(
        without(swin_names(model.state_dict()), "^head"),
        (r"^layers\.", "stages."),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"\.attn\.", ".attn.w_msa."),
        (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
        (r"\.mlp\.fc2\.", ".ffn.layers.1."),
        (r"^norm\.", "norm3."),
    )
    for name, tensor in state.items():
        if ".downsample." in name:  # nn.Unfold counts channel by channel, corners row by row
            apart = tensor.reshape(*tensor.shape[:-1], 4, -1).transpose(-1, -2)[..., [0, 2, 1, 3]]
            state[name] = apart.reshape(tensor.shape)
    head = {f"head.fc.{kind}": model.state_dict()[f"head.fc.{kind}"] for kind in ("weight", "bias")}
    return saved(folder, {"meta": {}, "state_dict": behind(state, "backbone.") | head}, model, "swin_mm.pth")


# Originals of libraries.


@layout("torchvision, ViT")
def torchvision_vit(folder: Path) -> Made:
    from torchvision.models import VisionTransformer as Original

    model = random_values(Original(32, 8, 2, 3, 192, 768, num_classes=5))
    return saved(folder, model.state_dict(), model)


@layout("torchvision, Swin")
def torchvision_swin(folder: Path) -> Made:
    import torchvision

    model = random_values(torchvision.models.swin_t(num_classes=7))
    return saved(folder, model.state_dict(), model, "swin_t-704ceda3.pth")


@layout("torchvision, Swin v2")
def torchvision_swin_v2(folder: Path) -> Made:
    import torchvision

    model = random_values(torchvision.models.swin_v2_t(num_classes=7))
    return saved(folder, model.state_dict(), model, "swin_v2_t-b137f0e2.pth")


@layout("torchvision, MaxViT")
def torchvision_maxvit(folder: Path) -> Made:
    import torchvision

    model = random_values(torchvision.models.maxvit_t(num_classes=7))
    return saved(folder, model.state_dict(), model, "maxvit_t-bc5ab103.pth")


def clip(quick: bool = False, **vision: Any) -> nn.Module:
    """A small CLIP of OpenCLIP."""
    import open_clip

    image = {"image_size": 32, "layers": 2, "width": 192, "patch_size": 8, "head_width": 64} | vision
    text = {"context_length": 8, "vocab_size": 99, "width": 64, "heads": 1, "layers": 1}
    return random_values(open_clip.model.CLIP(48, image, text, quick_gelu=quick))


@layout("OpenCLIP, training file")
def openclip(folder: Path) -> Made:
    model = clip()
    content = {"epoch": 3, "name": "laion", "state_dict": behind(model.state_dict(), "module."), "optimizer": {}}
    return saved(folder, content, model.encode_image, "epoch_32.pt")


@layout("CLIP, OpenAI's state dict in half precision")
def clip_half(folder: Path) -> Made:
    model = clip(quick=True)
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "attn_mask"}
    random_values(model).load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    state |= {"input_resolution": torch.tensor(32), "context_length": torch.tensor(8), "vocab_size": torch.tensor(99)}
    return saved(folder, state, model.encode_image, "clip.pt")


@layout("CLIP, visual part alone, of a file called openai")
def clip_visual(folder: Path) -> Made:
    model = clip(quick=True)
    state = {n.removeprefix("visual."): t for n, t in model.state_dict().items() if n.startswith("visual.")}
    return saved(folder, state, model.encode_image, "clip_openai_visual.pt")


@layout("OpenCLIP, visual tower of timm (SigLIP)")
def siglip(folder: Path) -> Made:
    model = vit(global_pool="map", class_token=False, num_classes=0)
    more = {
        "text.token_embedding.weight": torch.ones(99, 64),
        "text.transformer.resblocks.0.attn.in_proj_weight": torch.ones(192, 64),
    }
    more |= {"logit_scale": torch.ones([]), "logit_bias": torch.ones([])}
    return saved(folder, behind(model.state_dict(), "visual.trunk.") | more, model, "open_clip_pytorch_model.bin")


HUGGING: dict[str, Any] = {
    "hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8, "num_labels": 5,
}  # fmt: skip


@layout("transformers, ViT's state dict without its configuration")
def bare_vit(folder: Path) -> Made:
    import transformers

    model = random_values(transformers.ViTForImageClassification(transformers.ViTConfig(**HUGGING, intermediate_size=384)))
    return saved(folder, model.state_dict(), lambda images: model(images).logits)


@layout("transformers, DINOv2's state dict without its configuration")
def bare_dinov2(folder: Path) -> Made:
    import transformers

    model = random_values(transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**HUGGING)))
    return saved(folder, model.state_dict(), lambda images: model.base_model(images).last_hidden_state)


@layout("transformers, DINOv2 with registers, without its configuration")
def bare_registers(folder: Path) -> Made:
    import transformers

    model = random_values(transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**HUGGING)))
    return saved(folder, model.state_dict(), lambda images: model(images).last_hidden_state)


@layout("transformers, CLIP's image tower whose activation the file's settings say")
def bare_clip(folder: Path) -> Made:
    import transformers

    model = random_values(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**HUGGING, intermediate_size=384)))
    front = "vision_model." if hasattr(model, "vision_model") else ""
    norm = model.get_submodule(f"{front}post_layernorm")
    content = {"state_dict": behind(model.state_dict(), "clip."), "hyper_parameters": {"vision": {"hidden_act": "quick_gelu"}}}
    return saved(folder, content, lambda images: norm(model(images).last_hidden_state))


@layout("MoCo v3's ViT-S of mmpretrain")
def mmpretrain_moco(folder: Path) -> Made:
    model = vit(embed_dim=384, num_heads=12, num_classes=0)
    state = renamed(
        model.state_dict(),
        (r"^patch_embed\.proj\.", "patch_embed.projection."),
        (r"^blocks\.", "layers."),
        (r"\.norm([12])\.", r".ln\1."),
        (r"^norm\.", "ln1."),
        (r"mlp\.fc1\.", "ffn.layers.0.0."),
        (r"mlp\.fc2\.", "ffn.layers.1."),
    )
    text = "model = dict(backbone=dict(type='MoCoV3ViT', arch='mocov3-small'), neck=dict(type='NonLinearNeck'))"
    return saved(folder, {"state_dict": behind(state, "backbone."), "meta": {"cfg": text}}, tokens(model))


@layout("classifier behind a neck that is left out")
def behind_a_neck(folder: Path) -> Made:
    model = vit()
    neck = {"neck.weight": torch.ones(192, 192), "neck.bias": torch.ones(192)}
    return saved(folder, model.state_dict() | neck, tokens(model))


@layout("heads and pooling deep in the settings")
def nested_settings(folder: Path) -> Made:
    model = vit(num_heads=6, global_pool="avg", fc_norm=False)
    settings = {"model": {"net": {"num_heads": 6, "pool": "mean"}, "decoder": {"num_heads": 16}}, "optim": {"lr": 0.1}}
    return saved(folder, {"state_dict": model.state_dict(), "config": settings}, model)


@layout("TimmWrapper of transformers")
def timm_wrapper(folder: Path) -> Made:
    from safetensors.torch import save_file

    model = of_timm("test_vit", num_classes=7)
    save_file(behind(model.state_dict(), "timm_model."), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architecture": "test_vit",
        "architectures": ["TimmWrapperForImageClassification"],
        "model_type": "timm_wrapper",
        "num_classes": 7,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return Made(folder, compare(model))
