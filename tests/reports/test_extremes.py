import numpy as np
import pytest

from overfocus_reports.displayed import ImageValues, image_values


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
