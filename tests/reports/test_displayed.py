"""Pixels, maps and matrices of the displayed images as they travel in the page."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from overfocus.metrics.pooling import block_numbers, pool_matrix
from overfocus_reports.displayed import (
    FLOOR,
    LADDER,
    Codes,
    Detail,
    Displayed,
    ImageValues,
    MatrixShape,
    choose_details,
    image_uri,
    image_values,
    matrices_of,
    number,
    numbers,
    png,
)


def decoded(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize("per_octave", [4, 8, 16, 18])
def test_values_come_back_within_half_a_step(per_octave):
    codes = Codes(per_octave)
    highest = min(8.0, FLOOR + 250 / per_octave)
    multiples = np.exp2(np.random.default_rng(0).uniform(FLOOR, highest, 1000))
    error = np.abs(np.log2(codes.decode(codes.encode(multiples)) / multiples))
    assert error.max() <= 0.5 / per_octave + 1e-3


def test_nothing_and_less_than_the_floor_become_zero():
    codes = Codes(4)
    assert codes.encode(np.array([0.0, 2.0 ** (FLOOR - 1)])).tolist() == [0, 0]
    assert codes.decode(np.array([0], dtype=np.uint8)).tolist() == [0.0]


def test_uniform_attention_is_exact():
    codes = Codes(18)
    assert codes.decode(codes.encode(np.array([1.0])))[0] == 1.0


def test_png_is_greyscale_and_exact():
    values = np.random.default_rng(0).integers(0, 256, (2, 3, 5)).astype(np.uint8)
    found = decoded(png(values))
    assert found.shape == (6, 5)
    np.testing.assert_array_equal(found, values.reshape(6, 5))


def test_small_images_stay_exact_and_large_ones_shrink():
    small = np.random.default_rng(0).integers(0, 256, (28, 28, 3)).astype(np.uint8)
    kind, data = image_uri(small, 224, 85).split(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(decoded(data), small)
    kind, data = image_uri(np.zeros((300, 200, 3), np.uint8), 150, 85).split(",")
    assert kind == "data:image/jpeg;base64"
    assert decoded(data).shape == (150, 100, 3)


def test_numbers_are_short_and_null_where_undefined():
    assert number(0.12345678) == 0.123457
    assert numbers(np.array([[1.0, np.nan], [np.inf, 2.5]])) == [[1.0, None], [None, 2.5]]


def test_values_are_those_of_the_table(run):
    variants = run.variants
    found = image_values(run, variants, run.description.layers)
    table = run.table.set_index(["corruption", "severity", "layer", "image"])["js_divergence"]
    for place, variant in enumerate(variants):
        for layer in range(4):
            for image in range(6):
                key = (variant.corruption, variant.severity, layer, image)
                assert found.values["js_divergence"][place, layer, image] == pytest.approx(table[key], nan_ok=True)


def test_worst_is_the_largest_change_whichever_way_the_metric_runs():
    values = np.array([[[0.1, 0.9, 0.5], [0.3, 0.2, np.nan]]])
    found = ImageValues([7, 8, 9], {"received_shift": values, "top_overlap": values})
    image, value = found.worst("received_shift")
    assert image.tolist() == [[8, 8, 7]]
    np.testing.assert_allclose(value, [[0.55, 0.9, 0.3]])
    image, value = found.worst("top_overlap")
    assert image.tolist() == [[7, 7, 8]]
    image, _ = found.worst("received_shift", among=[9])
    assert image.tolist() == [[9, 9, -1]]


def test_galleries_hold_both_ends_and_nothing_twice():
    moved = np.array([[[0.1, 0.9, 0.5, 0.3, np.nan]]])
    found = ImageValues([10, 11, 12, 13, 14], {"received_shift": moved})
    assert found.gallery(0, 2) == ([11, 12], [10, 13])
    assert found.gallery(0, 1) == ([11], [10])
    assert found.gallery(0, 9) == ([11, 12], [10, 13])
    assert found.moved(0, 13) == pytest.approx(0.3)


def test_heads_are_averaged(make_run):
    run = make_run(heads=2, images=2)
    run.table["received_shift"] = np.where(run.table["head"] == 0, 0.2, 0.6)
    found = image_values(run, run.variants, run.description.layers)
    np.testing.assert_allclose(found.values["received_shift"], 0.4)


def test_uniform_attention_is_one_at_every_detail():
    shape = MatrixShape(10, 10, (3, 3), (3, 3))
    for detail in LADDER:
        if detail is not None:
            codes = shape.encode(np.full((1, 10, 10), 0.1, dtype=np.float16), detail)
            np.testing.assert_allclose(Codes(detail.per_octave).decode(codes), 1.0, rtol=0.01)


def test_details_fit_the_room_and_use_it():
    rng = np.random.default_rng(0)
    shape = MatrixShape(65, 65, (8, 8), (8, 8))
    samples = [[(shape, rng.dirichlet(np.ones(65), (1, 65)).astype(np.float32))] for _ in range(3)]
    kept = [choose_details(samples, 10, room) for room in (10**9, 60_000, 20_000, 0)]
    assert kept[0] == [LADDER[0]] * 3
    assert kept[-1] == [None] * 3
    ranks = [[LADDER.index(detail) for detail in details] for details in kept]
    assert ranks == sorted(ranks)
    assert len({tuple(rank) for rank in ranks}) == 4


@pytest.mark.parametrize("detail", [detail for detail in LADDER if detail is not None])
def test_pooled_weights_are_pooled_further(detail):
    """What a run keeps of a long sequence gives the same as the whole matrix, whatever the detail."""
    rng = np.random.default_rng(0)
    shape = MatrixShape(1 + 35 * 17, 1 + 35 * 17, (35, 17), (35, 17))
    assert shape.least == (2, 2)
    whole = rng.dirichlet(np.full(596, 0.05), (1, 596)).astype(np.float32)
    blocks = block_numbers(596, (35, 17), 2)
    codes = shape.encode(pool_matrix(whole, blocks, blocks), detail)
    assert max(codes.shape[1:]) <= 256
    assert np.abs(codes.astype(int) - shape.encode(whole, detail)).max() <= 1


def test_a_layer_without_matrix_stays_without():
    shape = MatrixShape(4, 4, (2, 2), (2, 2))
    assert choose_details([[], [(shape, np.full((1, 4, 4), 0.25))]], 1, 10**6) == [None, LADDER[0]]


def test_matrices_of_a_run_are_its_attention(run):
    displayed = Displayed(run, run.description.layers, run.variants)
    found = matrices_of(displayed, 10**9)
    assert found.described[0] is not None
    assert found.described[0]["queries"] == found.described[0]["keys"] == 37
    assert found.described[0]["queryGrid"] == (6, 6)
    kept = run.maps(1)
    for variant, layer in ((0, 0), (4, 3)):
        text = found.encoded[1][variant][layer]
        assert text is not None
        codes = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        weights = kept.attention[layer][variant][0].astype(float)
        shown = Codes(LADDER[0].per_octave).decode(codes) / 37
        np.testing.assert_allclose(shown[weights * 37 > 0.02], weights[weights * 37 > 0.02], rtol=0.03)


def test_little_room_keeps_the_middle_severity_only(run):
    displayed = Displayed(run, run.description.layers, run.variants)
    full = matrices_of(displayed, 10**9)
    assert list(full.encoded[0]) == [0, 1, 2, 3, 4]
    size = sum(len(text) for image in full.encoded.values() for row in image.values() for text in row if text)
    scarce = matrices_of(displayed, size // 12)
    assert list(scarce.encoded[0]) == [0, 2, 4]
    assert [displayed.variants[number].severity for number in scarce.encoded[0]] == [0, 3, 3]


def test_windows_lie_one_below_the_other():
    shape = MatrixShape(4, 4, (2, 2), (2, 2))
    codes = shape.encode(np.full((3, 4, 4), 0.25), Detail(1, 1, 4))
    assert codes.shape == (3, 4, 4)
