"""Runs of models with windows say where the windows lie."""

import numpy as np
import timm
import torch

import overfocus


def _swin():
    torch.manual_seed(0)
    return timm.models.SwinTransformer(
        img_size=32, patch_size=4, embed_dim=16, depths=(2, 1), num_heads=(2, 2), window_size=4, num_classes=5
    )


def test_partitions_cover_the_patch_grid_and_fit_the_maps(make_loaded, photos, tmp_path):
    run = overfocus.analyze(make_loaded(_swin()), photos, ["fog"], [1], tmp_path / "run", batch_size=2, limit=1, progress=False)
    assert [layer.branch for layer in run.layers][:2] == [None, "shifted"]
    regular, shifted = run.partitions[0], run.partitions[1]
    assert regular.shape == shifted.shape == (4, 16)
    assert sorted(regular.ravel()) == sorted(shifted.ravel()) == list(range(64))
    assert regular[0].tolist() == [8 * row + column for row in range(4) for column in range(4)]
    assert not np.array_equal(regular, shifted)
    maps = run.maps(run.displayed[0])
    for layer, partition in run.partitions.items():
        weights = maps.attention[layer][0].astype("float32")
        received = np.zeros(partition.size)
        np.add.at(received, partition.ravel(), weights.sum(axis=1).ravel() / partition.size)
        np.testing.assert_allclose(received, run.received(run.displayed[0])[layer].ravel(), rtol=2e-3)


def test_layers_without_windows_have_no_partition(loaded, photos, tmp_path):
    run = overfocus.analyze(loaded, photos, ["fog"], [1], tmp_path / "run", batch_size=2, limit=1, progress=False)
    assert run.partitions == {}


def test_only_the_layers_asked_for_have_a_partition(make_loaded, photos, tmp_path):
    run = overfocus.analyze(
        make_loaded(_swin()), photos, ["fog"], [1], tmp_path / "run", batch_size=2, limit=1, layers=[1], progress=False
    )
    assert list(run.partitions) == [1]
