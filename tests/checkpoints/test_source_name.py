"""What checkpoints are called after their files."""

from pathlib import Path

import pytest

from overfocus.checkpoints.source_name import source_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("runs/deit_ti.pth", "deit_ti"),
        ("tapadl_fan_base.pth.tar", "tapadl_fan_base"),
        (Path("trained/tap/model.safetensors"), "tap"),
        ("trained/tap/model_best.pth.tar", "tap"),
        ("best.pth", "best"),
        ("hub/dinov2-small", "dinov2-small"),
        ("vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224.augreg_in21k"),
        ("weights-0.5.ckpt", "weights-0.5"),
    ],
)
def test_names(source: str | Path, name: str) -> None:
    assert source_name(source) == name
