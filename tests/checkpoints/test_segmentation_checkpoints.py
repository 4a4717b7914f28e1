"""Segmentation models over any backbone of timm, saved and loaded by the name of the backbone and `_segformer`."""

from pathlib import Path
from typing import Any

import pytest
import torch

import overfocus
from overfocus.checkpoints.build import create, is_architecture
from overfocus.checkpoints.metadata import save_checkpoint
from overfocus.errors import CheckpointError
from overfocus.models import add_tap
from overfocus.preprocessing import Preprocess

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}


def save(path: Path, name: str, arguments: dict[str, Any], tap: dict[str, Any] | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    model = create(name, arguments)
    if tap is not None:
        add_tap(model, **tap)
    channels = arguments.get("in_chans", 3)
    preprocess = Preprocess((channels, 32, 32), (0.4,) * channels, (0.3,) * channels, crop_pct=1.0)
    names = [f"class {number}" for number in range(arguments["num_classes"])]
    save_checkpoint(
        model, path, architecture=name, model_args=arguments, tap=tap, class_names=names, class_colours=[[9, 8, 7]] * len(names),
        preprocess=preprocess,
    )  # fmt: skip
    return model.eval()


@pytest.mark.parametrize(
    ("name", "arguments", "tap"),
    [
        ("VisionTransformer_segformer", VIT, None),
        ("VisionTransformer_segformer", VIT | {"in_chans": 1}, {"branches": 3}),
        ("swin_tiny_patch4_window7_224_segformer", {"img_size": 32, "num_classes": 4, "depths": [1, 1, 1, 1]}, {"branches": 2}),
        ("pvt_v2_b0_segformer", {"num_classes": 2}, None),
    ],
)
def test_a_saved_model_is_built_again(tmp_path: Path, name: str, arguments: dict[str, Any], tap: dict[str, Any] | None) -> None:
    model = save(tmp_path / "model.safetensors", name, arguments, tap)
    loaded = overfocus.load_model(tmp_path / "model.safetensors")
    assert (loaded.name, loaded.found_by, loaded.num_classes) == (name, "metadata", arguments["num_classes"])
    assert (loaded.input_size, loaded.crop_pct) == ((arguments.get("in_chans", 3), 32, 32), 1.0)
    assert (loaded.missing_keys, loaded.unexpected_keys, loaded.notes) == ([], [], ())
    assert loaded.class_names == [f"class {number}" for number in range(arguments["num_classes"])]
    assert loaded.class_colours == [[9, 8, 7]] * arguments["num_classes"]
    images = torch.randn(2, *loaded.input_size)
    assert torch.equal(loaded.model(images), model(images))


def test_position_tables_of_the_backbone_are_resampled(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", "VisionTransformer_segformer", VIT)
    loaded = overfocus.load_model(tmp_path / "model.safetensors", image_size=64)
    assert loaded.input_size == (3, 64, 64)
    assert loaded.notes == ("position tables resampled: backbone.model.pos_embed (1, 17, 16) → (1, 65, 16)",)
    assert loaded.model(torch.randn(1, 3, 64, 64)).shape == (1, 3, 8, 8)


def test_names_of_segmentation_models() -> None:
    assert is_architecture("VisionTransformer_segformer")
    assert is_architecture("tap_fan_base_16_p4_hybrid_segformer")
    assert not is_architecture("vit_tiny_patch16_225_segformer")
    assert not is_architecture("_segformer")


def test_backbones_that_do_not_fit(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", "resnet18_segformer", {"num_classes": 2})
    with pytest.raises(CheckpointError, match="resnet18_segformer, which has no attention weights between tokens"):
        overfocus.load_model(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="vit_tiny_patch16_224_segformer cannot be built with deepness=3"):
        overfocus.checkpoints.build.build("vit_tiny_patch16_224_segformer", {"deepness": 3})
