"""Weights with gradients, for losses on attention."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import overfocus


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * max(1.0, float(gradient.abs().max())), msg=name)


def penalty(weights):
    return (weights * weights).mean() * 10


def unfused_gradients(model, images):
    """The gradients of logits and a penalty on attention, by autograd through an unfused copy of the model."""
    model = copy.deepcopy(model)
    found = []
    for name, module in model.named_modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
        if name.endswith("attn_drop"):
            module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    loss = model(images).square().sum() + sum(penalty(weights) for weights in found)
    loss.backward()
    return gradients(model)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "cait_xxs24_224"])
def test_gradients_are_those_of_the_unfused_model(family, name, streaming):
    model = family.sharpen(timm.create_model(name, img_size=64, depth=2, num_classes=5)).train()
    images = family.images(64)
    expected = unfused_gradients(model, images)
    reduce = (lambda attention: penalty(attention.weights)) if streaming else None
    with overfocus.capture(model, reduce, gradients=True) as captured:
        loss = model(images).square().sum()
    penalties = captured.reduced if streaming else [penalty(attention.weights) for attention in captured.maps]
    (loss + sum(penalties)).backward()
    same(gradients(model), expected)


def test_rows_carry_gradients_too(make_vit, family):
    model, images = make_vit(), family.images(32)
    with overfocus.capture(model, gradients=True) as captured:
        model(images)
    sum(penalty(block) * block.shape[2] / 17 for block in captured.maps[1].chunks(5)).backward()
    in_blocks = gradients(model)
    model.zero_grad()
    with overfocus.capture(model, gradients=True) as captured:
        model(images)
    penalty(captured.maps[1].weights).backward()
    same(in_blocks, gradients(model))


def test_without_asking_weights_are_detached(make_vit, family):
    model = make_vit().train()
    for fused in (True, False):
        model.blocks[0].attn.fused_attn = fused
        with overfocus.capture(model) as captured:
            loss = model(family.images(32)).sum()
        assert [attention.weights.requires_grad for attention in captured.maps] == [False, False]
        loss.backward()  # and capturing leaves the model's own graph alone


def test_without_gradient_mode_there_are_none(make_vit, family):
    with torch.no_grad(), overfocus.capture(make_vit(), gradients=True) as captured:
        captured.tracer.stack.model(family.images(32))
    assert not captured.maps[0].weights.requires_grad


class Checkpointed(nn.Module):
    """A Vision Transformer whose blocks run again in the backward pass."""

    def __init__(self, model, reentrant):
        super().__init__()
        self.model = model
        self.reentrant = reentrant

    def forward(self, images):
        tokens = self.model._pos_embed(self.model.patch_embed(images))
        for block in self.model.blocks:
            tokens = checkpoint(block, tokens, use_reentrant=self.reentrant)
        return self.model.forward_head(self.model.norm(tokens))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_checkpointed_layers_are_seen_once(make_vit, family, reentrant, streaming):
    model, images = make_vit().train(), family.images(32)
    model(images).square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    wrapped = Checkpointed(model, reentrant)
    reduce = (lambda attention: attention.weights.sum()) if streaming else None
    with overfocus.capture(wrapped, reduce) as captured:
        wrapped(images).square().sum().backward()
        assert len(captured.reduced if streaming else captured.maps) == 2
    assert [site.module for site in captured.coverage] == ["model.blocks.0.attn", "model.blocks.1.attn"]
    same(gradients(model), expected)


@pytest.mark.parametrize("streaming", [False, True])
def test_gradients_through_checkpointed_layers(make_vit, family, streaming):
    model, images = make_vit().train(), family.images(32)
    expected = unfused_gradients(model, images)
    wrapped = Checkpointed(model, reentrant=False)
    reduce = (lambda attention: penalty(attention.weights)) if streaming else None
    with overfocus.capture(wrapped, reduce, gradients=True) as captured:
        loss = wrapped(images).square().sum()
        penalties = captured.reduced if streaming else [penalty(attention.weights) for attention in captured.maps]
        (loss + sum(penalties)).backward()
    same(gradients(model), expected)


@pytest.mark.parametrize("inside", [True, False])
def test_timm_checkpointing(make_vit, family, inside):
    """The backward pass may run inside the block or after it."""
    model, images = make_vit().train(), family.images(32)
    expected = unfused_gradients(model, images)
    model.set_grad_checkpointing(True)
    with overfocus.capture(model, gradients=True) as captured:
        loss = model(images).square().sum() + sum(penalty(attention.weights) for attention in captured.maps)
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    assert len(captured.maps) == 2
    same(gradients(model), expected)
