"""torch's own attention modules: their fast paths must neither hide the attention nor change because it is watched."""

import itertools

import pytest
import torch
from torch import nn

import overfocus


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def sharp(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, 0, 1.5 * parameter.shape[-1] ** -0.5)
            elif "norm" not in name:
                nn.init.normal_(parameter, 0, 0.2)
    return module.eval()


def attend(module, *arguments, gradients=False, **keywords):
    """Capture one call, hold its result to the plain one, and return (result, weights)."""
    with torch.set_grad_enabled(gradients):
        plain = module(*arguments, **keywords)
        with overfocus.capture(module) as captured:
            result = module(*arguments, **keywords)
    first = result[0] if isinstance(result, tuple) else result
    expected = plain[0] if isinstance(plain, tuple) else plain
    if first.is_nested:
        first, expected = first.to_padded_tensor(0.0), expected.to_padded_tensor(0.0)
    assert torch.equal(first, expected)
    return result, [attention.weights for attention in captured.maps]


@pytest.mark.parametrize(
    ("batch_first", "need_weights", "average", "gradients"),
    list(itertools.product([True, False], repeat=4)),
)
def test_multihead_attention(batch_first, need_weights, average, gradients):
    module = sharp(nn.MultiheadAttention(32, 4, batch_first=batch_first))
    query, memory = draw(2, 10, 32), draw(2, 7, 32)
    inputs = (query, memory, memory) if batch_first else tuple(x.transpose(0, 1) for x in (query, memory, memory))
    call = {"need_weights": need_weights, "average_attn_weights": average, "gradients": gradients}
    (_, returned), (weights,) = attend(module, *inputs, **call)
    # the module says itself what its weights are when it is asked for them, and gives the caller what was asked for
    own = module(*inputs, average_attn_weights=False)[1]
    torch.testing.assert_close(weights, own, rtol=0, atol=1e-6)
    assert weights.shape == (2, 4, 10, 7)
    if not need_weights:
        assert returned is None
    else:
        assert returned.shape == ((2, 10, 7) if average else (2, 4, 10, 7))


def test_self_attention_takes_the_fast_path():
    module = sharp(nn.MultiheadAttention(32, 4, batch_first=True))
    x = draw(2, 10, 32)
    _, (weights,) = attend(module, x, x, x, need_weights=False)
    torch.testing.assert_close(weights, module(x, x, x, average_attn_weights=False)[1], rtol=0, atol=1e-6)
    assert overfocus.verify(module, (x, x, x)).passed


def test_sequence_without_a_batch():
    module = sharp(nn.MultiheadAttention(32, 4))
    x = draw(10, 32)
    _, (weights,) = attend(module, x, x, x)
    assert weights.shape == (1, 4, 10, 10)
    torch.testing.assert_close(weights[0], module(x, x, x, average_attn_weights=False)[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("bias", "zero"), [(True, False), (False, True), (True, True)])
def test_added_keys_are_keys(bias, zero):
    module = sharp(nn.MultiheadAttention(32, 4, add_bias_kv=bias, add_zero_attn=zero, kdim=8, vdim=16, batch_first=True))
    inputs = (draw(2, 10, 32), draw(2, 7, 8), draw(2, 7, 16))
    _, (weights,) = attend(module, *inputs)
    assert weights.shape == (2, 4, 10, 7 + bias + zero)
    own = module(*inputs, average_attn_weights=False)[1]
    torch.testing.assert_close(weights, own.roll(bias + zero, -1), rtol=0, atol=1e-6)  # they belong to no place: prefix
    assert overfocus.verify(module, inputs).passed


@pytest.mark.parametrize("mask", ["bool", "float", "per head"])
@pytest.mark.parametrize("added", [False, True])
def test_masks_and_padding(mask, added):
    module = sharp(nn.MultiheadAttention(32, 4, batch_first=True, add_bias_kv=added))
    x = draw(2, 6, 32)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    masks = {
        "bool": hidden,
        "float": torch.zeros(6, 6).masked_fill(hidden, -torch.inf),
        "per head": hidden.expand(8, 6, 6) & (torch.arange(8)[:, None, None] % 2 == 0),
    }
    if mask == "float":
        padding = torch.zeros(2, 6).masked_fill(padding, -torch.inf)
    call = {"attn_mask": masks[mask], "key_padding_mask": padding}
    _, (weights,) = attend(module, x, x, x, **call)
    own = module(x, x, x, average_attn_weights=False, **call)[1]
    torch.testing.assert_close(weights, own.roll(int(added), -1), rtol=0, atol=1e-6)
    assert (weights[1, :, :, added + 4 : added + 6] == 0).all()
    assert overfocus.verify(module, {"query": x, "key": x, "value": x} | call).passed


class Encoder(nn.Module):
    """An encoder and, beside it, what each of its layers attends, by the textbook."""

    def __init__(self, **settings):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, **settings)
        nested = layer.self_attn.batch_first and not layer.norm_first  # what torch can pack, or warns that it can not
        self.encoder = sharp(nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested))
        for number, layer in enumerate(self.encoder.layers):
            torch.manual_seed(number)
            with torch.no_grad():
                layer.self_attn.in_proj_weight.normal_(0, 0.25)

    def forward(self, *arguments, **keywords):
        return self.encoder(*arguments, **keywords)

    def textbook(self, x, mask=None, padding=None):
        """(batch, tokens, channels) → the weights of each layer, layer by layer without any fast path."""
        found = []
        for layer in self.encoder.layers:
            normed = layer.norm1(x) if layer.norm_first else x
            batch, tokens, channels = x.shape
            projected = normed @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias
            query, key, value = projected.unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            scores = query @ key.mT / (channels // 4) ** 0.5
            if mask is not None:
                scores = scores + mask
            if padding is not None:
                scores = scores.masked_fill(padding[:, None, None], -torch.inf)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            found.append(weights)
            x = x + layer.self_attn.out_proj((weights @ value).transpose(1, 2).reshape(batch, tokens, channels))
            if not layer.norm_first:
                x = layer.norm1(x)
            after = layer.linear2(layer.activation(layer.linear1(layer.norm2(x) if layer.norm_first else x)))
            x = x + after if layer.norm_first else layer.norm2(x + after)
        return found


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_transformer_encoder(gradients, norm_first, batch_first, causal):
    model = Encoder(norm_first=norm_first, batch_first=batch_first, activation="gelu")
    x = draw(2, 9, 32)
    mask = nn.Transformer.generate_square_subsequent_mask(9) if causal else None
    call = {"mask": mask, "is_causal": causal}
    _, maps = attend(model, x if batch_first else x.transpose(0, 1), gradients=gradients, **call)
    for weights, expected in zip(maps, model.textbook(x, mask), strict=True):
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    verification = overfocus.verify(model, {"src": x if batch_first else x.transpose(0, 1)} | call)
    assert verification.passed
    assert [site.module for site in verification.sites] == [f"encoder.layers.{number}.self_attn" for number in range(2)]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("nested", [True, False])
@torch.no_grad()
def test_padding_of_an_encoder(nested):
    model = Encoder(batch_first=True)
    model.encoder.enable_nested_tensor = model.encoder.use_nested_tensor = nested
    x = draw(2, 9, 32)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, 8:] = padding[1, 5:] = True
    _, maps = attend(model, x, src_key_padding_mask=padding)
    for weights, expected in zip(maps, model.textbook(x, padding=padding), strict=True):
        tokens = weights.shape[-1]  # nested tensors are as long as the longest sequence
        assert tokens == (8 if nested else 9)
        assert torch.equal(weights[1, :, :, 5:], torch.zeros_like(weights[1, :, :, 5:]))
        for image, length in enumerate((8, 5)):
            torch.testing.assert_close(
                weights[image, :, :length, :length], expected[image, :, :length, :length], rtol=0, atol=1e-5
            )
    assert overfocus.verify(model, {"src": x, "src_key_padding_mask": padding}).passed


@torch.no_grad()
def test_decoder_attends_its_memory():
    decoder = sharp(nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 64, batch_first=True), 2))
    target, memory = draw(2, 5, 32), draw(2, 8, 32)
    plain = decoder(target, memory)
    with overfocus.capture(decoder) as captured:
        assert torch.equal(decoder(target, memory), plain)
    assert [(attention.module, attention.shape[2:]) for attention in captured.maps] == [
        (f"layers.{number}.{name}", shape)
        for number in range(2)
        for name, shape in (("self_attn", (5, 5)), ("multihead_attn", (5, 8)))
    ]
    assert overfocus.verify(decoder, (target, memory)).passed


def test_training_leaves_the_fast_path_and_stays_right():
    model = Encoder(batch_first=True).train()
    x = draw(2, 9, 32)
    plain = model(x)
    with overfocus.capture(model) as captured:
        result = model(x)
    assert torch.equal(result, plain)
    for attention, expected in zip(captured.maps, model.textbook(x), strict=True):
        torch.testing.assert_close(attention.weights, expected.detach(), rtol=0, atol=1e-5)
