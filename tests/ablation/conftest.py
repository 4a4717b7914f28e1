"""Tiny models of several families."""

import pytest
import timm
import torch
from torch import nn


def _sharpen(model):
    """Make attention far from uniform."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and any(part in name for part in ("qkv", "q.weight", "k.weight", "in_proj_weight", "kv")):
                parameter.mul_(8)
    return model.eval()


class _Spelled(nn.Module):
    """One head of attention over patches, written out: 4×4 images, patches of one pixel."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 1)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        weights = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1)
        return self.head((weights @ value).mean(1))


def _multihead():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 8, 8), nn.Flatten(2), _Transposed(), nn.TransformerEncoder(layer, 2), _Mean(), nn.Linear(16, 5)
    )


class _Transposed(nn.Module):
    def forward(self, tokens):
        return tokens.transpose(1, 2)


class _Mean(nn.Module):
    def forward(self, tokens):
        return tokens.mean(1)


FAMILIES = {
    "vit": lambda: timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5),
    "swin": lambda: timm.models.SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 2), num_classes=5
    ),
    "cait": lambda: timm.models.Cait(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5),
    "beit": lambda: timm.models.Beit(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, use_rel_pos_bias=True
    ),
    "encoder": _multihead,
    "spelled": _Spelled,
}


@pytest.fixture
def make_model():
    """Make one: `make_model("swin", fused=True)`."""

    def make(family, fused=True):
        torch.manual_seed(0)
        model = _sharpen(FAMILIES[family]())
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused
        return model

    return make
