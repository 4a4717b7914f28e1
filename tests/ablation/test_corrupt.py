"""Patches corrupted in the image, and the control of equal mass: which patches, what the model sees, what is said of it."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import overfocus
from overfocus import CaptureError, RunError, corrupt
from overfocus.capturing import capture
from overfocus.checkpoints.loaded import LoadedModel
from overfocus.preprocessing import Preprocess
from overfocus.probes.ablation import Job, PatchChoice, find_key_sites, image_profile
from overfocus.sweep.sweep import Subject

SHARES = torch.arange(1.0, 17) / 136
"""What each of the 16 patches receives in the toy: the last one most."""


class _Toy(nn.Module):
    """Attention that no image changes, over 4×4 patches of 8×8 pixels; tells whether some of them are bright together."""

    def __init__(self, patches, placed=True):
        super().__init__()
        self.embed = nn.Conv2d(3, 1, 8, 8)
        nn.init.constant_(self.embed.weight, 1 / 192)
        nn.init.zeros_(self.embed.bias)
        self.patches, self.placed = patches, placed
        self.num_classes = 2

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        if not self.placed:
            tokens = tokens.sort(1).values
        scores = tokens @ tokens.transpose(1, 2) * 0 + SHARES.to(tokens).log()
        mixed = scores.softmax(-1) @ tokens
        bright = tokens[:, self.patches, 0].mean(1) + 0 * mixed.mean((1, 2))
        return torch.stack([bright, torch.full_like(bright, 0.15)], 1)


def _loaded(model):
    return LoadedModel(
        model=model.eval(), preprocess=Preprocess((3, 32, 32), (0.0,) * 3, (1.0,) * 3, crop_pct=1.0), name="toy",
        source="made for tests", sha256=None, found_by="test", weights_entry="made", missing_keys=[], unexpected_keys=[],
        notes=[], class_names=None,
    )  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """24 dark images, which the corruption makes bright."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(24):
        Image.fromarray(np.random.default_rng(number).integers(0, 30, (32, 32, 3)).astype(np.uint8)).save(
            folder / f"{number:02}.png"
        )
    return folder


def _ablate(model, photos, output, **options):
    chosen = {"corruptions": ["brightness"], "severities": [5], "fractions": [0.125], "workers": 0, "progress": False}
    return overfocus.ablate(_loaded(model), photos, output=output, **{"how": "corrupt"} | chosen | options)


@torch.no_grad()
def test_only_the_chosen_patches_are_corrupted(photos, tmp_path):
    """By hand: the last two patches of the grid receive most, the first two least."""
    found = _ablate(_Toy([14, 15, 0]), photos, tmp_path / "out", limit=3)
    assert found.description.tokens == [16]
    assert set(found.table["corruption"]) == {"brightness"}
    table = found.table.set_index(["choice", "k"])
    model = _Toy([14, 15, 0])
    for choice, places in (("top", (slice(24, 32), slice(16, 32))), ("bottom", (slice(0, 8), slice(0, 16)))):
        drops, same = [], []
        for number in (0, 8, 16):
            clean = np.asarray(Image.open(photos / f"{number:02}.png"))
            mixed = clean.copy()
            mixed[places] = corrupt(clean, "brightness", 5)[places]
            before, after = (
                model(torch.from_numpy(pixels / 255).float().permute(2, 0, 1)[None])[0].softmax(0) for pixels in (clean, mixed)
            )
            drops.append(float(before.max() - after[before.argmax()]))
            same.append(float(before.argmax() == after.argmax()))
        assert table.loc[(choice, 2), "confidence_drop"] == pytest.approx(np.mean(drops), abs=1e-6)
        assert table.loc[(choice, 2), "agreement"] == np.mean(same)
        assert np.mean(drops) > 1e-3
    assert table.loc[("top", 0), "agreement"] == 1


def test_predictions_that_depend_on_what_attended_patches_show(photos, tmp_path):
    found = _ablate(_Toy([14, 15]), photos, tmp_path / "out", draws=3)
    table = found.table.set_index(["choice", "k"])["agreement"]
    assert (table["top", 2], table["bottom", 2], table["mass", 2]) == (0, 1, 1)
    assert 0.5 < table["random", 2] < 1
    (sentence,) = found.sentences
    assert sentence.startswith("On brightness 5, predictions of toy depend on what the most attended patches show")
    assert "corrupted, the share of images that keep their class is 0.000; it is" in sentence
    (opposite,) = _ablate(_Toy([0, 1]), photos, tmp_path / "least").sentences
    assert "we cannot tell whether predictions of toy depend more" in opposite or "depend less on the most attended" in opposite


def test_interrupted_it_goes_on_to_the_same_tables(photos, tmp_path, monkeypatch):
    whole = _ablate(_Toy([13]), photos, tmp_path / "whole", batch_size=4)
    measure, calls = Subject.measure, iter(range(100))

    def stopping(self, samples, packing):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, samples, packing)

    with monkeypatch.context() as patched:
        patched.setattr(Subject, "measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            _ablate(_Toy([13]), photos, tmp_path / "out", batch_size=4)
    again = _ablate(_Toy([13]), photos, tmp_path / "out", batch_size=4)
    pd.testing.assert_frame_equal(again.table, whole.table, check_exact=True)
    pd.testing.assert_frame_equal(again.differences, whole.differences, check_exact=True)
    with pytest.raises(RunError, match=r"holds another run \(how corrupt there, remove asked for; draws 5 there, 1 asked for\)"):
        _ablate(_Toy([13]), photos, tmp_path / "out", batch_size=4, how="remove")


def test_batches_and_variants_change_nothing_but_rounding(photos, tmp_path):
    options = {"severities": [1, 3, 5], "corruptions": ["brightness", "gaussian_noise"], "limit": 5}
    large, small = (_ablate(_Toy([3, 15]), photos, tmp_path / str(size), batch_size=size, **options) for size in (64, 2))
    pd.testing.assert_frame_equal(large.table, small.table, check_exact=False, atol=1e-5)


def test_what_cannot_be_corrupted_is_refused(photos, tmp_path):
    with pytest.raises(
        CaptureError, match=r"^_Toy: expected attention over patches of a known grid .* how='remove' needs no grid$"
    ):
        _ablate(_Toy([0], placed=False), photos, tmp_path / "out")
    with pytest.raises(RunError, match="corruptions must name at least one for how='corrupt', such as fog, got none"):
        _ablate(_Toy([0]), photos, tmp_path / "out", corruptions=[])
    with pytest.raises(RunError, match="draws must be"):
        _ablate(_Toy([0]), photos, tmp_path / "out", draws=0)
    with pytest.raises(RunError, match="how must be"):
        _ablate(_Toy([0]), photos, tmp_path / "out", how="blur")


def _chosen(received, choice, count, draw=0, seed=0):
    received = torch.tensor(received, dtype=torch.float64)[:, None]
    mask, known = PatchChoice(received, range(len(received)), seed, 0).choose(Job(choice, draw, 0.1, (count,)), count)
    return mask[:, 0], known


def test_equal_mass_by_hand():
    """The first patch receives as much as four of the eight others; more than half of all is out of reach."""
    mask, known = _chosen([[4.0] + [1.0] * 8], "mass", 1)
    assert (int(mask.sum()), bool(mask[0, 0]), known.tolist()) == (4, False, [True])
    mask, known = _chosen([[9.0] + [1.0] * 8, [8.0] + [1.0] * 8, [0.0] * 9], "mass", 1)
    assert mask.sum(1).tolist() == [0, 8, 0]
    assert known.tolist() == [False, True, False]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_equal_mass_of_uniform_attention_is_as_many(count):
    mask, known = _chosen([[1 / 3] * 16] * 5, "mass", count)
    assert known.all()
    assert mask.sum(1).tolist() == [count] * 5


def test_mass_is_as_near_as_a_patch_lets_it_come():
    received = np.random.default_rng(0).gamma(2, 1, (50, 40))
    mask, known = _chosen(received, "mass", 4)
    top, _ = _chosen(received, "top", 4)
    assert known.all()
    assert not (mask & top).any()
    assert (mask.sum(1) >= 4).all()
    mass, wanted = ((received * part.numpy()).sum(1) for part in (mask, top))
    assert (np.abs(mass - wanted) <= received.max(1, where=~top.numpy(), initial=0) / 2 + 1e-9).all()


def test_draws_are_seeded_and_differ():
    received = np.random.default_rng(0).random((3, 64))
    for choice in ("random", "mass"):
        draws = [_chosen(received, choice, 5, draw)[0] for draw in range(4)]
        assert all(torch.equal(one, _chosen(received, choice, 5, draw)[0]) for draw, one in enumerate(draws))
        assert len({tuple(one.flatten().tolist()) for one in draws}) == 4
        assert not torch.equal(draws[0], _chosen(received, choice, 5, seed=1)[0])
    old = np.random.default_rng([0, 2, 0]).random((1, 64)).argsort(-1).argsort(-1)[0] < 5
    assert _chosen(received, "random", 5)[0][2].tolist() == old.tolist()


def test_layers_of_several_grids_are_averaged_on_the_finest(make_model):
    """A coarse cell is spread over the fine ones below it; layers weigh the same; layers without a grid are left out."""
    _, (site, _) = find_key_sites(make_model("vit"), torch.zeros(2, 3, 32, 32))
    fine = torch.zeros(1, 4, 4)
    fine[0, 0, 0] = 1
    coarse = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    sites = [replace(site, image_received=received) for received in (fine, coarse, None)]
    expected = torch.zeros(4, 4)
    expected[0, 0] = 1 / 2
    expected[2:, 2:] = 1 / 8
    assert torch.allclose(image_profile(sites, nn.Identity())[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("family", ["vit", "swin", "cait"])
def test_received_on_the_image_is_that_of_the_maps(family, make_model):
    """Window by window, from the captured weights."""
    model, images = make_model(family), torch.randn(2, 3, 32, 32)
    _, sites = find_key_sites(model, images)
    with capture(model) as captured:
        model(images)
    maps = [attention for attention in captured.maps if attention.kind in ("global", "window", "class")]
    assert len(sites) == len(maps)
    for site, attention in zip(sites, maps, strict=True):
        first = 0 if attention.kind == "class" else attention.prefix_tokens
        weights = attention.weights.mean(1)[:, first:, attention.key_prefix_tokens :]
        tokens = weights.shape[-1]
        places = torch.arange(tokens)[None] if attention.partition is None else attention.partition
        expected = np.zeros((2, math.prod(attention.image_grid)))
        for item, received in enumerate(weights.sum(1)):
            image, window = divmod(item, attention.windows)
            expected[image, places[window]] += (received / received.sum() / attention.windows).numpy()
        np.testing.assert_allclose(site.image_received.flatten(1), expected, atol=1e-5)


def test_removal_draws_are_several_and_the_first_stays(make_model, photos, tmp_path):
    loaded = _loaded(make_model("vit"))
    options = {"fractions": [0.25], "corruptions": [], "limit": 4, "workers": 0, "progress": False}
    one, three = (overfocus.ablate(loaded, photos, output=tmp_path / str(draws), draws=draws, **options) for draws in (1, 3))
    parts = pd.concat(pd.read_parquet(path) for path in sorted((three.path / "ablation").glob("*.parquet")))
    first = parts[(parts["choice"] == "random") & (parts["k"] == 4) & (parts["draw"] == 0)]
    row = one.table[(one.table["choice"] == "random") & (one.table["k"] == 4)].iloc[0]
    assert row["output_cosine"] == pytest.approx(first["output_cosine"].mean(), abs=1e-6)
    every = parts[(parts["choice"] == "random") & (parts["k"] == 4)]
    assert len(every) == 12
    row = three.table[(three.table["choice"] == "random") & (three.table["k"] == 4)].iloc[0]
    assert row["output_cosine"] == pytest.approx(every["output_cosine"].mean(), abs=1e-9)


def test_a_mean_over_fewer_images_says_so(capsys):
    """Only 14 of 20 images have random patches of equal mass: their mean is not that of the other columns' images."""
    from types import SimpleNamespace

    from overfocus_cli.output import print_ablation

    counts = {"top": 20, "random": 20, "bottom": 20, "mass": 14}
    same = {"corruption": "fog", "severity": 3, "k": 6, "fraction": 0.1, "agreement": 0.5, "output_cosine": 0.9}
    rows = [same | {"choice": choice, "count": count} for choice, count in counts.items()]
    print_ablation(SimpleNamespace(model="vit", images=20, sentences=[], how="corrupt", table=pd.DataFrame(rows)))
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("mean over") == 1
    assert "mass, 6 (10 %): mean over 14 of 20 images, not those of the other columns" in said
