"""What comes with the package: a model that has learned, and images that it can be shown."""

import importlib
from pathlib import Path

import pytest
from PIL import Image

from overfocus import load_model
from overfocus.images.sources import find_images
from overfocus.samples import sample_checkpoint, sample_images

SCRIPTS = Path(__file__).parent / "scripts"
MEGABYTE = 1_000_000


def test_checkpoint_is_small_and_says_what_it_is() -> None:
    loaded = load_model(sample_checkpoint())
    assert sample_checkpoint().stat().st_size <= 4 * MEGABYTE
    assert loaded.found_by == "metadata"
    assert loaded.parameters <= 2_000_000
    assert loaded.input_size == (1, 32, 32)
    assert loaded.missing_keys == loaded.unexpected_keys == loaded.notes == []
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
    assert sample_checkpoint().name in told


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").exists(), reason="needs Debian's dataset-fashion-mnist")
def test_model_classifies_at_least_85_percent_of_the_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    evaluation = importlib.import_module("evaluate_sample_model")
    assert evaluation.count_right() >= 8_500
