"""Which families' attention maps one gets: with overfocus, with timm's AttentionExtract, with transformers' output_attentions.

    python tests/benchmarks/families.py                  # every family, a few minutes on two cores
    python tests/benchmarks/families.py Swin "Swin v2"   # some of them

A Markdown table: how many of a model's maps between tokens each way gives. Ours count where `overfocus.verify` passed them
(weights × values are what the model produced). The others' count where they hold the same weights as one of ours, in whatever
order: a map is theirs to label. A family is supported by a way that gives all of its maps.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
import transformers
from timm.layers import set_fused_attn
from timm.utils import AttentionExtract
from torch import Tensor, nn

import overfocus
import overfocus.models
from overfocus.attention import TOKEN_KINDS

Builder = Callable[[], nn.Module]

TIMM = {
    "ViT": "vit_tiny_patch16_224",
    "DeiT": "deit_tiny_patch16_224",
    "DeiT distilled": "deit_tiny_distilled_patch16_224",
    "DeiT-3": "deit3_small_patch16_224",
    "BEiT": "beit_base_patch16_224",
    "BEiT v2": "beitv2_base_patch16_224",
    "EVA": "eva_giant_patch14_224",
    "EVA-02": "eva02_tiny_patch14_224",
    "DINOv2 with registers": "vit_small_patch14_reg4_dinov2",
    "DINOv3": "vit_small_patch16_dinov3",
    "SigLIP": "vit_base_patch16_siglip_224",
    "ViT-relpos": "vit_relpos_small_patch16_224",
    "SAM ViT": "samvit_base_patch16_224",
    "NaFlexViT": "naflexvit_base_patch16_gap",
    "FlexiViT": "flexivit_small",
    "CaiT": "cait_xxs24_224",
    "ConViT": "convit_tiny",
    "XCiT (class attention)": "xcit_nano_12_p16_224",
    "CrossViT": "crossvit_tiny_240",
    "Swin": "swin_tiny_patch4_window7_224",
    "Swin v2": "swinv2_tiny_window8_256",
    "Swin v2-CR": "swinv2_cr_tiny_224",
    "MaxViT": "maxvit_tiny_tf_224",
    "CoAtNet": "coatnet_pico_rw_224",
    "TinyViT": "tiny_vit_5m_224",
    "DaViT (windows)": "davit_tiny",
    "GCViT": "gcvit_xxtiny",
    "NesT": "nest_tiny",
    "Hiera": "hiera_tiny_224",
    "MViTv2": "mvitv2_tiny",
    "PVTv2": "pvt_v2_b0",
    "Twins-SVT": "twins_svt_small",
    "LeViT": "levit_128s",
    "EfficientFormer": "efficientformer_l1",
    "EfficientFormer v2": "efficientformerv2_s0",
    "EfficientViT (MSRA)": "efficientvit_m0",
    "Visformer": "visformer_tiny",
    "VOLO": "volo_d1_224",
    "TNT": "tnt_s_patch16_224",
    "MobileViT": "mobilevit_xxs",
    "FastViT": "fastvit_sa12",
    "NextViT": "nextvit_small",
    "CAFormer": "caformer_s18",
    "PiT": "pit_ti_224",
    "FAN": "fan_tiny_12_p16_224",
    "FAN with TAP": "tap_fan_tiny_12_p16_224",
    "FAN-Swin with TAP": "tap_fan_swin_tiny_patch4_window7_224",
    "RVT": "rvt_tiny",
    "RVT with TAP": "tap_rvt_tiny_plus",
}
SMALLER = {"EVA": {"depth": 2}, "BEiT": {"depth": 4}, "BEiT v2": {"depth": 4}, "SigLIP": {"depth": 4}, "NaFlexViT": {"depth": 4}}
"""The smallest variants of some families are large: of these, fewer blocks."""

_PLAIN = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}
_TORCHVISION: dict[str, Builder] = {
    "torchvision ViT": lambda: torchvision.models.VisionTransformer(224, 16, 4, 3, 192, 384),
    "torchvision Swin": torchvision.models.swin_t,
    "torchvision Swin v2": torchvision.models.swin_v2_t,
    "torchvision MaxViT": torchvision.models.maxvit_t,
}
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "transformers ViT": ("ViTForImageClassification", "ViTConfig", _PLAIN),
    "transformers DeiT": ("DeiTForImageClassification", "DeiTConfig", _PLAIN),
    "transformers BEiT": ("BeitForImageClassification", "BeitConfig", _PLAIN),
    "transformers DINOv2": ("Dinov2ForImageClassification", "Dinov2Config", _PLAIN | {"image_size": 224}),
    "transformers Swin": ("SwinForImageClassification", "SwinConfig", {"embed_dim": 24, "depths": [2, 2], "num_heads": [1, 2]}),
    "transformers CLIP vision": ("CLIPVisionModel", "CLIPVisionConfig", _PLAIN | {"patch_size": 16}),
    "transformers SegFormer": ("SegformerForImageClassification", "SegformerConfig", {"depths": [1, 1, 1, 1]}),
}
WAYS = ("overfocus", "timm hook", "timm hook, unfused", "timm fx, unfused", "output_attentions, sdpa", "output_attentions, eager")


class TorchEncoder(nn.Module):
    """torch's own encoder over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 16, stride=16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(self.patches(images).flatten(2).transpose(1, 2))
        return tokens


def built(builder: Builder, *, fused: bool = True) -> nn.Module:
    """A model with weights drawn the same way in every call."""
    torch.manual_seed(0)
    set_fused_attn(fused)
    try:
        return builder().eval()
    finally:
        set_fused_attn(True)


def ours(builder: Builder, images: Tensor) -> list[Tensor]:
    """Our maps between tokens, once they are verified."""
    model = built(builder)
    if not overfocus.verify(model, images).passed:
        return []
    with overfocus.capture(model) as captured:
        model(images)
    return [attention.weights for attention in captured.maps if attention.kind in TOKEN_KINDS]


def extracted(builder: Builder, images: Tensor, method: str, *, fused: bool) -> list[Tensor]:
    """What timm's AttentionExtract returns."""
    result = AttentionExtract(built(builder, fused=fused), method=method)(images)
    return [tensor for tensor in (result or {}).values() if isinstance(tensor, Tensor)]


def returned(name: str, images: Tensor, attention: str) -> list[Tensor]:
    """What transformers returns when it is asked for attentions."""
    result = built(transformers_builder(name, attention))(images, output_attentions=True)
    return [tensor for tensor in (result.attentions or ()) if isinstance(tensor, Tensor)]


def transformers_builder(name: str, attention: str = "sdpa") -> Builder:
    """How to build one of the models of transformers."""
    model, config, settings = _TRANSFORMERS[name]
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**settings, attn_implementation=attention))


def count(tensors: Callable[[], list[Tensor]], wanted: list[Tensor]) -> int:
    """How many of the wanted maps are among the tensors that a way gives, if it gives any."""
    try:
        found = tensors()
    except Exception:  # every way fails in ways of its own
        return 0
    left = [weights.flatten().float().sort().values for weights in wanted]
    for tensor in found:
        values = tensor.detach().flatten().float().sort().values
        same = (
            place
            for place, weights in enumerate(left)
            if len(weights) == len(values) and torch.allclose(weights, values, atol=1e-5)
        )
        place = next(same, None)
        if place is not None:
            left.pop(place)
    return len(wanted) - len(left)


@torch.inference_mode()
def count_maps(name: str) -> tuple[int, dict[str, int | None]]:
    """(maps between tokens, how many of them each way gives; None where a way is not for such models)."""
    builder = builders()[name]
    config = getattr(built(builder), "pretrained_cfg", None) or {}
    size = SIZES.get(name, config.get("input_size", (3, 224, 224))[-1])
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with overfocus.capture(built(builder)) as captured:
        captured.tracer.stack.model(images)
    total = sum(attention.kind in TOKEN_KINDS for attention in captured.maps)
    wanted = ours(builder, images)
    of_transformers = name in _TRANSFORMERS
    return total, {
        "overfocus": len(wanted),
        "timm hook": count(lambda: extracted(builder, images, "hook", fused=True), wanted),
        "timm hook, unfused": count(lambda: extracted(builder, images, "hook", fused=False), wanted),
        "timm fx, unfused": count(lambda: extracted(builder, images, "fx", fused=False), wanted),
        "output_attentions, sdpa": count(lambda: returned(name, images, "sdpa"), wanted) if of_transformers else None,
        "output_attentions, eager": count(lambda: returned(name, images, "eager"), wanted) if of_transformers else None,
    }


SIZES = {"torchvision Swin v2": 256}


def builders() -> dict[str, Builder]:
    """Every family and how its model is built."""
    of_timm: dict[str, Builder] = {
        name: lambda model=model, name=name: timm.create_model(model, **SMALLER.get(name, {})) for name, model in TIMM.items()
    }
    of_transformers = {name: transformers_builder(name) for name in _TRANSFORMERS}
    return of_timm | _TORCHVISION | of_transformers | {"torch TransformerEncoder": TorchEncoder}


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", choices=[[], *builders()], default=[])
    names = parser.parse_args().families or list(builders())
    print(f"torch {torch.__version__}, timm {timm.__version__}, torchvision {torchvision.__version__}, ", end="")
    print(f"transformers {transformers.__version__}\n")
    print(f"| family | maps | {' | '.join(WAYS)} |\n|{'---|' * (len(WAYS) + 2)}")
    supported = dict.fromkeys(WAYS, 0)
    asked = dict.fromkeys(WAYS, 0)
    for name in names:
        total, counts = count_maps(name)
        for way, number in counts.items():
            asked[way] += number is not None
            supported[way] += number == total > 0
        cells = ["–" if number is None else str(number) for number in counts.values()]
        print(f"| {name} | {total} | {' | '.join(cells)} |", flush=True)
    print(f"| **families with all maps** | | {' | '.join(f'{supported[way]} of {asked[way]}' for way in WAYS)} |")


if __name__ == "__main__":
    main()
