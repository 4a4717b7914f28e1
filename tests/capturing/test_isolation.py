"""Captures beside and inside each other, in other threads, and of forwards that raise: nothing mixes, nothing stays."""

import threading
import warnings

import pytest
import torch
import torch.overrides
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import overfocus


def hooks():
    return (
        bool(torch_module._has_any_global_hook()),
        len(torch.overrides._get_current_function_mode_stack()),
    )


@pytest.fixture(autouse=True)
def nothing_stays():
    before = hooks()
    yield
    assert hooks() == before


def modules(captured):
    return [attention.module for attention in captured.maps]


def test_two_models_at_once(make_vit, family):
    first, second, images = make_vit(depth=2), make_vit(depth=3), family.images(32)
    with torch.no_grad(), overfocus.capture(first) as one, overfocus.capture(second) as two:
        first(images)
        second(images)
        first(images)
    assert modules(one) == ["blocks.0.attn", "blocks.1.attn"] * 2
    assert modules(two) == [f"blocks.{number}.attn" for number in range(3)]
    with torch.no_grad(), overfocus.capture(second) as alone:
        second(images)
    assert torch.equal(two.maps[2].weights, alone.maps[2].weights)


def test_a_model_inside_a_model(make_vit, family):
    inner = make_vit(depth=1)
    outer = nn.Sequential(inner, nn.Linear(5, 5))
    with torch.no_grad(), overfocus.capture(outer) as whole, overfocus.capture(inner) as part:
        outer(family.images(32))
    assert modules(whole) == ["0.blocks.0.attn"]
    assert modules(part) == ["blocks.0.attn"]
    assert torch.equal(whole.maps[0].weights, part.maps[0].weights)
    assert part.maps[0].grid == whole.maps[0].grid == (4, 4)


def test_nested_captures_of_one_model(make_vit, family):
    model, images = make_vit(), family.images(32)
    with torch.no_grad(), overfocus.capture(model) as outer:
        model(images)
        with overfocus.capture(model, reduce=lambda attention: attention.weights.sum()) as inner:
            model(images)
        model(images)
    assert len(outer.maps) == 6
    assert len(inner.reduced) == 2


def test_nested_captures_of_a_fast_path():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    tokens = torch.randn(2, 5, 16)
    with torch.no_grad():
        plain = encoder(tokens)
        with overfocus.capture(encoder) as outer:
            with overfocus.capture(encoder) as inner:
                assert torch.equal(encoder(tokens), plain)
            assert torch.equal(encoder(tokens), plain)
    assert (len(outer.maps), len(inner.maps)) == (4, 2)


def test_other_function_modes_keep_their_place():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval()
    tokens = torch.randn(2, 5, 16)
    with torch.no_grad(), overfocus.capture(encoder) as captured:
        with torch.device("meta"):  # a function mode of torch's own
            encoder(tokens)
            assert torch.empty(1).is_meta
        assert not torch.empty(1).is_meta
        encoder(tokens)
    assert len(captured.maps) == 2
    assert all(attention.rows(0, 5).device.type == "cpu" for attention in captured.maps)


class Failing(nn.Module):
    def forward(self, _):
        raise ValueError("mine")


def test_a_forward_that_raises_leaves_nothing_behind(make_vit, family):
    model, images = make_vit(), family.images(32)
    mlp = model.blocks[1].mlp
    model.blocks[1].mlp = Failing()
    with pytest.raises(ValueError, match="mine"), overfocus.capture(model) as captured:
        model(images)
    assert modules(captured) == ["blocks.0.attn", "blocks.1.attn"]
    model.blocks[1].mlp = mlp
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(images)
    assert len(captured.maps) == 2


def test_a_forward_that_raises_can_be_tried_again_inside_the_block(make_vit, family):
    model, images = make_vit(), family.images(32)
    with torch.no_grad(), overfocus.capture(model) as alone:
        model(images)
    mlp = model.blocks[0].mlp
    with torch.no_grad(), overfocus.capture(model) as captured:
        model.blocks[0].mlp = Failing()
        with pytest.raises(ValueError, match="mine"):
            model(images)
        captured.clear()
        model.blocks[0].mlp = mlp
        model(images)
    assert modules(captured) == modules(alone)
    assert all(torch.equal(a.weights, b.weights) for a, b in zip(captured.maps, alone.maps, strict=True))


def test_an_error_inside_of_a_fast_path_is_the_callers():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    with pytest.raises(AssertionError, match="embedding dimension"), overfocus.capture(encoder):
        encoder(torch.randn(2, 5, 12))
    with torch.no_grad(), overfocus.capture(encoder) as captured:
        with pytest.raises(RuntimeError, match="embed_dim"):
            encoder(torch.randn(2, 5, 12))
        encoder(torch.randn(2, 5, 16))
    assert len(captured.maps) == 2


def test_an_error_in_the_block_is_the_callers(make_vit):
    with pytest.raises(KeyError, match="mine"), overfocus.capture(make_vit()):
        raise KeyError("mine")


def test_other_threads_are_left_alone(make_vit, family):
    model, images, results = make_vit(), family.images(32), []
    with torch.no_grad():
        plain = model(images)

    def run():
        with torch.no_grad():
            results.append(model(images))

    with torch.no_grad(), overfocus.capture(model) as captured:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert captured.maps == ()
        model(images)
    assert torch.equal(results[0], plain)
    assert len(captured.maps) == 2


def test_a_layer_that_leaves_its_fast_path_and_takes_it_again():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval()
    tokens = torch.randn(2, 5, 16)
    with overfocus.capture(encoder) as captured:
        encoder(tokens)
        with torch.no_grad():
            encoder(tokens)
        encoder(tokens)
    assert modules(captured) == ["layers.0.self_attn"] * 3
    torch.testing.assert_close(captured.maps[0].weights, captured.maps[1].weights)


def test_threads_capture_for_themselves(make_vit, family):
    shared, images = make_vit(depth=2), family.images(32)
    found, errors = {}, []

    def run(number):
        model = shared if number % 2 else make_vit(depth=1 + number)
        try:
            for _ in range(10):
                with torch.no_grad(), overfocus.capture(model) as captured:
                    model(images)
                found.setdefault(number, set()).add(tuple(modules(captured)))
        except Exception as error:  # a thread's error is to fail the test, not to be printed
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    depths = {0: 1, 1: 2, 2: 3, 3: 2}
    assert found == {number: {tuple(f"blocks.{block}.attn" for block in range(depth))} for number, depth in depths.items()}


def test_captures_that_overlap_in_threads_leave_compilation_and_warnings_as_they_were(make_vit):
    filters = list(warnings.filters)
    first_began, second_began, first_ended = (threading.Event() for _ in range(3))

    def first():
        with overfocus.capture(make_vit()):
            first_began.set()
            second_began.wait(10)
        first_ended.set()

    def second():
        first_began.wait(10)
        with overfocus.capture(make_vit()):
            second_began.set()
            first_ended.wait(10)

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    compiled = []

    def backend(module, _):
        compiled.append(module)
        return module.forward

    torch.compile(lambda values: values + 1, backend=backend)(torch.ones(2))
    assert compiled
    assert list(warnings.filters) == filters


def test_nothing_of_the_model_is_changed(make_vit, family):
    model = make_vit()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad(), overfocus.capture(model):
        model(family.images(32))
        assert {name: dict(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class _Replacing(nn.Module):
    """Attention that replaces a buffer by a larger one in its first forward, as ConViT's positional indices are."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.register_buffer("table", torch.zeros(1, 1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.table.shape[1] == 1:
            self.table = torch.zeros(1, 16, 16, 3)
        query, key, value = self.qkv(x).chunk(3, -1)
        return (query @ key.mT + self.table.sum(-1)).softmax(-1) @ value


def test_identities_of_buffers_that_a_forward_replaces_are_not_taken_over():
    """A tensor that took over the identity of a freed buffer was held for a parameter, and its map for gating."""
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(*[_Replacing() for _ in range(8)]).eval()
        with torch.no_grad(), overfocus.capture(model) as captured:
            model(torch.randn(2, 16, 32))
        assert len(captured.maps) == 8
