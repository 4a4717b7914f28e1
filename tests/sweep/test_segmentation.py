"""`analyze` on segmentation models: class maps, scores against masks, attention by class."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchmetrics.functional.segmentation import mean_iou as reference_iou

import overfocus
from overfocus import ImageError, RunError
from overfocus.models.segmentation import segmentation_model
from overfocus.sweep import recorder

CLASSES = ["background", "thing", "sky"]


@pytest.fixture
def segmenter(make_loaded):
    """A tiny ViT under the SegFormer head, for 32×32 pixels and three classes."""
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    model = segmentation_model(vit, num_classes=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "qkv.weight" in name or "linear_pred.weight" in name:
                parameter.mul_(15)
    return make_loaded(model, class_names=CLASSES)


def write_masked(folder, number=3, classes=CLASSES):
    """Images of 48×32 pixels with masks: background, a thing in the middle, sky on top, a strip that is ignored."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(number):
        rng = np.random.default_rng(index)
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        small.resize((48, 32), Image.Resampling.BICUBIC).save(folder / "images" / f"{index}.png")
        mask = np.zeros((32, 48), np.uint8)
        mask[:8] = 2
        mask[12:24, 16:32] = 1
        mask[30:] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    if classes:
        (folder / "classes.txt").write_text("\n".join(classes), encoding="utf-8")
    return folder


@pytest.fixture
def masked(tmp_path):
    return write_masked(tmp_path / "masked")


def analyze(loaded, images, output, **options):
    chosen = {"corruptions": ["gaussian_noise", "contrast"], "severities": [2, 4], "workers": 0, "device": "cpu"} | options
    return overfocus.analyze(loaded, images, output=output, **chosen)


def forward(segmenter, images):
    """Full-size logits of one image."""
    with torch.no_grad():
        logits = segmenter.model(segmenter.preprocess.normalize(images)[None])
    return torch.nn.functional.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)[0]


def test_predictions_are_those_of_the_plain_forward(segmenter, masked, tmp_path):
    run = analyze(segmenter, masked, tmp_path / "run")
    assert run.segmented
    assert run.segmented
    assert run.class_names == CLASSES
    assert run.predictions["label"].isna().all()
    for image in run.displayed:
        kept, maps = run.maps(image), run.class_maps(image)
        assert maps.variants == kept.variants
        rows = run.predictions[run.predictions["image"] == image].reset_index()
        clean = forward(segmenter, kept.pixels[0])
        truth = maps.truth
        for place, pixels in enumerate(kept.pixels):
            logits = forward(segmenter, pixels)
            predicted = logits.argmax(0).numpy()
            np.testing.assert_array_equal(maps.predicted[place], predicted)
            row = rows.loc[place]
            assert row["predicted"] == np.bincount(predicted.ravel()).argmax()
            assert row["predicted_name"] == CLASSES[row["predicted"]]
            assert row["confidence"] == pytest.approx(float(logits.softmax(0).amax(0).mean()), abs=1e-5)
            counted = truth != 255
            assert row["correct"] == pytest.approx((predicted == truth)[counted].mean())
            encoded = [np.where(counted, array, 3) for array in (predicted, truth)]
            scored = reference_iou(
                *(torch.from_numpy(array.astype(np.int64))[None] for array in encoded),
                num_classes=4,
                per_class=True,
                input_format="index",
            )[0, :3]
            assert row["image_iou"] == pytest.approx(float(scored[scored >= 0].mean()), abs=1e-5)
            if place:
                kept_class = predicted == maps.predicted[0]
                assert row["agreement"] == pytest.approx(kept_class[counted].mean())
                chosen = clean.argmax(0, keepdim=True)
                drop = [float(found.softmax(0).gather(0, chosen).mean()) for found in (clean, logits)]
                assert row["confidence_drop"] == pytest.approx(drop[0] - drop[1], abs=1e-5)
            else:
                assert np.isnan([row["agreement"], row["confidence_drop"], row["output_cosine"]]).all()


def test_truth_goes_through_the_geometry_of_the_image(segmenter, masked, tmp_path):
    truth = analyze(segmenter, masked, tmp_path / "run").class_maps(0).truth
    # 48×32 pixels: the middle 32 columns are left, in which the thing covers columns 8 to 24
    expected = np.zeros((32, 32), np.uint8)
    expected[:8], expected[30:], expected[12:24, 8:24] = 2, 255, 1
    np.testing.assert_array_equal(truth, expected)


def test_attention_by_class(segmenter, masked, tmp_path):
    run = analyze(segmenter, masked, tmp_path / "run")
    table = run.attention_by_class
    assert len(table) == 3 * 5 * 2 * 3  # images, variants, layers, classes
    assert list(table["class_name"].unique()) == CLASSES
    truth = run.class_maps(1).truth
    received = run.received(1, "contrast", 4)[1]
    for number in range(3):
        row = table.query("image == 1 and corruption == 'contrast' and severity == 4 and layer == 1 and `class` == @number").iloc[
            0
        ]
        inside = np.kron(received, np.ones((8, 8)))[truth == number].sum() / 64
        assert row["received_share"] == pytest.approx(inside, abs=1e-6)
        assert row["area_share"] == pytest.approx((truth == number).mean())
    shares = table.groupby(["image", "corruption", "severity", "layer"])["received_share"].sum()
    assert (shares < 1).all()  # the rest lies on ignored pixels


def test_large_batches_and_small_ones_give_the_same(segmenter, masked, tmp_path):
    runs = [analyze(segmenter, masked, tmp_path / f"run-{size}", batch_size=size) for size in (2, 16)]
    first, second = (run.attention_by_class.sort_values(["image", "corruption", "severity", "layer", "class"]) for run in runs)
    np.testing.assert_allclose(first["received_share"], second["received_share"], atol=1e-5)
    np.testing.assert_allclose(runs[0].predictions["correct"], runs[1].predictions["correct"], atol=2e-3)
    for image in runs[0].displayed:
        assert (runs[0].class_maps(image).predicted == runs[1].class_maps(image).predicted).mean() > 0.998


def test_an_interrupted_run_continues_to_the_same_tables(segmenter, masked, tmp_path, monkeypatch):
    whole = analyze(segmenter, masked, tmp_path / "whole", batch_size=4)
    monkeypatch.setattr(recorder, "SECONDS_PER_PART", 0.0)
    add = recorder.Recorder.add

    def stop(self, results):
        if self.reached:
            raise KeyboardInterrupt
        add(self, results)

    monkeypatch.setattr(recorder.Recorder, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        analyze(segmenter, masked, tmp_path / "run", batch_size=4)
    monkeypatch.setattr(recorder.Recorder, "add", add)
    part = tmp_path / "run" / "attention_by_class" / "part-00001.parquet"
    part.write_bytes(b"left behind by a kill")
    again = analyze(segmenter, masked, tmp_path / "run", batch_size=4)
    assert again.complete
    for name in ("table", "predictions", "attention_by_class"):
        theirs = getattr(whole, name)
        assert (
            getattr(again, name)
            .drop(columns=["intersections", "unions"], errors="ignore")
            .equals(theirs.drop(columns=["intersections", "unions"], errors="ignore"))
        )
    np.testing.assert_array_equal(whole.class_maps(2).predicted, again.class_maps(2).predicted)


def test_overwriting_removes_what_only_segmentation_writes(segmenter, loaded, masked, photos, tmp_path):
    analyze(segmenter, masked, tmp_path / "run")
    run = analyze(loaded, photos, tmp_path / "run", overwrite=True)
    assert not run.segmented
    assert run.attention_by_class.empty
    assert list((tmp_path / "run" / "maps").glob("classes-*")) == []
    with pytest.raises(RunError, match="no class maps of image 0"):
        run.class_maps(0)


def test_images_without_masks(segmenter, photos, tmp_path):
    run = analyze(segmenter, photos, tmp_path / "run")
    assert run.predictions["label"].isna().all()  # sub-folders are no classes of pixels
    assert run.predictions["correct"].isna().all()
    assert run.predictions["image_iou"].isna().all()
    assert run.predictions.query("severity > 0")["agreement"].between(0, 1).all()
    assert run.attention_by_class.empty
    assert list(run.attention_by_class.columns[-2:]) == ["received_share", "area_share"]
    assert run.class_maps(0).truth is None


def test_a_model_of_another_make_is_known_by_its_output(make_loaded, masked, tmp_path):
    class Dense(torch.nn.Module):
        num_classes = 3

        def __init__(self):
            super().__init__()
            self.vit = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0)
            self.last = torch.nn.Linear(32, 3)

        def forward(self, images):
            return self.last(self.vit.forward_features(images)[:, 1:]).transpose(1, 2).unflatten(2, (4, 4))

    run = analyze(make_loaded(Dense(), class_names=CLASSES), masked, tmp_path / "run")
    assert run.segmented
    assert run.predictions["correct"].between(0, 1).all()


def test_comparison_shows_both_models_the_same_masks(segmenter, make_loaded, masked, tmp_path):
    vit = timm.models.VisionTransformer(img_size=48, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    other = make_loaded(segmentation_model(vit, num_classes=3), class_names=CLASSES)
    other.preprocess = overfocus.preprocessing.Preprocess(input_size=(3, 48, 48), crop_pct=1.0)
    other.name = "larger"
    found = overfocus.compare(
        [segmenter, other],
        images=masked,
        corruptions=["fog"],
        severities=[3],
        output=tmp_path / "both",
        workers=0,
        device="cpu",
        resamples=100,
    )
    truths = [run.class_maps(0).truth for run in found.runs]
    assert truths[1].shape == (48, 48)
    enlarged = np.asarray(Image.fromarray(truths[0]).resize((48, 48), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(truths[1], enlarged)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["background", "sky", "thing"], "class 1 is 'sky', but 'thing' for the model"),
        ([*CLASSES, "car"], "has 4 classes, the model predicts 3"),
    ],
)
def test_other_classes_than_the_models(segmenter, tmp_path, classes, words):
    folder = write_masked(tmp_path / "masked", classes=classes)
    with pytest.raises(ImageError, match=words):
        analyze(segmenter, folder, tmp_path / "run")


def test_more_classes_than_a_mask_can_hold(make_loaded, photos, tmp_path):
    vit = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(RunError, match="at most 255 pixel classes, as many as masks can hold, got 300"):
        analyze(make_loaded(segmentation_model(vit, num_classes=300)), photos, tmp_path / "run")


def test_figures_of_a_notebook(segmenter, masked, tmp_path):
    run = analyze(segmenter, masked, tmp_path / "run")
    page = run._repr_html_()
    assert "share of pixels" in page
    assert "share of images" not in page
    assert len(run.plot_layers("gini").axes) == 1
    assert run.plot_stability("top_overlap").axes[0].get_lines()
    assert [axes.get_title() for axes in run.show(1, severity=4).axes[:3]] == ["clean", "gaussian noise 4", "contrast 4"]


def test_a_data_set_comes_alone(segmenter, masked, photos, tmp_path):
    with pytest.raises(ImageError, match="give this data set alone"):
        analyze(segmenter, [masked, photos], tmp_path / "run")


def test_a_damaged_mask_is_skipped_and_named(segmenter, masked, tmp_path):
    Image.new("L", (10, 10)).save(masked / "masks" / "1.png")
    run = analyze(segmenter, masked, tmp_path / "run")
    assert [row.name for row in run.skipped] == ["1.png"]
    assert "48×32 pixels, got 10×10" in run.skipped[0].reason
    assert sorted(run.predictions["image"].unique()) == [0, 2]


def test_padding_counts_as_ignored():
    preprocess = overfocus.preprocessing.Preprocess(input_size=(3, 32, 32), crop_pct=1.0, crop_mode="border")
    mask = preprocess.resize_mask(np.full((32, 64), 7, np.uint8))
    assert set(np.unique(mask)) == {7, 255}
    assert (mask[8:24] == 7).all()
    assert (mask[:8] == 255).all()


@pytest.mark.slow
def test_the_bundled_photographs_serve_a_registered_model(tmp_path):
    loaded = overfocus.load_model("tap_fan_tiny_8_p4_hybrid_segformer", pretrained=False, image_size=128, device="cpu")
    run = overfocus.analyze(
        loaded, corruptions=["fog"], severities=[3], limit=2, output=tmp_path / "run", workers=0, device="cpu"
    )
    assert run.description.settings.batch_size == 4
    assert len(run.layers) == run.description.attention_layers
    assert run.class_maps(0).predicted.shape == (2, 128, 128)
