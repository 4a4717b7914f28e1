"""`ablate` from images to a folder: what its rows say, that nothing depends on batches, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import overfocus
from overfocus import Ablation, RunError
from overfocus.checkpoints.loaded import LoadedModel
from overfocus.preprocessing import Preprocess
from overfocus.probes.ablation import choose_counts, find_key_sites, hide_keys, ranks
from overfocus.run import read_run
from overfocus.sweep.sweep import Subject


@pytest.fixture
def loaded(make_model):
    """The tiny ViT in the wrapping that `load_model` gives."""
    return LoadedModel(
        model=make_model("vit"), preprocess=Preprocess((3, 32, 32), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0), name="tiny",
        source="made for tests", sha256=None, found_by="test", weights_entry="random", missing_keys=[], unexpected_keys=[],
        notes=[], class_names=None,
    )  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """Five images of noise."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(folder / f"{number}.png")
    return folder


def _ablate(loaded, photos, output, **options):
    chosen = {"corruptions": ["fog"], "fractions": [0.1, 0.25], "workers": 0, "progress": False}
    return overfocus.ablate(loaded, photos, output=output, **chosen | options)


def test_rows_and_what_they_say(loaded, photos, tmp_path):
    found = _ablate(loaded, photos, tmp_path / "out")
    table = found.table
    assert list(table["k"].unique()) == [0, 2, 4]
    assert len(table) == 2 * 4 * 3
    assert set(table.loc[table["choice"] != "mass", "count"]) == {5}
    whole = table[table["k"] == 0]
    assert (whole["agreement"] == 1).all()
    assert whole["output_cosine"].to_numpy() == pytest.approx(1)
    assert whole[whole["corruption"] == "clean"]["clean_agreement"].tolist() == [1, 1, 1, 1]
    table = table[table["count"] > 0]
    for quantity in ("agreement", "output_cosine", "confidence_drop"):
        assert (table[f"{quantity}_low"] <= table[quantity] + 1e-9).all()
        assert (table[quantity] <= table[f"{quantity}_high"] + 1e-9).all()


@torch.no_grad()
def test_numbers_are_those_of_masked_forwards(loaded, photos, tmp_path):
    table = _ablate(loaded, photos, tmp_path / "out", corruptions=[]).table
    inputs = torch.stack([loaded.preprocess(Image.open(photos / f"{number}.png")) for number in range(5)])
    whole, sites = find_key_sites(loaded.model, inputs)
    for choice, descending in (("top", True), ("bottom", False)):
        with hide_keys(loaded.model, sites, [ranks(site.received, descending=descending) < 4 for site in sites]):
            without = loaded.model(inputs)
        row = table[(table["choice"] == choice) & (table["k"] == 4)].iloc[0]
        assert row["agreement"] == pytest.approx(float((whole.argmax(1) == without.argmax(1)).float().mean()))
        assert row["output_cosine"] == pytest.approx(float(torch.cosine_similarity(whole, without).mean()), abs=1e-5)


def test_batches_change_nothing_but_rounding(loaded, photos, tmp_path):
    large, small = (_ablate(loaded, photos, tmp_path / str(size), batch_size=size).table for size in (64, 1))
    pd.testing.assert_frame_equal(large, small, check_exact=False, atol=1e-5)


def test_is_read_back(loaded, photos, tmp_path):
    found = _ablate(loaded, photos, tmp_path / "out")
    again = Ablation(tmp_path / "out")
    pd.testing.assert_frame_equal(found.table, again.table)
    pd.testing.assert_frame_equal(found.differences, again.differences)
    assert (again.model, again.images, again.description.tokens) == ("tiny", 5, [16, 16])
    assert len(again.sentences) == 2


def test_counts_of_tokens():
    """Half of one token is none: one is taken out; of two tokens one stays; equal counts stand once."""
    assert choose_counts([16, 2], [0.01, 0.05, 0.25, 0.9]) == [(0.01, (1, 1)), (0.25, (4, 1)), (0.9, (14, 1))]


def test_bad_input(loaded, photos, tmp_path):
    with pytest.raises(RunError, match=r"fractions must be above 0 and below 1, got 1\.5"):
        _ablate(loaded, photos, tmp_path / "out", fractions=[1.5])
    _ablate(loaded, photos, tmp_path / "out", corruptions=[])
    with pytest.raises(RunError, match=r"holds another run \(corruptions \[\] there, \['fog'\] asked for\); choose another"):
        _ablate(loaded, photos, tmp_path / "out")
    _ablate(loaded, photos, tmp_path / "out", corruptions=[], overwrite=True)
    with pytest.raises(RunError, match=r"holds other files \(0\.png, 1\.png, 2\.png\)"):
        _ablate(loaded, photos, photos)
    with pytest.raises(RunError, match=r"expected a folder as `overfocus ablate` writes it, but it holds no run\.json"):
        Ablation(photos)
    (tmp_path / "out" / "run.json").write_text("[]")
    with pytest.raises(RunError, match="cannot be read"):
        Ablation(tmp_path / "out")


def test_interrupted_it_goes_on_to_the_same_tables(loaded, photos, tmp_path, monkeypatch):
    whole = _ablate(loaded, photos, tmp_path / "whole", batch_size=2)
    measure, calls = Subject.measure, iter(range(100))

    def stopping(self, samples, packing):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, samples, packing)

    with monkeypatch.context() as patched:
        patched.setattr(Subject, "measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            _ablate(loaded, photos, tmp_path / "out", batch_size=2)
    assert read_run(tmp_path / "out").done == 3
    with pytest.raises(RunError, match="the ablation is not finished"):
        Ablation(tmp_path / "out")
    again = _ablate(loaded, photos, tmp_path / "out", batch_size=2)
    pd.testing.assert_frame_equal(again.table, whole.table, check_exact=True)
    pd.testing.assert_frame_equal(again.differences, whole.differences, check_exact=True)
    pd.testing.assert_frame_equal(_ablate(loaded, photos, tmp_path / "out", batch_size=2).table, whole.table)


def test_unreadable_images_are_left_out_and_named(loaded, photos, tmp_path):
    (photos / "3.png").write_text("no image")
    found = _ablate(loaded, photos, tmp_path / "out", corruptions=[])
    assert found.images == 4
    assert [skipped.name for skipped in found.description.skipped] == ["3.png"]
    with pytest.raises(overfocus.ImageError):
        _ablate(loaded, photos, tmp_path / "strict", corruptions=[], strict=True)
