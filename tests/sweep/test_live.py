"""Models, images and corruptions in memory through the public functions: measured, continued, and told from others."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

import overfocus
from overfocus.errors import CorruptionError, ImageError, RunError

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
LABELS = [3, 1, 2, 0]
FEW = {"severities": [3], "workers": 0, "progress": False, "batch_size": 4}


def streaks(rgb, severity, generator):
    rows = generator.random(len(rgb)) < 0.1 * severity
    return np.where(rows[:, None, None], np.uint8(255), rgb)


def wrapped(seed=0, classes=4):
    torch.manual_seed(seed)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, embed_dim=24, num_classes=classes)
    return overfocus.wrap(model.eval(), input_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, name="mine")


@pytest.fixture(scope="module")
def model():
    return wrapped()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live") / "run"
    images = list(zip(PIXELS, LABELS, strict=True))
    return overfocus.analyze(model, images=images, corruptions=[streaks, "fog"], output=folder, **FEW)


def test_the_tables_are_those_of_the_same_images_on_the_disk(run, model, tmp_path):
    for number, pixels in enumerate(PIXELS):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    saved = overfocus.analyze(model, images=tmp_path / "photos", corruptions=[streaks, "fog"], output=tmp_path / "run", **FEW)
    without = ["name", "label"]
    assert run.table.drop(columns=without).equals(saved.table.drop(columns=without))
    assert [str(variant.label) for variant in run.variants] == ["clean", "streaks 3", "fog 3"]


def test_loaders_and_data_sets_give_the_same(run, model, tmp_path):
    dataset = TensorDataset(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS))
    for name, images in (("set", dataset), ("loader", DataLoader(dataset, batch_size=3))):
        other = overfocus.analyze(model, images=images, corruptions=[streaks, "fog"], output=tmp_path / name, **FEW)
        assert run.table.drop(columns="name").equals(other.table.drop(columns="name"))
        assert list(run.predictions["correct"]) == list(other.predictions["correct"])


def test_it_is_continued_and_others_under_the_same_names_are_refused(run, model):
    images = list(zip(PIXELS, LABELS, strict=True))
    again = {"images": images, "corruptions": [streaks, "fog"], "output": run.path, **FEW}
    assert overfocus.analyze(model, **again).complete

    def darker(rgb, _severity, _generator):
        return rgb // 2

    for changed, says in (
        ({"checkpoint": wrapped(1)}, "other weights, mine"),
        ({"images": [*images[:3], (PIXELS[0], 0)]}, "other images"),
        ({"images": [*images[:3], (PIXELS[3], 1)]}, "other images"),
        ({"corruptions": [("streaks", darker), "fog"]}, "another function as streaks"),
    ):
        with pytest.raises(RunError, match=says):
            overfocus.analyze(**{"checkpoint": model, **again, **changed})


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.blocks[0].attn, "num_heads", 1) or setattr(model.blocks[0].attn, "head_dim", 24),
        lambda model: setattr(model.blocks[0].mlp, "act", torch.nn.Tanh()),
        lambda model: setattr(model, "global_pool", "max"),
    ],
    ids=["heads", "activation", "pooling"],
)
def test_another_network_with_the_same_weights_is_refused(run, change):
    other = wrapped()
    change(other.model)
    images = list(zip(PIXELS, LABELS, strict=True))
    with pytest.raises(RunError, match="another network with the same weights"):
        overfocus.analyze(other, images=images, corruptions=[streaks, "fog"], output=run.path, **FEW)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda pixels: pixels[:, ::-1].copy(), "another function as preprocess"),
        (lambda pixels: pixels * 2, "checkpoint std"),
    ],
    ids=["other pixels", "other scale"],
)
def test_another_preprocessing_under_the_same_name_is_refused(change, says, tmp_path):
    def resized(image):
        return np.asarray(image.convert("RGB").resize((32, 32)), dtype=np.float32).transpose(2, 0, 1) / 255 - 0.5

    network = wrapped().model
    kept = {"images": list(PIXELS[:2]), "corruptions": [], "output": tmp_path / "run", **FEW}
    overfocus.analyze(overfocus.wrap(network, resized, name="mine"), **kept)
    assert overfocus.analyze(overfocus.wrap(network, resized, name="mine"), **kept).complete
    with pytest.raises(RunError, match=says):
        overfocus.analyze(overfocus.wrap(network, lambda image: change(resized(image)), name="mine"), **kept)


def test_another_metric_under_the_same_name_is_refused(model, tmp_path):
    def first_share(weights):
        return weights[..., 0].mean((1, 2))

    kept = {"images": list(PIXELS[:2]), "corruptions": [], "output": tmp_path / "run", **FEW}
    overfocus.analyze(model, metrics=[first_share], **kept)
    overfocus.analyze(model, metrics=[first_share], **kept)

    def other(weights):
        return weights[..., 1].mean((1, 2))

    other.__name__ = "first_share"
    with pytest.raises(RunError, match="another function as first_share"):
        overfocus.analyze(model, metrics=[other], **kept)


class Augmented(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.rand(3, 32, 32), index


def test_random_augmentation_ends_the_run_with_a_line(model, tmp_path):
    with pytest.raises(ImageError, match="expected the same image whenever it is read"):
        overfocus.analyze(model, images=Augmented(), corruptions=[], output=tmp_path / "run", **FEW)


def test_a_corruption_that_fails_on_a_later_image_ends_the_run_with_a_line(model, tmp_path):
    def picky(rgb, _severity, _generator):
        return rgb[:3] if (rgb == 7).all() else rgb

    images = [*PIXELS[:2], np.full((32, 32, 3), 7, np.uint8)]
    for workers in (0, 1):
        with pytest.raises(CorruptionError, match="the corruption picky must give RGB pixels"):
            overfocus.analyze(
                model, images=images, corruptions=[picky], output=tmp_path / f"{workers}", **FEW | {"workers": workers}
            )


def test_compare_and_ablate_take_them_too(model, tmp_path):
    images = list(PIXELS)
    comparison = overfocus.compare(
        [model, wrapped(1)], images=images, corruptions=[streaks], resamples=10, output=tmp_path / "c", **FEW
    )
    assert set(comparison.table["corruption"]) >= {"streaks"}
    assert set(comparison.table["model"]) == {"mine (2)"}
    ablation = overfocus.ablate(model, images=images, corruptions=[streaks], output=tmp_path / "a", fractions=[0.1], **FEW)
    assert set(ablation.table["corruption"]) == {"clean", "streaks"}


def test_evaluate_takes_them_too(model, tmp_path):
    right = [int(model.model(model.preprocess(Image.fromarray(pixels))[None]).argmax()) for pixels in PIXELS]
    data = list(zip(PIXELS, right, strict=True))
    asked = {"corruptions": [streaks], "severities": [1], "output": tmp_path / "e", "workers": 0, "progress": False}
    (found,) = overfocus.evaluate(model, data, **asked)
    assert found.table.set_index("corruption")["top1"]["clean"] == 1
    assert list(found.table["corruption"]) == ["clean", "streaks"]
    assert overfocus.evaluate(model, data, **asked)[0].run.complete
    with pytest.raises(RunError, match="other images"):
        overfocus.evaluate(model, [*data[1:], data[0]], **asked)
    two = overfocus.evaluate([model, wrapped(1)], data, tmp_path / "two", workers=0, progress=False)
    assert [entry.path.name for entry in two] == ["0_mine", "1_mine"]
    with pytest.raises(ImageError, match="expected images with labels to evaluate with"):
        overfocus.evaluate(model, list(PIXELS), tmp_path / "none", workers=0, progress=False)


def test_heatmap_of_an_array(model):
    for image in (PIXELS[0], Image.fromarray(PIXELS[0]), torch.from_numpy(PIXELS[0]).permute(2, 0, 1)):
        assert overfocus.heatmap(model, image).maps[0].values.shape == (1, 4, 4)
