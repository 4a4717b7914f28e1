"""`analyze` measures what the metric functions say of maps that were captured one image at a time."""

import hashlib
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import overfocus
from overfocus import CaptureError, ImageError, Run, RunError, corrupt
from overfocus.checkpoints.metadata import save_checkpoint
from overfocus.metrics import METRICS, STABILITY
from overfocus.metrics.catalogue import CATALOGUE
from overfocus.models import add_tap

OPTIONS = {"corruptions": ["gaussian_noise", "fog"], "severities": [2, 4], "batch_size": 8, "workers": 0, "device": "cpu"}
KEYS = ["image", "corruption", "severity", "layer"]
NORM_COLUMNS = ["token_norm", "norm_ratio", "outlier_share", "outlier_received"]
METRIC_COLUMNS = [*METRICS, *NORM_COLUMNS, *STABILITY]


@pytest.fixture
def run(loaded, photos, tmp_path):
    """A run over six images, two corruptions and two severities."""
    return overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)


def captured_maps(loaded, pixels):
    """Output and attention weights of one image alone, one tensor (1, heads, tokens, tokens) per layer."""
    with torch.no_grad(), overfocus.capture(loaded.model) as captured:
        output = loaded.model(loaded.preprocess.normalize(pixels)[None])
    return output, [attention.weights for attention in captured.maps]


def test_one_row_per_image_corruption_severity_and_layer(run):
    variants = [("clean", 0), ("gaussian_noise", 2), ("gaussian_noise", 4), ("fog", 2), ("fog", 4)]
    control = ("other image", 0)
    expected = [(image, *variant, layer) for image in range(6) for variant in [*variants, control] for layer in range(2)]
    assert list(run.table[KEYS].itertuples(index=False, name=None)) == expected
    assert list(run.table.columns) == [
        "image",
        "name",
        "label",
        "corruption",
        "severity",
        "layer",
        "module",
        "kind",
        *METRIC_COLUMNS,
    ]
    assert list(run.table["module"].unique()) == ["blocks.0.attn", "blocks.1.attn"]
    assert list(run.predictions[KEYS[:3]].itertuples(index=False, name=None)) == [
        (image, *variant) for image in range(6) for variant in variants
    ]
    assert list(run.table.groupby("image")["name"].first()) == [f"{'cat' if i < 3 else 'dog'}/{i:03d}.png" for i in range(6)]


def test_norms_are_those_of_the_blocks_outputs(run, loaded, photos):
    outputs = []
    hooks = [block.register_forward_hook(lambda _m, _a, output: outputs.append(output)) for block in loaded.model.blocks]
    clean = loaded.preprocess.resize(Image.open(photos / "dog/004.png"))
    with torch.no_grad():
        loaded.model(loaded.preprocess.normalize(clean)[None])
    for hook in hooks:
        hook.remove()
    rows = run.table.query("image == 4 and corruption == 'clean'").set_index("layer")
    for layer, output in enumerate(outputs):
        norms = np.linalg.norm(output[0, 1:].numpy(), axis=-1)
        assert rows.loc[layer, "token_norm"] == pytest.approx(norms.mean(), rel=1e-5)
        assert rows.loc[layer, "norm_ratio"] == pytest.approx(norms.max() / np.median(norms), rel=1e-5)
        assert rows.loc[layer, "outlier_share"] == np.mean(norms > 3 * np.median(norms))


def test_values_equal_the_metric_functions_on_images_measured_alone(run, loaded, photos):
    clean = loaded.preprocess.resize(Image.open(photos / "dog/004.png"))
    corrupted = corrupt(clean, "fog", 4, seed=0)
    clean_output, clean_maps = captured_maps(loaded, clean)
    output, maps = captured_maps(loaded, corrupted)
    for layer in range(2):
        row = run.table.set_index(KEYS).loc[(4, "fog", 4, layer)]
        base = run.table.set_index(KEYS).loc[(4, "clean", 0, layer)]
        for name, function in METRICS.items():
            extra = {"grid": (4, 4)} if name == "attention_distance" else {}
            for weights, measured in ((maps[layer], row), (clean_maps[layer], base)):
                assert measured[name] == pytest.approx(float(function(weights, prefix_tokens=1, **extra)), abs=1e-5), name
        for name, function in STABILITY.items():
            assert row[name] == pytest.approx(float(function(clean_maps[layer], maps[layer], prefix_tokens=1)), abs=1e-5), name
            assert np.isnan(base[name])
    predicted = run.predictions.set_index(KEYS[:3]).loc[(4, "fog", 4)]
    before, after = clean_output.softmax(-1)[0], output.softmax(-1)[0]
    assert predicted["predicted"] == int(after.argmax())
    assert predicted["confidence"] == pytest.approx(float(after.max()), abs=1e-6)
    assert predicted["agreement"] == float(before.argmax() == after.argmax())
    assert predicted["confidence_drop"] == pytest.approx(float(before.max() - after[before.argmax()]), abs=1e-6)
    assert predicted["output_cosine"] == pytest.approx(float(torch.cosine_similarity(clean_output, output)), abs=1e-6)


def test_attention_is_worth_measuring(run):
    """The tests would pass on uniform attention too; it is not."""
    assert run.table["effective_tokens"].min() < 0.9
    assert run.table["top_overlap"].nunique() > 1 or run.table["js_divergence"].max() > 0.01


def test_received_attention_and_displayed_maps(run, loaded, photos):
    clean = loaded.preprocess.resize(Image.open(photos / "cat/000.png"))
    corrupted = corrupt(clean, "gaussian_noise", 2, seed=0)
    assert run.displayed == [0, 1, 3, 4]
    shown = run.maps(0)
    assert shown.variants[:2] == [("clean", 0), ("gaussian_noise", 2)]
    np.testing.assert_array_equal(shown.pixels[0], clean)
    np.testing.assert_array_equal(shown.pixels[1], corrupted)
    _, maps = captured_maps(loaded, corrupted)
    received = run.received(0, "gaussian_noise", 2)
    for layer in range(2):
        mean = maps[layer][0].mean(0).numpy()
        assert shown.attention[layer].dtype == np.float16
        np.testing.assert_allclose(shown.attention[layer][1, 0], mean, atol=1e-3)
        columns = mean[1:, 1:].sum(0)
        assert received[layer].shape == (4, 4)
        np.testing.assert_allclose(received[layer].ravel(), columns / columns.sum(), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 64])
def test_batch_size_does_not_change_the_result(run, loaded, photos, tmp_path, batch_size):
    """Groups that are split, whole, and packed several to a batch."""
    other = overfocus.analyze(loaded, photos, output=tmp_path / "other", **OPTIONS | {"batch_size": batch_size})
    pd.testing.assert_frame_equal(other.table, run.table, atol=2e-5, rtol=1e-4)
    pd.testing.assert_frame_equal(other.predictions, run.predictions, atol=1e-5)
    for image in run.displayed:
        np.testing.assert_array_equal(other.maps(image).pixels, run.maps(image).pixels)
        np.testing.assert_allclose(other.maps(image).attention[1], run.maps(image).attention[1], atol=1e-3)
    np.testing.assert_allclose(other.received(5, "fog", 4), run.received(5, "fog", 4), atol=1e-5)


def test_worker_processes_do_not_change_the_result(run, loaded, photos, tmp_path):
    other = overfocus.analyze(loaded, photos, output=tmp_path / "other", **OPTIONS | {"workers": 2})
    pd.testing.assert_frame_equal(other.table, run.table)


def test_the_seed_counts(run, loaded, photos, tmp_path):
    other = overfocus.analyze(loaded, photos, output=tmp_path / "other", **OPTIONS | {"seed": 1})
    clean = run.table["corruption"] == "clean"
    pd.testing.assert_frame_equal(other.table[clean], run.table[clean])
    assert not np.allclose(other.table.query("severity > 0")["received_shift"], run.table.query("severity > 0")["received_shift"])


def test_layers_and_heads_and_limit(loaded, photos, tmp_path):
    other = overfocus.analyze(loaded, photos, output=tmp_path / "other", layers=[-1], per_head=True, limit=2, **OPTIONS)
    assert list(other.table["layer"].unique()) == [1]
    assert [layer.layer for layer in other.layers] == [1]
    assert [image.name for image in other.images] == ["cat/000.png", "dog/003.png"]
    assert list(other.table["head"][:4]) == [0, 1, 0, 1]
    assert len(other.table) == 2 * 6 * 2
    _, maps = captured_maps(loaded, loaded.preprocess.resize(Image.open(photos / "dog/003.png")))
    heads = other.table[(other.table["image"] == 1) & (other.table["corruption"] == "clean")]
    np.testing.assert_allclose(heads["gini"], METRICS["gini"](maps[1], prefix_tokens=1, per_head=True)[0], atol=1e-5)
    assert set(other.maps(0).attention) == {1}


def test_top_fraction(loaded, photos, tmp_path):
    run = overfocus.analyze(loaded, photos, output=tmp_path / "run", top_fraction=1.0, **OPTIONS)
    np.testing.assert_allclose(run.table["top_share"].dropna(), 1, atol=1e-5)
    np.testing.assert_allclose(run.table["top_overlap"].dropna(), 1)


def test_labels_that_are_classes_give_correct(photos, tmp_path, make_loaded):
    names = ["bird", "Cat", "cow", "dog", "fish"]
    run = overfocus.analyze(make_loaded(class_names=names), photos, output=tmp_path / "run", **OPTIONS)
    predictions = run.predictions
    assert run.class_names == names
    assert list(predictions["predicted_name"]) == [names[number] for number in predictions["predicted"]]
    truth = predictions["label"].map({"cat": 1, "dog": 3})
    np.testing.assert_array_equal(predictions["correct"], (predictions["predicted"] == truth).astype(float))


def test_labels_that_are_no_classes_give_no_correct(run):
    assert set(run.table["label"]) == {"cat", "dog"}
    assert run.predictions["correct"].isna().all()
    assert run.description.notes == ["2 of 2 labels match no class of the model (cat, dog)"]


def test_model_without_classifier(photos, tmp_path, make_loaded):
    loaded = make_loaded()
    loaded.model.reset_classifier(0)
    run = overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    corrupted = run.predictions["severity"] > 0
    for column in ("predicted", "predicted_name", "confidence", "agreement", "confidence_drop"):
        assert run.predictions[column].isna().all(), column
    assert run.predictions.loc[corrupted, "output_cosine"].between(-1, 1.00001).all()
    assert run.predictions.loc[~corrupted, "output_cosine"].isna().all()


def test_grey_model_with_the_bundled_images(tmp_path, make_loaded):
    run = overfocus.analyze(make_loaded(channels=1), None, output=tmp_path / "run", limit=4, **OPTIONS)
    assert len(run.images) == 4
    assert run.table.query("corruption != 'other image'")["gini"].notna().all()


def test_clean_images_alone(loaded, photos, tmp_path):
    run = overfocus.analyze(loaded, photos, corruptions=[], output=tmp_path / "run", workers=0, device="cpu", batch_size=1)
    assert set(run.table["corruption"]) == {"clean", "other image"}
    assert len(run.table) == 24


def test_mixed_precision_stays_close(run, loaded, photos, tmp_path):
    other = overfocus.analyze(loaded, photos, output=tmp_path / "other", amp=True, **OPTIONS)
    np.testing.assert_allclose(other.table["gini"], run.table["gini"], atol=0.05)
    assert not np.array_equal(other.table["gini"], run.table["gini"])


def test_attention_computed_once_or_exactly(run, loaded, photos, tmp_path):
    once = overfocus.analyze(loaded, photos, output=tmp_path / "once", exact=False, **OPTIONS)
    assert [one.description.settings.exact for one in (run, once)] == [True, False]
    for name in METRIC_COLUMNS:
        np.testing.assert_allclose(once.table[name], run.table[name], rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(once.predictions["confidence"], run.predictions["confidence"], atol=1e-5)
    with pytest.raises(RunError, match="exact"):
        overfocus.analyze(loaded, photos, output=run.path, exact=False, **OPTIONS)


def test_corrupted_images_come_from_the_cache(run, loaded, photos, tmp_path, monkeypatch):
    from overfocus.corruptions import apply

    for name in ("first", "second"):
        again = overfocus.analyze(loaded, photos, output=tmp_path / name, cache=tmp_path / "cache", **OPTIONS)
        pd.testing.assert_frame_equal(again.table, run.table)
        # called with keywords only to compile what it needs
        monkeypatch.setattr(apply, "corrupt", lambda *_, **prepared: prepared or pytest.fail("corrupted again"))
    assert len([*(tmp_path / "cache").rglob("*.pixels")]) == 6 * 4
    (tmp_path / "file").write_text("")
    with pytest.raises(overfocus.CorruptionError, match="choose another folder or none"):
        overfocus.analyze(loaded, photos, output=tmp_path / "third", cache=tmp_path / "file", **OPTIONS)
    assert not (tmp_path / "third").exists()


def test_windows_are_measured_and_put_back(photos, tmp_path, make_loaded):
    import timm

    torch.manual_seed(0)
    model = timm.models.SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=16, depths=(2,), num_heads=(2,), num_classes=5
    )
    run = overfocus.analyze(make_loaded(model), photos, output=tmp_path / "run", **OPTIONS)
    assert {layer.kind for layer in run.layers} == {"window"}
    assert run.table.query("corruption != 'other image'")["attention_distance"].notna().all()
    assert [received.shape for received in run.received(2, "fog", 2)] == [(8, 8), (8, 8)]
    assert run.maps(0).attention[0].shape == (5, 4, 16, 16)


def test_run_json_holds_what_the_report_needs(run, photos):
    info = json.loads((run.path / "run.json").read_text())
    assert info["status"] == "complete"
    assert info["settings"]["corruptions"] == ["gaussian_noise", "fog"]
    assert len(info["checkpoint"]["weights_sha256"]) == 64
    assert [site["module"] for site in info["coverage"] if site["captured"]] == ["blocks.0.attn", "blocks.1.attn"]
    assert info["layers"][0]["grid"] == [4, 4]
    assert info["layers"][0]["heads"] == 2
    first = info["images"][0]
    assert (first["name"], first["path"], first["label"]) == ("cat/000.png", str(photos / "cat/000.png"), "cat")
    assert (first["width"], first["height"]) == (48, 40)
    timing = info["timing"]
    parts = [timing[part] for part in ("forward", "capture", "waiting", "normalising", "writing")]
    assert all(part >= 0 for part in parts)
    assert sum(parts) <= timing["seconds"] + 0.01
    assert info["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_summary_counts_what_is_skipped(run):
    summary = run.summary()
    rows = summary.set_index(["corruption", "severity", "layer", "metric"])
    gini = run.table.query("corruption == 'fog' and severity == 4 and layer == 1")["gini"]
    row = rows.loc[("fog", 4, 1, "gini")]
    assert row["mean"] == pytest.approx(gini.mean())
    half = 2.5705818 * gini.std(ddof=1) / np.sqrt(6)  # Student's t with 5 degrees of freedom, from a table
    assert (row["low"], row["high"]) == (pytest.approx(gini.mean() - half), pytest.approx(gini.mean() + half))
    assert (row["count"], row["skipped"]) == (6, 0)
    clean = rows.loc[("clean", 0, 0, "top_overlap")]
    assert (clean["count"], clean["skipped"]) == (0, 6)
    assert np.isnan(clean["mean"])
    assert set(summary["metric"]) <= set(CATALOGUE)


def test_no_progress_bar_without_a_terminal(loaded, photos, tmp_path, capfd):
    overfocus.analyze(loaded, photos, output=tmp_path / "a", **OPTIONS)
    assert capfd.readouterr() == ("", "")
    overfocus.analyze(loaded, photos, output=tmp_path / "b", progress=True, **OPTIONS)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "6/6" in shown.err
    assert "images/s" in shown.err


def test_from_a_checkpoint_file(loaded, photos, tmp_path):
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    names = ["bird", "cat", "cow", "dog", "fish"]
    path = save_checkpoint(
        loaded.model,
        tmp_path / "tiny.safetensors",
        architecture="VisionTransformer",
        model_args=arguments,
        class_names=names,
        preprocess=loaded.preprocess,
    )
    run = overfocus.analyze(path, photos, output=tmp_path / "run", **OPTIONS)
    expected = overfocus.analyze(loaded, photos, output=tmp_path / "expected", **OPTIONS)
    pd.testing.assert_frame_equal(run.table, expected.table)
    checkpoint = run.description.checkpoint
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.weights_sha256 == expected.description.checkpoint.weights_sha256
    assert run.class_names == names
    assert run.predictions["correct"].notna().all()


def test_another_image_size(loaded, photos, tmp_path):
    model_args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    path = save_checkpoint(loaded.model, tmp_path / "tiny.safetensors", architecture="VisionTransformer", model_args=model_args)
    run = overfocus.analyze(path, photos, output=tmp_path / "run", image_size=48, **OPTIONS)
    assert run.maps(0).pixels.shape[1:] == (48, 48, 3)
    assert run.received(0)[0].shape == (6, 6)


def test_model_without_attention(photos, tmp_path, make_loaded):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(CaptureError, match=r"no attention over tokens was found in Sequential.*is it a CNN"):
        overfocus.analyze(make_loaded(model), photos, output=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run" / "run.json").exists()


def test_silent_attention_module_is_warned_of(photos, tmp_path, make_loaded):
    class LinearAttention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Linear(32, 32)

        def forward(self, tokens, **_keywords):
            return self.weight(tokens)

    loaded = make_loaded()
    loaded.model.blocks[1].attn = LinearAttention()
    with pytest.warns(UserWarning, match=r"1 attention modules gave no map and are not measured: blocks\.1\.attn"):
        run = overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    assert [row.module for row in run.description.coverage if not row.captured] == ["blocks.1.attn"]


def test_the_gate_of_tap_is_named_but_not_warned_of(photos, tmp_path, make_loaded):
    loaded = make_loaded()
    add_tap(loaded.model, branches=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    gates = [row for row in run.description.coverage if row.kind == "gating"]
    assert len(gates) == len(loaded.model.blocks)
    assert not any(row.captured for row in gates)


def test_weights_that_are_not_numbers(photos, tmp_path, make_loaded):
    loaded = make_loaded()
    with torch.no_grad():
        loaded.model.blocks[1].attn.qkv.weight[0, 0] = torch.nan
    with pytest.raises(CaptureError, match=r"blocks\.1\.attn"):
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)


def test_bad_images_are_skipped_counted_and_named(loaded, photos, tmp_path):
    (photos / "cat" / "001.png").write_text("no image")
    (photos / "dog" / "zzz.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    run = overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS)
    assert sorted(run.table["image"].unique()) == [0, 2, 3, 4, 5]
    assert [row.name for row in run.skipped] == ["cat/001.png", "dog/zzz.jpg"]
    assert "Pillow cannot read its content" in run.skipped[0].reason
    assert run.displayed == [0, 2, 3, 5]
    with pytest.raises(ImageError, match=r"001\.png"):
        overfocus.analyze(loaded, photos, output=tmp_path / "strict", strict=True, **OPTIONS)


def test_no_readable_image_left(loaded, tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(ImageError, match=r"none of the 2 images can be used; the first: .*a\.png"):
        overfocus.analyze(loaded, [tmp_path / "a.png", tmp_path / "b.jpg"], output=tmp_path / "run", **OPTIONS)


def test_a_whole_shard_of_bad_images(loaded, tmp_path, write_images):
    photos = write_images(tmp_path / "photos", 6)
    for bad in ("cat/001.png", "cat/002.png", "dog/003.png"):
        (photos / bad).write_text("no image")
    run = overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS | {"batch_size": 5})
    assert sorted(run.table["image"].unique()) == [0, 4, 5]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"severities": [0]}, "severity must be a whole number from 1"),
        ({"severities": 6}, "severity must be a whole number from 1"),
        ({"corruptions": ["fogg"]}, "did you mean 'fog'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0 and at most 256, got -1"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"top_fraction": 0}, "top_fraction must be above 0"),
        ({"layers": [2]}, r"layers must be between -2 and 1 for this model, got 2"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
        ({"image_size": 64}, "image_size: options of loading"),
    ],
)
def test_wrong_settings(loaded, photos, tmp_path, options, words):
    with pytest.raises(overfocus.OverfocusError, match=words) as raised:
        overfocus.analyze(loaded, photos, output=tmp_path / "run", **OPTIONS | options)
    assert "\n" not in str(raised.value)


def test_reading_what_is_no_run(tmp_path):
    with pytest.raises(RunError, match="expected a run folder"):
        Run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        Run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(RunError, match="written in format 99, this version reads formats 1 to 2"):
        Run(tmp_path)
    (tmp_path / "run.json").write_text('{"scripts": {}}')
    with pytest.raises(RunError, match="something else"):
        Run(tmp_path)


def test_what_a_run_does_not_hold(run):
    with pytest.raises(RunError, match="no received attention of image 0 with snow 1"):
        run.received(0, "snow", 1)
    with pytest.raises(RunError, match=r"displayed images only; choose from \[0, 1, 3, 4\], got 2"):
        run.maps(2)
