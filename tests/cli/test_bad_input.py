"""What is wrong with what was given is told in one line on standard error, with exit status 1 and no traceback."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from typer.testing import Result

Program = Callable[..., Result]
Maker = Callable[[Path], object]


class RunsCode:
    """A pickle of this makes a folder when it is loaded without care."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def small_state() -> dict[str, torch.Tensor]:
    return timm.create_model("test_vit").state_dict()


def write_truncated(path: Path) -> None:
    torch.save(small_state(), path)
    path.write_bytes(path.read_bytes()[:100_000])


def write_other_shapes(path: Path) -> None:
    state = small_state()
    state["blocks.0.attn.qkv.weight"] = torch.zeros(10, 7)
    torch.save({"arch": "test_vit", "state_dict": state}, path)


def write_nan(path: Path) -> None:
    state = small_state()
    state["blocks.0.attn.qkv.weight"][0] = float("nan")
    torch.save({"arch": "test_vit", "state_dict": state}, path)


BAD_CHECKPOINTS: dict[str, tuple[Maker, str]] = {
    "not a checkpoint": (lambda path: path.write_text("hello\n"), "text file"),
    "truncated": (write_truncated, "truncated"),
    "pickle that would run code": (lambda path: torch.save({"state_dict": RunsCode()}, path), "mkdir"),
    "CNN": (lambda path: torch.save(timm.create_model("resnet18").state_dict(), path), "no attention"),
    "shape mismatch": (write_other_shapes, "qkv"),
    "NaN weights": (write_nan, "NaN"),
}


def complaint(result: Result) -> str:
    """The one line of a failed command."""
    assert result.exit_code == 1, result.output + repr(result.exception)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("overfocus: ")
    return result.stderr


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
@pytest.mark.parametrize("command", ["inspect", "analyze"])
def test_bad_checkpoint(name: str, command: str, overfocus: Program, photos: Path) -> None:
    make, expected = BAD_CHECKPOINTS[name]
    make(Path("bad.pth"))
    text = complaint(overfocus(command, "bad.pth", *(["--images", photos] if command == "analyze" else [])))
    assert expected in text
    assert "bad.pth" in text
    assert not Path("executed").exists()


def test_missing_checkpoint(overfocus: Program) -> None:
    assert "missing.pth" in complaint(overfocus("inspect", "missing.pth"))


def test_unknown_architecture_suggests_the_nearest(overfocus: Program, checkpoint: Path) -> None:
    assert "vit_tiny_patch16_224" in complaint(overfocus("inspect", checkpoint, "--model", "vit_tiny_patch_16_224"))


def test_empty_folder(overfocus: Program, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no images" in complaint(overfocus("analyze", checkpoint, "--images", "empty"))


def test_missing_images(overfocus: Program, checkpoint: Path) -> None:
    assert "no such file" in complaint(overfocus("analyze", checkpoint, "--images", "nowhere"))


def test_text_named_jpg(overfocus: Program, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_text("I am no image")
    assert "picture.jpg" in complaint(overfocus("analyze", checkpoint, "--images", "picture.jpg"))


def test_huge_image(overfocus: Program, checkpoint: Path, tmp_path: Path) -> None:
    Image.new("1", (30_000, 30_000)).save(tmp_path / "huge.png")
    assert "30000×30000" in complaint(overfocus("analyze", checkpoint, "--images", "huge.png"))


def bad_among_good(photos: Path) -> None:
    image = photos / "cat" / "truncated.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(image)
    image.write_bytes(image.read_bytes()[:700])


def test_bad_image_among_good_ones_is_left_out_and_counted(overfocus: Program, checkpoint: Path, photos: Path) -> None:
    bad_among_good(photos)
    result = overfocus(
        "analyze", checkpoint, "--images", photos, "--corruption", "fog", "--severity", 3, "--workers", 0, "--no-report"
    )
    assert result.exit_code == 0, result.stderr
    assert "3 images, 1 left out" in result.stdout


def test_strict_stops_at_a_bad_image(overfocus: Program, checkpoint: Path, photos: Path) -> None:
    bad_among_good(photos)
    assert "truncated.jpg" in complaint(overfocus("analyze", checkpoint, "--images", photos, "--strict", "--workers", 0))


def test_unknown_corruption_lists_the_valid_ones(overfocus: Program, checkpoint: Path, photos: Path) -> None:
    text = complaint(overfocus("analyze", checkpoint, "--images", photos, "--corruption", "gausian_noise"))
    assert "did you mean 'gaussian_noise'" in text
    assert "jpeg_compression" in text


@pytest.mark.parametrize("severity", [0, 6])
def test_severity_out_of_range(severity: int, overfocus: Program, checkpoint: Path, photos: Path) -> None:
    assert f"got {severity}" in complaint(overfocus("analyze", checkpoint, "--images", photos, "--severity", severity))


def test_output_not_writable(overfocus: Program, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output in ("file", "file/run", "/proc/run"):
        text = complaint(overfocus("analyze", checkpoint, "--images", photos, "--output", output))
        assert output in text
        assert "choose another output" in text


def test_output_holds_another_run(overfocus: Program, checkpoint: Path, photos: Path) -> None:
    common = ["analyze", checkpoint, "--images", photos, "--severity", 3, "--workers", 0, "--no-report", "--output", "run"]
    assert overfocus(*common, "--corruption", "fog").exit_code == 0
    text = complaint(overfocus(*common, "--corruption", "contrast"))
    assert "another run" in text
    assert "--overwrite" in text
    assert overfocus(*common, "--corruption", "contrast", "--overwrite").exit_code == 0


def test_report_of_no_run(overfocus: Program, photos: Path) -> None:
    assert str(photos) in complaint(overfocus("report", photos))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["analyse"], "No such command 'analyse'"),
        (["--colour", "analyze"], "No such option"),
        (["analyze", "--colour"], "; see overfocus analyze --help\n"),
        (["analyze", "--severity", "high"], "Invalid value for '--severity'"),
        (["analyze", "--layers", "first"], "--layers"),
        (["report"], "Missing argument"),
        (["list"], "Missing argument"),
        (["inspect", "a", "b"], "; see overfocus inspect --help\n"),
        (["train", "photos", "--epochs"], "'--epochs' requires an argument"),
    ],
)
def test_wrong_usage_is_told_in_one_line(arguments: list[str], words: str, overfocus: Program) -> None:
    result = overfocus(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("overfocus: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_command_prints_the_help(overfocus: Program) -> None:
    result = overfocus()
    assert "Usage:" in result.output
    assert "analyze" in result.output
