"""measure() gives the same in blocks of queries, of images, and in one go."""

from dataclasses import replace

import pytest
import torch

from overfocus.metrics import METRICS, STABILITY, ForwardMeasurement, blocks, measure


@pytest.fixture
def resize(monkeypatch):
    """Change the sizes of blocks on a processor."""

    def change(**sizes):
        monkeypatch.setattr(blocks, "PROCESSOR", replace(blocks.PROCESSOR, **sizes))

    return change


def assert_same(got, want):
    assert list(got) == list(want)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=1e-5, equal_nan=True, msg=name)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 25, 26, 1000])
def test_blocks_of_queries(chunk_size, per_head, draw_weights, make_map):
    weights = draw_weights(4, 3, 26, 26)
    attention = make_map(weights, prefix_tokens=1, grid=(5, 5))
    asked = {"per_head": per_head, "reference": torch.tensor([0, 0, 3, 3]), "profiles": True}
    assert_same(measure(attention, chunk_size=chunk_size, **asked), measure(attention, **asked))


@pytest.mark.parametrize("chunk_size", [1, 10, 1000])
def test_blocks_of_queries_equal_the_pure_functions(chunk_size, draw_weights, make_map):
    clean, corrupted = draw_weights(1, 4, 197, 197), draw_weights(1, 4, 197, 197, seed=3)
    attention = make_map(torch.cat([clean, corrupted]), prefix_tokens=1, grid=(14, 14))
    got = measure(attention, reference=torch.tensor([0, 0]), chunk_size=chunk_size)
    for name, function in METRICS.items():
        grid = {"grid": (14, 14)} if name == "attention_distance" else {}
        torch.testing.assert_close(got[name][:1], function(clean, prefix_tokens=1, **grid), rtol=0, atol=1e-5, msg=name)
    for name, function in STABILITY.items():
        torch.testing.assert_close(got[name][1:], function(clean, corrupted, prefix_tokens=1), rtol=0, atol=1e-5, msg=name)


def test_padded_windows_in_blocks_of_queries(draw_weights, make_map):
    partition = torch.tensor([[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]])
    attention = make_map(draw_weights(12, 2, 4, 4), "window", windows=4, grid=(2, 2), partition=partition, image_grid=(3, 3))
    asked = {"reference": torch.tensor([0, 0, 1]), "profiles": True}
    for chunk_size in (1, 3):
        assert_same(measure(attention, chunk_size=chunk_size, **asked), measure(attention, **asked))


@pytest.mark.parametrize("batch", [1, 5, 16])
def test_blocks_of_images(batch, draw_weights, make_map, resize):
    weights = draw_weights(batch, 2, 17, 17)
    pairs = torch.zeros(batch, dtype=torch.long)
    resize(images=1, summed=2000)
    attention = make_map(weights, prefix_tokens=1, grid=(4, 4))
    got = measure(attention, reference=pairs)
    assert attention.source.asked == batch
    assert_same(got, measure(attention, reference=pairs, chunk_size=17))


def test_each_row_of_a_long_sequence_is_computed_once(draw_weights, make_map, resize):
    weights = draw_weights(2, 2, 64, 64)
    want = measure(make_map(weights, grid=(8, 8)))
    resize(large_image=0, queries=weights.nbytes // 4)
    attention = make_map(weights, grid=(8, 8))
    assert_same(measure(attention), want)
    assert attention.source.asked == 4


@pytest.mark.parametrize("held", [1, 20_000, 2**30])
@pytest.mark.parametrize("per_head", [False, True])
def test_layers_that_wait_for_each_other(held, per_head, draw_weights, make_map, resize):
    """Layers of several sizes and kinds give the same summed together, whenever the waiting ends."""
    partition = torch.arange(16).view(2, 8)
    window = {"kind": "window", "windows": 2, "grid": (2, 4), "partition": partition, "image_grid": (4, 4)}
    maps = [make_map(draw_weights(3, 2, 17, 17, seed=seed), prefix_tokens=1, grid=(4, 4)) for seed in range(3)]
    maps += [make_map(draw_weights(6, 2, 8, 8, seed=seed), **window) for seed in range(2)]
    maps += [make_map(draw_weights(3, 2, 16, 4), "pooled", grid=(4, 4), key_grid=(2, 2)), make_map(draw_weights(3, 2, 17, 17))]

    def values():
        measurement = ForwardMeasurement(per_head=per_head)
        for reference in (None, [0, 0, 1]):
            measurement.begin(reference)
            for attention in maps:
                measurement.add(attention)
            yield from measurement.finish()

    alone = list(values())
    resize(images=2**30, summed=2**30, pairs=2**30, held=held)
    for mine, other in zip(values(), alone, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(mine.values), torch.from_numpy(other.values), rtol=0, atol=1e-6, equal_nan=True
        )
        torch.testing.assert_close(torch.from_numpy(mine.received), torch.from_numpy(other.received), rtol=0, atol=1e-6)


def test_pooled_map_needs_one_pass(draw_weights, make_map, resize):
    resize(large_image=0, queries=1)
    attention = make_map(draw_weights(1, 2, 16, 4), "pooled", grid=(4, 4), key_grid=(2, 2))
    measure(attention)
    assert attention.source.asked == 16


@pytest.mark.slow
def test_memory_of_a_long_sequence_is_bounded(make_map):
    """Peak memory of 4,097 tokens stays far below what one stored map (400 MB for 6 heads) takes."""
    import resource

    class Computed:
        """Weights from queries and keys, as capture has them."""

        def __init__(self):
            generator = torch.Generator().manual_seed(0)
            self.query = torch.randn(1, 6, 4097, 64, generator=generator)
            self.key = torch.randn(1, 6, 4097, 64, generator=generator)
            self.shape = (1, 6, 4097, 4097)
            self.images_first = True
            self.device = self.query.device

        def check_unchanged(self, module):
            """Nothing overwrites them."""

        def rows(self, start, stop, images=None):
            query = self.query[..., start:stop, :] if images is None else self.query[images, :, start:stop]
            return (query @ self.key.transpose(-1, -2) / 8).softmax(-1)

    attention = make_map(torch.zeros(1, 1, 1, 1), prefix_tokens=1, grid=(64, 64))
    attention.source = Computed()
    measure(attention, chunk_size=16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = measure(attention)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 150
    assert 0.9 < values["row_entropy"].item() < 1
