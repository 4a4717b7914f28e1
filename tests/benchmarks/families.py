"""Attention of models that were not built for it: right, refused with a true reason, or wrong.

    python tests/benchmarks/families.py                     # every form, a quarter of an hour on two cores
    python tests/benchmarks/families.py --only vit_pytorch  # those whose name holds a word
    python tests/benchmarks/families.py --part 2/5          # the second of five parts
    python tests/benchmarks/families.py --readme            # and put their rows into overfocus/capturing/README.md

Small models with random weights of timm, torchvision, transformers, vit-pytorch, open_clip, peft, MONAI, segmentation-models-
pytorch, and attention written by hand. The oracle knows nothing of overfocus:

- the outputs of every softmax that a dispatch mode sees while the model runs with the math kernel and without fast paths: the
  weights of a captured map must be one of them (or, where the model changes its map after the softmax, give its output);
- the pixels of one patch of one image are changed: the queries and keys that react must be those that are labelled with this
  place, in that image alone;
- the model's result is the same to the bit with capture and without.

"Refused" is a map without labels or a module without a map that the coverage table gives a reason for. A missing map without a
reason, another result, weights that are no softmax of the model and a label that does not react are wrong.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import overfocus
import overfocus.models
from overfocus.attention import TOKEN_KINDS, AttentionMap

Inputs = dict[str, Any] | tuple[Any, ...]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Form = Callable[[], tuple[nn.Module, Inputs]]
README = Path(__file__).parents[2] / "overfocus" / "capturing" / "README.md"
SOFTMAXES = ("aten::_softmax", "aten::_safe_softmax", "aten::softmax.int")


@dataclass(frozen=True)
class Verdict:
    """What was found of one form."""

    verdict: str
    """right, refused or wrong"""
    maps: int
    detail: str = ""


class SoftmaxOutputs(TorchDispatchMode):
    """Records the output of every softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.name().startswith(SOFTMAXES) and result.ndim >= 2:
            self.found.append(result.detach().float())
        return result


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention spelled out, so that its softmax passes by."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Run a model with the same random numbers as always."""
    torch.manual_seed(1)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def judge(form: Form) -> Verdict:
    """Capture a form and hold it to the oracle."""
    torch.manual_seed(0)
    model, inputs = form()
    for module in model.modules():
        module.training = False
    _sharpen(model)
    with torch.no_grad():
        _settle(model, inputs)
        plain = call(model, inputs)
        with overfocus.capture(model, verify=True) as captured:
            observed = call(model, inputs)
        recorder = SoftmaxOutputs()
        try:
            with plain_kernels(), recorder:
                call(model, inputs)
        except RuntimeError:  # nested tensors have no math kernel: what was seen so far, and the output, must do
            pass
    tensors = [list(_tensors(result)) for result in (plain, observed)]
    if len(tensors[0]) != len(tensors[1]) or not all(
        torch.equal(before.nan_to_num(), after.nan_to_num()) for before, after in zip(*tensors, strict=True)
    ):
        return Verdict("wrong", len(captured.maps), "another result")
    maps = [attention for attention in captured.maps if attention.kind in TOKEN_KINDS]
    faults = [*_strange_weights(captured.maps, recorder.found), *_strange_labels(model, inputs, maps)]
    if faults:
        return Verdict("wrong", len(maps), "; ".join(faults[:2]))
    reasons = sorted({site.reason for site in captured.coverage if site.reason and site.kind not in ("gating", "channel")})
    if not captured.maps and not any(site.reason for site in captured.coverage):
        return Verdict("wrong", 0, "no map and no reason") if recorder.found else Verdict("refused", 0, "no softmax runs in it")
    if reasons or not captured.maps:
        reasons = reasons or sorted({site.reason for site in captured.coverage if site.reason})
        return Verdict("refused", len(maps), "; ".join(reasons[:2]))
    notes = sorted({note for site in captured.coverage if site.note for note in site.note.split("; ")})
    return Verdict("right", len(maps), "; ".join(notes[:2]))


@torch.no_grad()
def _sharpen(model: nn.Module) -> None:
    """Weights under which attention is far from uniform and follows its input; some models begin with zeros."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim >= 2 and parameter.is_floating_point() and parameter[0].numel() > 1:
            drawn = torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5
            parameter.copy_(drawn.to(parameter.dtype))


def _settle(model: nn.Module, inputs: Inputs) -> None:
    """Statistics of batch normalisation that fit the weights: otherwise scores may grow beyond what float32 tells apart."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    if norms:
        call(model, inputs)
    for norm in norms:
        norm.training = False


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result.to_padded_tensor(0.0) if result.is_nested else result
    elif isinstance(result, dict):
        yield from _tensors(tuple(result.values()))
    elif isinstance(result, (tuple, list)):
        for item in result:
            yield from _tensors(item)


def _strange_weights(maps: tuple[AttentionMap, ...], softmaxes: list[Tensor]) -> Iterator[str]:
    """Maps whose weights no softmax of the model gave, and that do not give its output either."""
    known = [found.flatten().sort().values for found in softmaxes]
    for attention in maps:
        source = attention.source.source
        weights = source.rows(0, source.shape[-2]).flatten().sort().values
        if any(len(values) == len(weights) and torch.allclose(values, weights, atol=1e-5) for values in known):
            continue
        error, scale = attention.deviation or (float("nan"), 1.0)
        if not error <= (1e-4 if attention.computed_in == torch.float32 else 3e-2) * max(1.0, scale):
            yield f"{attention.module}: weights that the model did not use"


def _strange_labels(model: nn.Module, inputs: Inputs, maps: list[AttentionMap]) -> Iterator[str]:
    """Labels of the first map that do not react where the pixels of their place are changed, or react in another image."""
    first = next((attention for attention in maps if attention.image_grid is not None and attention.frames == 1), None)
    values = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    pixels = next((value for value in values if isinstance(value, Tensor) and value.ndim == 4), None)
    if first is None or pixels is None or first.image_grid is None:
        return
    rows, columns = first.image_grid
    height, width = pixels.shape[2] / rows, pixels.shape[3] / columns
    number = maps.index(first)
    for row, column in ((rows // 2, columns // 2), (0, columns - 1)):
        changed = pixels.clone()
        part = changed[0, :, int(row * height) : int((row + 1) * height), int(column * width) : int((column + 1) * width)]
        part.add_(torch.randn(part.shape, generator=torch.Generator().manual_seed(5)) * 3)
        moved: Inputs = (
            {name: changed if value is pixels else value for name, value in inputs.items()}
            if isinstance(inputs, dict)
            else tuple(changed if value is pixels else value for value in inputs)
        )
        with torch.no_grad(), overfocus.capture(model) as captured:
            call(model, moved)
        other = [attention for attention in captured.maps if attention.kind in TOKEN_KINDS][number]
        before, after = first.rows(0, first.shape[2]), other.rows(0, other.shape[2])
        own = first.windows * first.batch // len(pixels) if first.batch % len(pixels) == 0 else first.windows
        if first.batch == len(pixels) and not torch.allclose(before[own:], after[own:], atol=1e-5):
            yield f"{first.module}: another image reacts"
        tiny = torch.finfo(before.dtype).tiny
        logits = (after[:own].clamp_min(tiny).log() - before[:own].clamp_min(tiny).log()).masked_fill(before[:own] == 0, 0)
        reaction = (logits - logits.median(-1, keepdim=True).values).abs().flatten(1, 2).median(1).values
        reaction = reaction[:, first.key_prefix_tokens :]
        if (reaction < 0.05 * reaction.max()).float().mean() < 0.5:
            return  # a patch embedding that sees most of the image: every place reacts
        window, token = divmod(int(reaction.argmax()), reaction.shape[1])
        place = token if first.partition is None else int(first.partition[window, token])
        grid = first.image_grid if first.partition is not None else first.key_grid
        if grid is None:
            return
        found = place // grid[1] * rows / grid[0], place % grid[1] * columns / grid[1]
        reach = 1.5 * max(rows / grid[0], columns / grid[1])
        if abs(found[0] - row) > reach or abs(found[1] - column) > reach:
            yield f"{first.module}: place {(row, column)} changed, {tuple(map(int, found))} reacts"


# --- the forms -------------------------------------------------------------------------------------------------------


def images(size: int = 32, batch: int = 2, channels: int = 3) -> Tensor:
    """Random images."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(2))


def of_timm() -> Iterator[tuple[str, Form]]:
    """The families of timm, as small as they come."""
    plain = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    shallow = {"img_size": 64, "depth": 2}
    settings: dict[str, tuple[dict[str, Any], int]] = {
        "vit_tiny_patch16_224": (shallow, 64),
        "deit_tiny_distilled_patch16_224": (shallow, 64),
        "deit3_small_patch16_224": (shallow | plain, 64),
        "beit_base_patch16_224": (shallow | plain, 64),
        "beitv2_base_patch16_224": (shallow | plain, 64),
        "eva02_tiny_patch14_224": ({"img_size": 56, "depth": 2}, 56),
        "eva_large_patch14_196": ({"img_size": 56} | plain, 56),
        "vit_small_patch14_reg4_dinov2": ({"img_size": 56} | plain, 56),
        "vit_small_patch16_dinov3": (shallow | plain, 64),
        "vit_base_patch16_siglip_224": (shallow | plain, 64),
        "vit_base_patch16_clip_224": (shallow | plain, 64),
        "vit_relpos_small_patch16_224": (shallow | plain, 64),
        "vit_srelpos_small_patch16_224": (shallow | plain, 64),
        "vit_wee_patch16_reg1_gap_256": (shallow | plain, 64),
        "vit_betwixt_patch16_rope_reg4_gap_256": (shallow | plain, 64),
        "vit_base_mci_224": ({"img_size": 64, "depth": 1}, 64),
        "vit_tiny_r_s16_p8_224": ({"img_size": 64, "depth": 2}, 64),
        "samvit_base_patch16_224": ({"img_size": 64, "global_attn_indexes": (1,), "window_size": 2} | plain, 64),
        "naflexvit_base_patch16_gap": (plain, 64),
        "flexivit_small": (shallow | plain, 64),
        "cait_xxs24_224": (shallow, 64),
        "convit_tiny": ({"img_size": 64, "depth": 4, "local_up_to_layer": 2}, 64),
        "xcit_nano_12_p16_224": (shallow, 64),
        "crossvit_tiny_240": ({}, 240),
        "swin_tiny_patch4_window7_224": ({"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}, 56),
        "swinv2_tiny_window8_256": ({"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}, 64),
        "swinv2_cr_tiny_224": ({"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}, 64),
        "swin_s3_tiny_224": ({}, 224),
        "maxvit_rmlp_pico_rw_256": ({"img_size": 64}, 64),
        "maxvit_tiny_tf_224": ({"img_size": 64}, 64),
        "maxxvit_rmlp_nano_rw_256": ({"img_size": 64}, 64),
        "coatnet_pico_rw_224": ({"img_size": 64}, 64),
        "coatnet_rmlp_nano_rw_224": ({"img_size": 64}, 64),
        "tiny_vit_5m_224": ({}, 224),
        "davit_tiny": ({}, 112),
        "gcvit_xxtiny": ({}, 224),
        "nest_tiny": ({}, 224),
        "hiera_tiny_224": ({"img_size": 64}, 64),
        "mvitv2_tiny": ({}, 224),
        "pvt_v2_b0": ({}, 64),
        "pvt_v2_b2_li": ({}, 64),
        "twins_svt_small": ({}, 224),
        "twins_pcpvt_small": ({}, 224),
        "levit_128s": ({}, 224),
        "efficientformer_l1": ({}, 224),
        "efficientformerv2_s0": ({}, 224),
        "efficientvit_m0": ({}, 224),
        "efficientvit_b0": ({}, 64),
        "visformer_tiny": ({}, 224),
        "volo_d1_224": ({}, 224),
        "tnt_s_patch16_224": ({"img_size": 64, "depth": 2}, 64),
        "mobilevit_xxs": ({}, 64),
        "mobilevitv2_050": ({}, 64),
        "fastvit_sa12": ({}, 64),
        "nextvit_small": ({}, 224),
        "caformer_s18": ({}, 64),
        "pit_ti_224": ({}, 224),
        "coat_lite_tiny": ({}, 64),
        "edgenext_xx_small": ({}, 64),
        "poolformer_s12": ({}, 64),
        "repvit_m0_9": ({}, 64),
        "sequencer2d_s": ({}, 224),
        "mixer_s32_224": ({}, 224),
        "botnet26t_256": ({}, 256),
        "halonet26t": ({}, 256),
        "lambda_resnet26t": ({}, 256),
        "resnet26": ({}, 64),
        "mambaout_femto": ({}, 64),
        "shvit_s1": ({}, 64),
        "swiftformer_xs": ({}, 64),
        "mobilenetv4_hybrid_medium": ({}, 64),
        "focalnet_tiny_srf": ({}, 64),
        "rdnet_tiny": ({}, 64),
        "fan_tiny_12_p16_224": ({"img_size": 64}, 64),
        "tap_fan_tiny_12_p16_224": ({"img_size": 64}, 64),
        "tap_fan_swin_tiny_patch4_window7_224": ({}, 224),
        "rvt_tiny": ({"img_size": 64}, 64),
        "tap_rvt_tiny_plus": ({"img_size": 64}, 64),
    }
    for name, (options, size) in settings.items():
        yield (
            f"timm {name}",
            lambda name=name, options=options, size=size: (
                timm.create_model(name, num_classes=3, **options),
                (images(size),),
            ),
        )


def of_torchvision() -> Iterator[tuple[str, Form]]:
    """torchvision's classifiers with attention."""
    from torchvision import models

    yield "torchvision VisionTransformer", lambda: (models.VisionTransformer(64, 16, 2, 3, 48, 96), (images(64),))
    yield "torchvision swin_t", lambda: (models.swin_t(), (images(112),))
    yield "torchvision swin_v2_t", lambda: (models.swin_v2_t(), (images(128),))
    yield "torchvision maxvit_t", lambda: (models.maxvit_t(), (images(224),))
    yield "torchvision swin3d_t", lambda: (models.video.swin3d_t(), (torch.randn(1, 3, 4, 64, 64),))
    yield "torchvision mvit_v2_s", lambda: (models.video.mvit_v2_s(), (torch.randn(1, 3, 16, 224, 224),))


def of_transformers() -> Iterator[tuple[str, Form]]:
    """transformers, with torch's kernel and with their own."""
    import transformers

    transformers.logging.set_verbosity_error()
    plain = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 64}
    plain["patch_size"] = 16
    pixels: dict[str, Any] = {"pixel_values": images(64)}
    text = {"input_ids": torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(0))}
    words = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    video = {"pixel_values": torch.randn(2, 4, 3, 64, 64)}
    swin = {"image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    frames = plain | {"num_frames": 4}
    pair = {"text_config": words | {"max_position_embeddings": 16}, "vision_config": plain, "projection_dim": 16}
    forms: list[tuple[str, str, dict[str, Any], Inputs]] = [
        ("ViTModel", "ViTConfig", plain, pixels),
        ("ViTForMaskedImageModeling", "ViTConfig", plain, pixels),
        ("DeiTModel", "DeiTConfig", plain, pixels),
        ("BeitModel", "BeitConfig", plain, pixels),
        ("Data2VecVisionModel", "Data2VecVisionConfig", plain, pixels),
        ("Dinov2Model", "Dinov2Config", plain, pixels),
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", plain, pixels),
        ("DINOv3ViTModel", "DINOv3ViTConfig", plain, pixels),
        ("IJepaModel", "IJepaConfig", plain, pixels),
        ("ViTMAEForPreTraining", "ViTMAEConfig", plain | _DECODER, pixels),
        ("ViTMSNModel", "ViTMSNConfig", plain, pixels),
        ("ViTHybridModel", "ViTHybridConfig", plain, pixels),
        ("YolosModel", "YolosConfig", plain | {"image_size": [64, 64], "num_detection_tokens": 5}, pixels),
        ("CLIPVisionModel", "CLIPVisionConfig", plain, pixels),
        ("CLIPTextModel", "CLIPTextConfig", words | {"max_position_embeddings": 16}, text),
        ("CLIPModel", "CLIPConfig", pair, pixels | text),
        ("SiglipModel", "SiglipConfig", {key: pair[key] for key in ("text_config", "vision_config")}, pixels | text),
        ("SiglipVisionModel", "SiglipVisionConfig", plain, pixels),
        ("ChineseCLIPVisionModel", "ChineseCLIPVisionConfig", plain, pixels),
        ("AltCLIPVisionModel", "AltCLIPVisionConfig", plain, pixels),
        ("BlipVisionModel", "BlipVisionConfig", plain, pixels),
        ("Blip2VisionModel", "Blip2VisionConfig", plain, pixels),
        ("InstructBlipVisionModel", "InstructBlipVisionConfig", plain, pixels),
        ("CLIPSegVisionModel", "CLIPSegVisionConfig", plain, pixels),
        ("Owlv2VisionModel", "Owlv2VisionConfig", plain, pixels),
        ("OwlViTVisionModel", "OwlViTVisionConfig", plain, pixels),
        ("Kosmos2VisionModel", "Kosmos2VisionConfig", plain, pixels),
        ("GitVisionModel", "GitVisionConfig", plain, pixels),
        ("XCLIPVisionModel", "XCLIPVisionConfig", plain | {"num_frames": 4}, {"pixel_values": torch.randn(4, 3, 64, 64)}),
        ("GroupViTVisionModel", "GroupViTVisionConfig", plain | _GROUPS, pixels),
        ("SwinModel", "SwinConfig", swin, pixels),
        ("Swinv2Model", "Swinv2Config", swin, pixels),
        ("DonutSwinModel", "DonutSwinConfig", swin, pixels),
        ("MaskFormerSwinModel", "MaskFormerSwinConfig", swin, pixels),
        ("Swin2SRModel", "Swin2SRConfig", _SWIN2SR, pixels),
        ("PvtModel", "PvtConfig", {"image_size": 64, "depths": [1, 1, 1, 1]}, pixels),
        ("PvtV2Model", "PvtV2Config", {"image_size": 64, "depths": [1, 1, 1, 1]}, pixels),
        ("SegformerModel", "SegformerConfig", {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 64]}, pixels),
        ("GLPNModel", "GLPNConfig", {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 64]}, pixels),
        ("HieraModel", "HieraConfig", {"image_size": [64, 64], "depths": [1, 1, 1, 1], "embed_dim": 16}, pixels),
        ("CvtModel", "CvtConfig", {"depth": [1, 1, 1], "embed_dim": [16, 32, 48], "num_heads": [1, 2, 3]}, pixels),
        ("LevitModel", "LevitConfig", {"image_size": 64, "hidden_sizes": [32, 48, 64], "depths": [1, 1, 1]}, pixels),
        ("MobileViTModel", "MobileViTConfig", {"image_size": 64}, pixels),
        ("MobileViTV2Model", "MobileViTV2Config", {"image_size": 64}, pixels),
        ("EfficientLoFTRModel", "EfficientLoFTRConfig", {}, {"pixel_values": torch.randn(1, 2, 1, 64, 64)}),
        ("DPTModel", "DPTConfig", plain | {"is_hybrid": False}, pixels),
        ("VivitModel", "VivitConfig", frames | {"tubelet_size": [2, 16, 16]}, video),
        ("VideoMAEModel", "VideoMAEConfig", frames, video),
        ("TimesformerModel", "TimesformerConfig", frames, video),
        ("VJEPA2Model", "VJEPA2Config", _VJEPA, {"pixel_values_videos": torch.randn(1, 4, 3, 64, 64)}),
        ("SamVisionModel", "SamVisionConfig", plain | {"window_size": 2, "global_attn_indexes": [1]}, pixels),
        ("BertModel", "BertConfig", words, text),
        ("PerceiverForImageClassificationLearned", "PerceiverConfig", _PERCEIVER, {"inputs": images(224, 1)}),
        ("DetrModel", "DetrConfig", _DETR, pixels),
        ("DabDetrModel", "DabDetrConfig", _DETR | {"hidden_size": 32}, pixels),
        ("ConditionalDetrModel", "ConditionalDetrConfig", _DETR, pixels),
        ("RegNetModel", "RegNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}, pixels),
        ("ViltModel", "ViltConfig", plain | {"vocab_size": 64, "modality_type_vocab_size": 2}, pixels | text),
        ("BridgeTowerVisionModel", "BridgeTowerVisionConfig", plain, pixels),
        ("FlavaImageModel", "FlavaImageConfig", plain, pixels),
        ("AIMv2VisionModel", "AIMv2VisionConfig", plain, pixels),
        ("Aimv2VisionModel", "Aimv2VisionConfig", plain, pixels),
        ("PixtralVisionModel", "PixtralVisionConfig", plain, pixels),
        ("Siglip2VisionModel", "Siglip2VisionConfig", _SIGLIP2, _siglip2_inputs()),
        ("MLCDVisionModel", "MLCDVisionConfig", plain, pixels),
        ("IdeficsVisionTransformer", "IdeficsVisionConfig", plain, pixels),
        ("Idefics2VisionTransformer", "Idefics2VisionConfig", plain, pixels),
        ("ZoeDepthForDepthEstimation", "ZoeDepthConfig", {}, pixels),
        ("ASTModel", "ASTConfig", words | {"num_mel_bins": 32, "max_length": 64}, {"input_values": torch.randn(2, 64, 32)}),
        ("TextNetModel", "TextNetConfig", {}, pixels),
    ]
    for model, config, settings, inputs in forms:
        if not hasattr(transformers, model) or not hasattr(transformers, config):
            continue
        for kernel in ("sdpa", "eager"):
            yield (
                f"transformers {model}, {kernel}",
                lambda m=model, c=config, s=settings, i=inputs, k=kernel: (
                    _of_kernel(getattr(transformers, m), getattr(transformers, c)(**s), k),
                    i,
                ),
            )


_DECODER = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 32,
}
_GROUPS = {"depths": [1, 1], "num_group_tokens": [8, 0], "num_output_groups": [8, 0], "num_hidden_layers": 2}
_SWIN2SR = {"image_size": 32, "embed_dim": 24, "depths": [2], "num_heads": [2], "window_size": 4}
_VJEPA = {
    "crop_size": 64, "frames_per_clip": 4, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "pred_hidden_size": 32, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1, "pred_num_mask_tokens": 2,
}  # fmt: skip
_PERCEIVER = {
    "num_latents": 9, "d_latents": 32, "d_model": 32, "num_blocks": 1, "num_self_attends_per_block": 1,
    "num_self_attention_heads": 2, "num_cross_attention_heads": 1,
}  # fmt: skip
_DETR = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 9, "use_pretrained_backbone": False,
}  # fmt: skip
_SIGLIP2 = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "patch_size": 4,
    "num_patches": 16,
}  # fmt: skip


def _siglip2_inputs() -> dict[str, Any]:
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[:, 12:] = 0
    return {
        "pixel_values": torch.randn(2, 16, 48),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[3, 4], [3, 4]]),
    }


def _of_kernel(model: Any, config: Any, kernel: str) -> nn.Module:
    config._attn_implementation = kernel
    built: nn.Module = model(config)
    return built


def of_vit_pytorch() -> Iterator[tuple[str, Form]]:
    """vit-pytorch's classifiers."""
    import importlib

    plain = {"image_size": 32, "patch_size": 8, "num_classes": 3, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 32}
    names: dict[str, tuple[str, dict[str, Any], int]] = {
        name: (symbol, plain | more, 32)
        for name, symbol, more in (
            ("vit", "ViT", {}),
            ("simple_vit", "SimpleViT", {}),
            ("simple_flash_attn_vit", "SimpleViT", {}),
            ("simple_vit_with_fft", "SimpleViT", {"freq_patch_size": 8}),
            ("simple_vit_with_patch_dropout", "SimpleViT", {}),
            ("simple_vit_with_qk_norm", "SimpleViT", {}),
            ("simple_vit_with_register_tokens", "SimpleViT", {}),
            ("simple_vit_with_value_residual", "SimpleViT", {}),
            ("simple_vit_with_hyper_connections", "SimpleViT", {"num_residual_streams": 2}),
            ("simple_vit_with_relative_proj_pos_bias", "SimpleViT", {}),
            ("simple_vit_with_specialized_cls", "SimpleViT", {}),
            ("simple_vit_orthog_residual_update", "SimpleViT", {}),
            ("simple_uvit", "SimpleUViT", {"depth": 2}),
            ("deepvit", "DeepViT", {}),
            ("cait", "CaiT", {"cls_depth": 1}),
            ("rvt", "RvT", {}),
            ("parallel_vit", "ViT", {}),
            ("vit_for_small_dataset", "ViT", {}),
            ("vit_with_patch_dropout", "ViT", {}),
            ("vit_with_patch_merger", "ViT", {}),
            ("vit_with_decorr", "ViT", {}),
            ("vit_with_keel_post_ln", "ViT", {}),
            ("vit_5", "ViT", {}),
            ("learnable_memory_vit", "ViT", {}),
            ("normalized_vit", "nViT", {}),
            ("ats_vit", "ViT", {"max_tokens_per_depth": (8, 4)}),
            ("jumbo_vit", "JumboViT", {}),
            ("xcit", "XCiT", {"cls_depth": 1, "local_patch_kernel_size": 3}),
        )
    }
    others: dict[str, tuple[str, dict[str, Any], int]] = {
        "look_vit": ("LookViT", _LOOK, 32),
        "cct": ("CCT", {"img_size": 32, "embedding_dim": 32, "num_layers": 2, "num_heads": 2, "num_classes": 3}, 32),
        "cross_vit": ("CrossViT", {"image_size": 48, "num_classes": 3, "sm_dim": 16, "lg_dim": 16, "depth": 1}, 48),
        "crossformer": ("CrossFormer", {"num_classes": 3, "dim": (64, 64, 64, 64), "depth": (1, 1, 1, 1)}, 224),
        "cvt": ("CvT", {"num_classes": 3, "s1_emb_dim": 16, "s2_emb_dim": 16, "s3_emb_dim": 16, "s3_depth": 1}, 64),
        "levit": ("LeViT", {"image_size": 64, "num_classes": 3, "dim": (16, 32, 48), "depth": 1, "heads": 2, "mlp_mult": 2}, 64),
        "max_vit": ("MaxViT", {"num_classes": 3, "dim": 16, "dim_head": 8, "depth": (1, 1), "window_size": 4}, 64),
        "max_vit_with_registers": ("MaxViT", {"num_classes": 3, "dim": 16, "dim_head": 8, "depth": (1, 1), "window_size": 4}, 64),
        "mobile_vit": ("MobileViT", {"image_size": (64, 64), "dims": [16, 24, 32], "channels": _MOBILE, "num_classes": 3}, 64),
        "nest": ("NesT", {"image_size": 64, "patch_size": 4, "num_classes": 3, "dim": 16, "heads": 2, "num_hierarchies": 2,
                          "block_repeats": (1, 1)}, 64),
        "pit": ("PiT", {"image_size": 64, "patch_size": 8, "num_classes": 3, "dim": 32, "depth": (1, 1), "heads": 2,
                        "mlp_dim": 32}, 64),
        "regionvit": ("RegionViT", {"num_classes": 3, "dim": (16, 16, 16, 16), "depth": (1, 1, 1, 1), "window_size": 4}, 128),
        "scalable_vit": ("ScalableViT", {"num_classes": 3, "dim": 16, "heads": (1, 2), "depth": (1, 1), "ssa_dim_key": 8,
                                         "reduction_factor": (2, 1), "window_size": (8, None)}, 64),
        "sep_vit": ("SepViT", {"num_classes": 3, "dim": 8, "dim_head": 8, "heads": (1, 2), "depth": (1, 1)}, 112),
        "t2t": ("T2TViT", {"image_size": 64, "num_classes": 3, "dim": 32, "depth": 1, "heads": 2, "mlp_dim": 32,
                           "t2t_layers": ((7, 4), (3, 2))}, 64),
        "twins_svt": ("TwinsSVT", {"num_classes": 3, "s1_emb_dim": 16, "s2_emb_dim": 16, "s3_emb_dim": 16, "s4_emb_dim": 16,
                                   "s3_depth": 1}, 224),
    }  # fmt: skip
    for name, (symbol, settings, size) in (names | others).items():
        yield (
            f"vit_pytorch {name}",
            lambda n=name, y=symbol, s=settings, z=size: (
                getattr(importlib.import_module(f"vit_pytorch.{n}"), y)(**s),
                (images(z),),
            ),
        )
    volume = {"image_size": 32, "frames": 4, "image_patch_size": 8, "frame_patch_size": 2, "num_classes": 3, "dim": 32}
    volume |= {"heads": 2, "mlp_dim": 32}
    for name, symbol, more in (
        ("vit_3d", "ViT", {"depth": 1}),
        ("simple_vit_3d", "SimpleViT", {"depth": 1}),
        ("simple_flash_attn_vit_3d", "SimpleViT", {"depth": 1}),
        ("vivit", "ViViT", {"spatial_depth": 1, "temporal_depth": 1}),
    ):
        yield (
            f"vit_pytorch {name}",
            lambda n=name, y=symbol, m=more: (
                getattr(importlib.import_module(f"vit_pytorch.{n}"), y)(**(volume | m)),
                (torch.randn(2, 3, 4, 32, 32),),
            ),
        )
    packed = {"image_size": 32, "patch_size": 8, "num_classes": 3, "dim": 32, "depth": 1, "heads": 2, "mlp_dim": 32}
    listed = [[torch.randn(3, 32, 16), torch.randn(3, 16, 16)], [torch.randn(3, 32, 32)]]
    yield "vit_pytorch na_vit", lambda: (importlib.import_module("vit_pytorch.na_vit").NaViT(**packed), (listed,))
    yield (
        "vit_pytorch na_vit_nested_tensor",
        lambda: (
            importlib.import_module("vit_pytorch.na_vit_nested_tensor").NaViT(**packed),
            ([torch.randn(3, 32, 16), torch.randn(3, 16, 16)],),
        ),
    )
    yield (
        "vit_pytorch vit_1d",
        lambda: (
            importlib.import_module("vit_pytorch.vit_1d").ViT(
                seq_len=64, patch_size=8, num_classes=3, dim=32, depth=1, heads=2, mlp_dim=32
            ),
            (torch.randn(2, 3, 64),),
        ),
    )


_LOOK = {
    "dim": 32, "image_size": 32, "num_classes": 3, "depth": 2, "patch_size": 8, "heads": 2, "highres_patch_size": 4,
    "mlp_factor": 2, "dim_head": 16, "highres_mlp_factor": 2, "cross_attn_heads": 2, "cross_attn_dim_head": 16,
}  # fmt: skip
_MOBILE = [8, 8, 8, 8, 16, 16, 24, 24, 32, 32, 32]


def of_others() -> Iterator[tuple[str, Form]]:
    """open_clip, peft, MONAI and segmentation-models-pytorch."""
    import monai.networks.nets as nets
    import open_clip
    import peft
    import segmentation_models_pytorch as smp

    vision = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2}
    tokens = torch.randint(1, 63, (2, 16))
    yield "open_clip CLIP", lambda: (open_clip.CLIP(32, vision, text), (images(64), tokens))
    yield "open_clip image tower", lambda: (open_clip.CLIP(32, vision, text).visual, (images(64),))
    yield "open_clip CoCa", lambda: (
        open_clip.CoCa(32, text, text | {"embed_cls": True},
                       vision | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 9}),
        (images(64), tokens),
    )  # fmt: skip
    yield (
        "peft LoRA on timm ViT",
        lambda: (
            peft.get_peft_model(
                timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2), peft.LoraConfig(target_modules=["qkv"])
            ),
            (images(64),),
        ),
    )
    yield (
        "monai ViT",
        lambda: (
            nets.ViT(
                3, (32, 32), (8, 8), hidden_size=32, mlp_dim=32, num_layers=2, num_heads=2, spatial_dims=2, classification=True
            ),
            (images(32),),
        ),
    )
    yield (
        "monai ViT 3-D",
        lambda: (
            nets.ViT(1, (16, 32, 32), (8, 8, 8), hidden_size=32, mlp_dim=32, num_layers=2, num_heads=2, classification=True),
            (torch.randn(2, 1, 16, 32, 32),),
        ),
    )
    yield (
        "monai UNETR",
        lambda: (
            nets.UNETR(1, 2, (32, 32), feature_size=4, hidden_size=24, mlp_dim=24, num_heads=2, spatial_dims=2),
            (images(32, channels=1),),
        ),
    )
    yield "monai SwinUNETR", lambda: (nets.SwinUNETR(1, 2, feature_size=12, spatial_dims=2), (images(64, channels=1),))
    yield "monai SwinUNETR 3-D", lambda: (nets.SwinUNETR(1, 2, feature_size=12), (torch.randn(1, 1, 32, 32, 32),))
    yield "smp Segformer", lambda: (smp.Segformer("mit_b0", encoder_weights=None), (images(64),))
    yield "smp Unet mit_b0", lambda: (smp.Unet("mit_b0", encoder_weights=None), (images(64),))
    yield "smp PAN", lambda: (smp.PAN("resnet18", encoder_weights=None), (images(128),))
    yield "smp MAnet", lambda: (smp.MAnet("resnet18", encoder_weights=None), (images(64),))


class Handmade(nn.Module):
    """Patches of 8×8 pixels attended by a function of queries, keys and values."""

    def __init__(self, attend: Attend, before: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.attn = nn.Linear(16, 48)
        nn.init.normal_(self.attn.weight, 0, 0.5)
        self.attend, self.before = attend, before

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels if self.before is None else self.before(pixels)
        tokens = self.patches(pixels).flatten(2).mT
        q, k, v = self.attn(tokens).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        return self.attend(q, k, v)


def by_hand() -> Iterator[tuple[str, Form]]:
    """Spellings of attention, and ways to run it."""

    def one_by_one(attend: Attend) -> Attend:
        return lambda q, k, v: torch.stack(
            [torch.stack([attend(q[b, h], k[b, h], v[b, h]) for h in range(q.shape[1])]) for b in range(len(q))]
        )

    def over_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        exponentials = (q @ k.mT / 3).exp()
        return exponentials / exponentials.sum(-1, keepdim=True) @ v

    def sink(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([q @ k.mT, torch.ones(*q.shape[:3], 1)], -1).softmax(-1)[..., :-1] @ v

    spellings: dict[str, Attend] = {
        "@ and softmax": lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
        "torch.special.softmax": lambda q, k, v: torch.special.softmax(q @ k.mT, -1) @ v,
        "linalg.matmul": lambda q, k, v: torch.linalg.matmul(torch.linalg.matmul(q, k.mT).softmax(-1), v),
        "matmul by name": lambda q, k, v: torch.matmul(input=torch.matmul(input=q, other=k.mT).softmax(-1), other=v),
        "mm per image and head": one_by_one(lambda q, k, v: torch.mm(torch.mm(q, k.T).softmax(-1), v)),
        "F.linear(q, k)": one_by_one(lambda q, k, v: F.linear(F.linear(q, k).softmax(-1), v.T)),
        "tensordot": one_by_one(lambda q, k, v: torch.tensordot(torch.tensordot(q, k, ([1], [1])).softmax(-1), v, 1)),
        "(q * k).sum": lambda q, k, v: (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1).softmax(-1) @ v,
        "einsum with an ellipsis": lambda q, k, v: torch.einsum(
            "...ij,...jd->...id", torch.einsum("...id,...jd->...ij", q, k).softmax(-1), v
        ),
        "bmm": lambda q, k, v: torch.bmm(torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).softmax(-1), v.flatten(0, 1)),
        "exp over sum": over_sum,
        "log_softmax and exp": lambda q, k, v: (q @ k.mT).log_softmax(-1).exp() @ v,
        "sink logit": sink,
        "softmax over queries": lambda q, k, v: (q @ k.mT).softmax(-2) @ v,
        "fused": F.scaled_dot_product_attention,
        "fused, causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "fused, grouped": lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True),
        "sigmoid": lambda q, k, v: (q @ k.mT).sigmoid() @ v,
        "ReLU": lambda q, k, v: (q @ k.mT).relu() @ v,
        "linear": lambda q, k, v: q.softmax(-1) @ (k.softmax(-2).mT @ v),
    }
    for name, attend in spellings.items():
        yield f"by hand: {name}", lambda attend=attend: (Handmade(attend), (images(32),))
    growing: dict[str, Callable[[Tensor], Tensor]] = {
        "the batch twice": lambda x: torch.cat([x, x]),
        "mirrored copies": lambda x: torch.cat([x, x.flip(-1)]),
        "each image three times": lambda x: x.repeat_interleave(3, 0),
        "crops": lambda x: torch.cat([x[..., :16, :16], x[..., 16:, 16:]]),
    }
    for name, before in growing.items():
        yield f"by hand: {name}", lambda before=before: (Handmade(F.scaled_dot_product_attention, before), (images(32),))
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    yield (
        "exported program",
        lambda: (
            torch.export.export(timm.models.VisionTransformer(**vit).eval(), (images(32),)).module(),
            (images(32),),
        ),
    )
    yield (
        "traced TorchScript",
        lambda: (
            nn.Sequential(torch.jit.trace(timm.models.VisionTransformer(**vit).eval(), images(32))),
            (images(32),),
        ),
    )
    yield "torch.compile", lambda: (torch.compile(timm.models.VisionTransformer(**vit), backend="eager"), (images(32),))
    yield "bfloat16", lambda: (timm.models.VisionTransformer(**vit).bfloat16(), (images(32).bfloat16(),))
    yield (
        "torch TransformerEncoder",
        lambda: (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2),
            (torch.randn(2, 16, 32),),
        ),
    )
    yield "torch Transformer", lambda: (nn.Transformer(32, 4, 1, 1, 64), (torch.randn(16, 2, 32), torch.randn(9, 2, 32)))


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="forms whose name holds this")
    parser.add_argument("--part", default="1/1", help="of these forms, the second of five parts where it is 2/5")
    parser.add_argument("--readme", action="store_true", help="put the rows into the table of overfocus/capturing/README.md")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    sources = (by_hand, of_timm, of_torchvision, of_others, of_vit_pytorch, of_transformers)
    forms = [(name, form) for source in sources for name, form in source()]
    chosen = [(name, form) for name, form in forms if arguments.only in name][part - 1 :: parts]
    rows: dict[str, str | None] = {}
    with torch.random.fork_rng():
        for name, form in chosen:
            rows[name] = None
            try:
                verdict = judge(form)
            except Exception as error:  # a release of a library without this form, or a fault of ours: look
                if "does not support an attention implementation" not in str(error):
                    print(f"{name}: not judged: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
                continue
            rows[name] = f"| {name} | {verdict.verdict} | {verdict.maps} | {verdict.detail.replace('|', '/')} |"
            print(rows[name], flush=True)
    print(_total([row for row in rows.values() if row]))
    if arguments.readme:
        before, rest = README.read_text().split("<!-- families -->\n")
        table, after = rest.split("<!-- end -->")
        found = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines() if " | " in line} | rows
        lines = [row for name, _ in forms if (row := found.get(name))]
        table = "\n".join([_total(lines), "", "| form | | maps | |", "|---|---|---|---|", *lines])
        README.write_text(f"{before}<!-- families -->\n{table}\n<!-- end -->{after}")


def _total(rows: list[str]) -> str:
    counts = {name: sum(f" | {name} | " in row for row in rows) for name in ("right", "refused", "wrong")}
    versions = [f"{name} {version(name)}" for name in ("torch", "timm", "transformers", "vit-pytorch")]
    return f"{len(rows)} forms: {', '.join(f'{number} {name}' for name, number in counts.items())} ({', '.join(versions)})."


if __name__ == "__main__":
    main()
