"""What comes with the package: a model that has learned, and images that it can be shown."""

from pathlib import Path

import pytest
from PIL import Image

from overfocus import evaluate, load_model
from overfocus.images.sources import find_images
from overfocus.samples import sample_checkpoint, sample_checkpoints, sample_images

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
MEGABYTE = 1_000_000


def test_checkpoints_are_small() -> None:
    assert sum(path.stat().st_size for path in sample_checkpoints()) <= 8 * MEGABYTE


def test_the_pair_differs_in_tap() -> None:
    baseline, mended = (load_model(path).model for path in sample_checkpoints())
    assert len(baseline.blocks) == len(mended.blocks)
    assert not any(hasattr(block, "dilation_predictor") for block in baseline.blocks)
    assert [block.dilation_predictor.branches for block in mended.blocks] == [4] * len(mended.blocks)


@pytest.mark.parametrize("checkpoint", sample_checkpoints(), ids=lambda path: path.stem)
def test_checkpoint_says_what_it_is(checkpoint: Path) -> None:
    loaded = load_model(checkpoint)
    assert loaded.found_by == "metadata"
    assert loaded.parameters <= 2_000_000
    assert loaded.input_size == (1, 32, 32)
    assert (loaded.missing_keys, loaded.unexpected_keys, loaded.notes) == ([], [], ())
    assert loaded.model.patch_embed.num_patches >= 64


def test_images_are_labelled_with_classes_of_the_model() -> None:
    sources = find_images(None, (1, 32, 32))
    assert len(sources) == 32
    assert {source.label for source in sources} == set(load_model(sample_checkpoint()).class_names or [])


def test_photographs_are_large_enough_for_224_pixels() -> None:
    sources = find_images(None, (3, 224, 224))
    assert len(sources) == 7
    assert all(source.label is None and min(Image.open(source.path).size) >= 256 for source in sources)


def test_every_file_has_its_origin_told() -> None:
    told = (sample_checkpoint().parent / "README.md").read_text()
    for path in sample_images((3, 224, 224)).iterdir():
        assert f"photographs/{path.name}" in told
    for path in sample_checkpoints():
        assert path.name in told


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="needs Debian's dataset-fashion-mnist")
@pytest.mark.parametrize("checkpoint", sample_checkpoints(), ids=lambda path: path.stem)
def test_model_classifies_at_least_85_percent_of_the_test_set(checkpoint: Path, tmp_path: Path) -> None:
    (evaluation,) = evaluate(checkpoint, FASHION_MNIST, tmp_path, workers=0, progress=False)
    predictions = evaluation.run.predictions
    assert len(predictions) == 10_000
    assert predictions["correct"].mean() >= 0.85
