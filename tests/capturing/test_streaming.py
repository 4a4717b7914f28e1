"""Streaming with `reduce`: values are kept, maps are not."""

import gc
import weakref

import pytest
import torch

import overfocus


def test_values_come_in_call_order_and_no_map_is_kept(make_vit, family):
    model, images = make_vit(depth=3), family.images(32)
    with torch.inference_mode():
        with overfocus.capture(model) as kept:
            model(images)
        with overfocus.capture(model, reduce=lambda attention: (attention.module, attention.weights.sum())) as captured:
            model(images)
    assert captured.maps == ()
    assert [module for module, _ in captured.reduced] == [f"blocks.{number}.attn" for number in range(3)]
    for (_, total), attention in zip(captured.reduced, kept.maps, strict=True):
        assert torch.equal(total, attention.weights.sum())
    assert [site.module for site in captured.coverage] == [site.module for site in kept.coverage]


@pytest.mark.parametrize("name", ["fused", "unfused"])
def test_no_map_outlives_its_layer(make_vit, family, name):
    model, alive, most = make_vit(depth=4), [], []
    for block in model.blocks:
        block.attn.fused_attn = name == "fused"

    def reduce(attention):
        most.append(sum(reference() is not None for reference in alive))
        alive.extend([weakref.ref(attention), weakref.ref(attention.weights), weakref.ref(attention.source)])

    gc.disable()  # what goes must go because nothing holds it
    try:
        with torch.inference_mode(), overfocus.capture(model, reduce=reduce) as captured:
            model(family.images(32))
            assert [reference() for reference in alive] == [None] * 12
    finally:
        gc.enable()
    assert most == [0, 0, 0, 0]
    assert captured.reduced == (None,) * 4


def test_nothing_of_a_forward_stays_in_memory_after_the_block(make_vit, family):
    model, images, tensors = make_vit(), family.images(32), []
    model.blocks[0].register_forward_hook(lambda _, args, output: tensors.extend(map(weakref.ref, (*args, output))))
    with torch.inference_mode(), overfocus.capture(model, reduce=lambda attention: attention.module):
        model(images)
    gc.collect()
    assert [tensor() for tensor in tensors] == [None, None]


def test_clear_begins_anew_and_keeps_the_coverage(make_vit, family):
    model = make_vit()
    with torch.inference_mode(), overfocus.capture(model) as captured:
        model(family.images(32))
        captured.clear()
        assert captured.maps == ()
        assert len(captured.coverage) == 2
        model(family.images(32))
    assert len(captured.maps) == 2


def test_an_error_in_reduce_reaches_the_caller(make_vit, family):
    def reduce(_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), overfocus.capture(make_vit(), reduce=reduce) as captured:
        captured.tracer.stack.model(family.images(32))


def test_weights_are_computed_once_and_in_blocks_the_same(make_vit, family):
    with torch.inference_mode(), overfocus.capture(make_vit()) as captured:
        captured.tracer.stack.model(family.images(32))
    attention = captured.maps[0]
    assert attention.weights is attention.weights
    for size in (1, 5, 17, 100):
        blocks = list(attention.chunks(size))
        assert [block.shape[2] for block in blocks] == [min(size, 17 - start) for start in range(0, 17, size)]
        torch.testing.assert_close(torch.cat(blocks, dim=2), attention.weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(attention.rows(3, 9, slice(1, 2)), attention.weights[1:2, :, 3:9], rtol=0, atol=1e-6)
