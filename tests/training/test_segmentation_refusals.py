"""What a training of a segmentation model refuses, each in one line."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from overfocus.datasets import is_segmented
from overfocus.errors import OverfocusError
from overfocus.training.train import Training

Train = Callable[..., Training]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "detection"}, "task must be classification or segmentation, got 'detection'"),
        ({"objective": "mae"}, "objective mae trains no segmentation"),
        ({"recipe": "fan"}, "mixup changes images but not their masks"),
        ({"changes": {"erasing": 0.2}}, "erasing changes images but not their masks"),
        ({"model": "vit_tiny_patch16_225", "model_args": {}}, "no architecture 'vit_tiny_patch16_225'; the nearest are vit_tiny"),
        ({"model": "resnet18", "model_args": {}, "changes": {"adl": 1}}, "adl: no layer of SegmentationModel attends"),
        ({"model_args": {"deepness": 3}}, "VisionTransformer_segformer cannot be built with"),
        ({"task": "classification"}, "holds pictures with masks; train on them with --task segmentation"),
        ({"class_names": ["a"]}, "expected from 2 to 254 classes, got 1"),
        ({"changes": {"resize_scale": [0, 1]}}, "resize_scale must be above 0 and at most 16, got 0.0"),
        ({"changes": {"interpolation": "cubist"}}, "no interpolation 'cubist' for segmentation; there are"),
        ({"changes": {"resize_scale": [2, 1]}}, "resize_scale must go from small to large, got 2.0 to 1.0"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(train_masks: Train, options: dict[str, Any], words: str) -> None:
    with pytest.raises(OverfocusError, match=re.escape(words)) as caught:
        train_masks(**options)
    assert "\n" not in str(caught.value)


def test_a_segmentation_model_is_no_classifier(train_masks: Train, shapes_folder: Path) -> None:
    with pytest.raises(OverfocusError, match="is a segmentation model; train it with --task segmentation"):
        train_masks(task="classification", data=shapes_folder, model="VisionTransformer_segformer", recipe="small")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((40, 47), np.uint8), "its picture's 48×40 pixels, got 47×40"),
        (np.full((40, 48), 3, np.uint8), "holds 3, which is none of the 3 classes"),
        (np.zeros((40, 48, 3), np.uint8), "got colours (RGB)"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_mask_that_does_not_fit_is_named(
    train_masks: Train, squares: Path, tmp_path: Path, mask: Any, words: str, split: str
) -> None:
    data = shutil.copytree(squares, tmp_path / "data")
    Image.fromarray(mask).save(data / "masks" / split / "3.png")
    assert is_segmented(data)
    with pytest.raises(OverfocusError, match=re.escape(words)) as caught:
        train_masks(data=data)
    assert str(caught.value).startswith(str(data / "masks" / split / "3.png"))
    assert "\n" not in str(caught.value)


def test_other_settings_do_not_continue_a_training(train_masks: Train) -> None:
    training = train_masks()
    settings = json.loads((training.path / "training.json").read_text())["settings"]
    assert settings["task"] == "segmentation"
    with pytest.raises(OverfocusError, match="photometric True there, False asked for"):
        train_masks(changes={"photometric": False})
