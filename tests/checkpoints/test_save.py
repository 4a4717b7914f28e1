"""`save_checkpoint` writes what `load_model` needs; nothing has to be told again."""

import pytest
import timm
import torch
from safetensors import safe_open
from timm.models.vision_transformer import VisionTransformer

import overfocus.models
from overfocus import CheckpointError, load_model
from overfocus.checkpoints.metadata import save_checkpoint
from overfocus.preprocessing import Preprocess

SMALL = {"img_size": 32, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 48, "depth": 2, "num_heads": 3}


def test_registered_architecture(tmp_path) -> None:
    model = timm.create_model("test_vit", num_classes=3, img_size=96, global_pool="avg").eval()
    preprocess = Preprocess((3, 96, 96), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 0.8, "squash")
    path = save_checkpoint(
        model,
        tmp_path / "model.safetensors",
        architecture="test_vit",
        model_args={"global_pool": "avg"},
        class_names=["a", "b", "c"],
        preprocess=preprocess,
        extra={"recipe": "small"},
    )
    loaded = load_model(path)
    assert (loaded.name, loaded.found_by, loaded.class_names) == ("test_vit", "metadata", ["a", "b", "c"])
    assert loaded.preprocess == preprocess
    assert (loaded.missing_keys, loaded.unexpected_keys, loaded.notes) == ([], [], ())
    images = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=0)
    with safe_open(path, framework="pt") as reader:
        assert reader.metadata()["recipe"] == "small"
    assert sorted(tmp_path.iterdir()) == [path]


def test_model_without_a_registered_name(tmp_path) -> None:
    model = VisionTransformer(**SMALL).eval()
    preprocess = Preprocess((1, 32, 32), (0.28,), (0.35,), crop_pct=1.0)
    path = save_checkpoint(
        model, tmp_path / "m.safetensors", architecture="VisionTransformer", model_args=SMALL, preprocess=preprocess
    )
    loaded = load_model(path)
    assert (loaded.name, loaded.input_size, loaded.num_classes) == ("VisionTransformer", (1, 32, 32), 3)
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=0)
    assert load_model(path, image_size=64).input_size == (1, 64, 64)


def test_tap_added_afterwards(tmp_path) -> None:
    tap = {"branches": 3, "layers": [0], "pooling": "gaussian"}
    model = overfocus.models.add_tap(VisionTransformer(**SMALL), **tap).eval()
    path = save_checkpoint(model, tmp_path / "m.safetensors", architecture="VisionTransformer", model_args=SMALL, tap=tap)
    loaded = load_model(path)
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=0)


def test_architecture_far_larger_than_its_weights_is_refused_before_it_is_built(tmp_path) -> None:
    huge = SMALL | {"embed_dim": 600_000, "num_heads": 3}
    path = save_checkpoint(
        VisionTransformer(**SMALL), tmp_path / "m.safetensors", architecture="VisionTransformer", model_args=huge
    )
    with pytest.raises(CheckpointError, match=r"the checkpoint holds|refused, its model argument"):
        load_model(path)


def test_failed_save_leaves_nothing(tmp_path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(VisionTransformer(**SMALL), tmp_path / "m.safetensors", architecture="x", model_args={"norm": object()})
    assert list(tmp_path.iterdir()) == []


def test_extra_keys_with_a_meaning_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="architecture"):
        save_checkpoint(VisionTransformer(**SMALL), tmp_path / "m.safetensors", architecture="x", extra={"architecture": "y"})


def test_metadata_builds_no_other_class(tmp_path) -> None:
    path = save_checkpoint(
        VisionTransformer(**SMALL), tmp_path / "m.safetensors", architecture="os.system", model_args={"command": "true"}
    )
    with pytest.raises(CheckpointError, match=r"no architecture of timm|differ|refused, its model argument"):
        load_model(path)
