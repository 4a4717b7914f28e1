"""ADL of a model's own forward."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from overfocus import OverfocusError, capture
from overfocus.losses import AttentionDiversificationLoss, diversify
from overfocus.metrics import METRICS
from overfocus.models import add_tap

Textbook = Callable[..., Tensor]
SMALL = {
    "vit_tiny_patch16_224": {"depth": 3, "img_size": 96},
    "deit_tiny_distilled_patch16_224": {"depth": 3, "img_size": 96},
    "eva02_tiny_patch14_224": {"depth": 3, "img_size": 84},
    "swin_tiny_patch4_window7_224": {"depths": (2, 2), "num_heads": (3, 6), "img_size": 56},
    "cait_xxs24_224": {"depth": 3, "img_size": 96},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **SMALL[name]).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if any(part in key for part in (".qkv.weight", ".q.weight", ".q_proj.weight", ".kv.weight", ".k.weight")):
                parameter.mul_(8)  # attention far from uniform
            if "proj_w.weight" in key or "proj_l.weight" in key:
                nn.init.eye_(parameter)  # CaiT's mixture of heads
            if "gamma" in key:
                parameter.fill_(0.5)
    return model


def batch(name: str) -> Tensor:
    size = SMALL[name].get("img_size", 64)
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


def unfuse(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def from_whole_maps(
    textbook: Textbook, model: nn.Module, images: Tensor, layers: Sequence[int] | None = None, threshold: float = 2.0
) -> Tensor:
    """The loss of a model's maps, one layer after the other."""
    with capture(model, gradients=True) as captured:
        model(images)
    maps = [attention for attention in captured.maps if attention.kind in ("global", "window", "pooled")]
    maps = maps if layers is None else [maps[layer] for layer in layers]
    values = [textbook(attention.weights, threshold, attention.prefix_tokens, attention.key_prefix_tokens) for attention in maps]
    return torch.stack(values).sum() / (len(values) + 1e-6)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("fused", [True, False])
def test_value_and_gradient_of_every_parameter(name: str, fused: bool, textbook: Textbook) -> None:
    model = build(name) if fused else unfuse(build(name))
    with diversify(model, threshold=1.0) as adl:
        model(batch(name))
        loss = adl.loss()
    expected = from_whole_maps(textbook, model, batch(name), threshold=1.0)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert loss.item() > 0.01
    ours = gradients(loss, model)
    assert any(gradient.abs().max() > 1e-4 for gradient in ours.values())
    theirs = gradients(expected, model)
    assert {name for name, gradient in ours.items() if gradient.abs().max() > 0} <= theirs.keys()
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())
    assert all(
        torch.allclose(ours[name], gradient, rtol=1e-3, atol=2e-5 * scale) for name, gradient in theirs.items() if name in ours
    )


def test_equals_the_loss_on_collected_maps_and_the_metric() -> None:
    model, images = build("vit_tiny_patch16_224"), batch("vit_tiny_patch16_224")
    with torch.no_grad(), capture(model) as captured:
        model(images)
    expected = AttentionDiversificationLoss(3.0)([attention.weights for attention in captured.maps], prefix_tokens=1)
    metric = [METRICS["diversification"](attention.weights, prefix_tokens=1).mean() for attention in captured.maps]
    with diversify(model, threshold=3.0) as adl:
        model(images)
        assert adl.loss().item() == pytest.approx(expected.item(), abs=1e-6)
    with diversify(model) as adl:
        model(images)
        assert adl.loss().item() == pytest.approx(torch.stack(metric).mean().item(), abs=1e-5)


@pytest.mark.parametrize("layers", [[0], [-1], [0, 2], [1, -2]])
def test_chooses_layers(layers: list[int], textbook: Textbook) -> None:
    model, images = build("vit_tiny_patch16_224"), batch("vit_tiny_patch16_224")
    with diversify(model, layers=layers) as adl:
        model(images)
        assert adl.loss().item() == pytest.approx(
            from_whole_maps(textbook, model, images, sorted({layer % 3 for layer in layers})).item(), abs=1e-5
        )


def test_a_block_around_many_steps_counts_each_forward_once() -> None:
    model, images = build("vit_tiny_patch16_224"), batch("vit_tiny_patch16_224")
    with diversify(model) as adl:
        model(images[:1])
        first = adl.loss()
        model(images[1:2])
        second = adl.loss()
        model(images[:1])
        model(images[1:2])
        both = adl.loss()
    assert both.item() == pytest.approx((first.item() + second.item()) / 2, rel=1e-4)
    assert first.item() != pytest.approx(second.item(), rel=1e-4)


def test_adds_to_the_task_loss_in_training() -> None:
    model, images = build("vit_tiny_patch16_224").train(), batch("vit_tiny_patch16_224")
    labels = torch.tensor([0, 1, 2])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
    values = []
    for _ in range(4):
        optimiser.zero_grad()
        with diversify(model) as adl:
            task = nn.functional.cross_entropy(model(images), labels)
            values.append(adl.loss())
            loss = task + 5 * values[-1]
        loss.backward()
        optimiser.step()
    assert values[-1].item() < values[0].item()


def test_activation_checkpoints_change_nothing() -> None:
    name = "vit_tiny_patch16_224"
    results = []
    for checkpointing in (False, True):
        model = add_tap(build(name)).train()
        model.set_grad_checkpointing(checkpointing)
        with diversify(model) as adl:
            loss = model(batch(name)).square().mean() + adl.loss()
        results.append(gradients(loss, model))
    plain, checkpointed = results
    assert plain.keys() == checkpointed.keys()
    assert all(torch.allclose(plain[key], checkpointed[key], rtol=1e-4, atol=1e-6) for key in plain)


def test_autocast_and_no_grad() -> None:
    name = "vit_tiny_patch16_224"
    model = build(name)
    with torch.no_grad(), diversify(model) as adl:
        model(batch(name))
        exact = adl.loss()
    assert not exact.requires_grad
    with torch.autocast("cpu", torch.bfloat16), diversify(model) as adl:
        model(batch(name))
        loss = adl.loss()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.1)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(loss, model).values())


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Called(nn.Module):
    """Runs a module with parameters that it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return torch.func.functional_call(self.model, dict(self.model.named_parameters()), (images,))


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "data parallel": nn.parallel.DistributedDataParallel,
    "data parallel, compiled inside": lambda model: nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager")),
    "functional": Called,
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_wrapped_model_has_the_same_gradients(wrapped: str) -> None:
    name = "vit_tiny_patch16_224"
    results = []
    for wrap in (lambda model: model, WRAPPED[wrapped]):
        model = build(name)
        running = wrap(model)
        with diversify(running) as adl:
            loss = running(batch(name)).square().mean() + adl.loss()
        results.append((loss.item(), gradients(loss, model)))
    (plain, expected), (found, ours) = results
    assert found == pytest.approx(plain, rel=1e-5)
    assert ours.keys() == expected.keys()
    assert all(torch.allclose(ours[key], expected[key], rtol=1e-4, atol=1e-6) for key in expected)


def test_keeps_no_map_for_the_backward_pass() -> None:
    name = "vit_tiny_patch16_224"
    model, kept = build(name), weakref.WeakSet()

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            kept.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor), diversify(model) as adl:
        model(batch(name))
        loss = adl.loss()
    shapes = {tuple(saved.tensor.shape) for saved in kept}
    assert loss.requires_grad
    assert (3, 3, 37, 64) in shapes  # queries and keys
    assert not [shape for shape in shapes if len(shape) > 3 and shape[-1] == 37]


def test_torchs_multihead_attention(textbook: Textbook) -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=3)
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.self_attention.in_proj_weight.mul_(6)
    images = torch.randn(2, 3, 16, 16)
    with diversify(model) as adl:
        model(images)
        loss = adl.loss()
    expected = from_whole_maps(textbook, model, images)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert loss.item() > 0.01
    ours, theirs = gradients(loss, model), gradients(expected, model)
    name = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"
    assert ours[name].abs().max() > 1e-4
    assert torch.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-6)


def test_class_and_channel_attention_are_left_out(textbook: Textbook) -> None:
    model = build("cait_xxs24_224")
    with diversify(model) as adl, capture(model) as captured:
        model(batch("cait_xxs24_224"))
        value = adl.loss().item()
    assert {attention.kind for attention in captured.maps} == {"global", "class"}
    assert value == pytest.approx(from_whole_maps(textbook, model, batch("cait_xxs24_224")).item(), abs=1e-5)
    channels = timm.create_model("xcit_nano_12_p16_224", depth=1, img_size=64)
    with diversify(channels) as adl:
        channels(torch.randn(2, 3, 64, 64))
        with pytest.raises(OverfocusError, match="expected attention between tokens to diversify, got none"):
            adl.loss()


def test_refuses_to_answer_before_a_forward_and_for_missing_layers() -> None:
    model = build("vit_tiny_patch16_224")
    with diversify(model, layers=[3]) as adl:
        with pytest.raises(OverfocusError, match=r"got none; run the model inside the block, before adl.loss"):
            adl.loss()
        model(batch("vit_tiny_patch16_224"))
        with pytest.raises(ValueError, match="expected layers from 0 to 2, got 3"):
            adl.loss()


class Checkpointed(nn.Module):
    """Blocks that run again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.model = build("vit_tiny_patch16_224").train()
        self.reentrant = reentrant

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.model._pos_embed(self.model.patch_embed(images)).requires_grad_()
        for block in self.model.blocks:
            tokens = checkpoint(block, tokens, use_reentrant=self.reentrant)
        return self.model.forward_head(self.model.norm(tokens))


def test_checkpoints_that_hide_gradients_are_refused() -> None:
    images = batch("vit_tiny_patch16_224")
    model = Checkpointed(reentrant=True)
    with diversify(model) as adl:
        model(images)
        with pytest.raises(OverfocusError, match=r"^model\.blocks\.0\.attn: .*use_reentrant=False"):
            adl.loss()
        with torch.no_grad():  # a figure to look at needs no gradient
            model(images)
            assert adl.loss().item() >= 0
    model = Checkpointed(reentrant=False)
    with diversify(model) as adl:
        model(images)
        loss = adl.loss()
    assert loss.item() > 0
    assert gradients(loss, model)["model.blocks.0.attn.qkv.weight"].abs().max() > 0


def test_a_value_without_gradient_is_asked_for_without_gradient() -> None:
    """A forward under no_grad, or a checkpoint around the whole model, gives no loss to train with; the next forward does."""
    model, images = build("vit_tiny_patch16_224").train(), batch("vit_tiny_patch16_224")
    runs: list[Callable[[], Any]] = [
        torch.no_grad()(lambda: model(images)),
        torch.inference_mode()(lambda: model(images)),
        lambda: checkpoint(model, images.clone().requires_grad_(), use_reentrant=True),
    ]
    with diversify(model) as adl:
        for run in runs:
            run()
            with pytest.raises(OverfocusError, match="inside of it where only its value is wanted"):
                adl.loss()
        model(images)
        assert gradients(adl.loss(), model)["blocks.0.attn.qkv.weight"].abs().max() > 0


def test_checkpoints_around_frozen_attention_hide_the_gradients_of_what_is_before() -> None:
    model = Checkpointed(reentrant=True)
    model.model.blocks.requires_grad_(False)
    images = batch("vit_tiny_patch16_224")
    with diversify(model) as adl:
        model(images)
        with pytest.raises(OverfocusError, match=r"^model\.blocks\.0\.attn: "):
            adl.loss()
    model.reentrant = False
    with diversify(model) as adl:
        model(images)
        assert gradients(adl.loss(), model)["model.patch_embed.proj.weight"].abs().max() > 0


class Biased(nn.Module):
    """Attention whose bias is a parameter, given as it is."""

    def __init__(self, reentrant: bool, flexible: bool = False) -> None:
        super().__init__()
        self.patches, self.qkv = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 48)
        self.bias = nn.Parameter(torch.randn(1, 1, 16, 16))
        self.reentrant, self.flexible = reentrant, flexible

    def attend(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if self.flexible:
            return flex_attention(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT
        return checkpoint(self.attend, tokens, use_reentrant=self.reentrant)


def test_a_bias_with_gradient_hides_no_missing_gradient_of_queries() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    for reentrant in (True, False):
        model = Biased(reentrant)
        with diversify(model, threshold=1.0) as adl:  # a mean over random rows is nowhere twice the uniform one
            model(images)
            if reentrant:
                with pytest.raises(OverfocusError, match="use_reentrant=False"):
                    adl.loss()
            else:
                found = gradients(adl.loss(), model)
                assert all(found[name].abs().max() > 0 for name in ("bias", "qkv.weight", "patches.weight"))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention(textbook: Textbook) -> None:
    """Only its value: on a processor it has no backward pass."""
    torch.manual_seed(0)
    model, images = Biased(reentrant=False, flexible=True), torch.randn(2, 3, 32, 32)
    nn.init.normal_(model.qkv.weight)
    with diversify(model) as adl:
        model(images)
        loss = adl.loss()
    q, k, _ = model.qkv(model.patches(images).flatten(2).mT).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(loss, textbook((q @ k.mT * 8**-0.5).softmax(-1)), atol=1e-5, rtol=0)
