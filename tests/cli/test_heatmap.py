"""`overfocus heatmap` writes images that show what they should, and tells in one line what it cannot."""

import json

import numpy as np
import pytest
from PIL import Image

from overfocus.figures.style import lookup_table


def opened(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_one_file_per_image(overfocus, checkpoint, photos):
    result = overfocus("heatmap", checkpoint, photos, "--layer", "0", "--output", "maps", "--json")
    assert result.exit_code == 0, result.output
    paths = json.loads(result.stdout)
    assert paths == [f"maps/{name}-received-layer-0.png" for name in ("one", "two", "three")]
    assert all(opened(path).std() > 10 for path in paths)


def test_bundled_model_and_every_option(overfocus, photos):
    from overfocus.samples import sample_checkpoint

    image = photos / "dog" / "three.png"
    drawn = {}
    for options in (
        ["--method", "received"],
        ["--method", "received", "--corruption", "fog"],
        ["--method", "row", "--query", "class", "--layer", "-1"],
        ["--method", "row", "--query", "2,3", "--layer", "-1"],
        ["--method", "row", "--query", "2,3", "--layer", "-1", "--head", "1"],
        ["--method", "rollout"],
        ["--method", "rollout", "--head-fusion", "max", "--discard-ratio", "0.9", "--output", "other"],
        ["--method", "gradient-rollout"],
        ["--method", "grad-cam", "--layer", "-1", "--class", "3"],
        ["--head", "all", "--layer", "all"],
    ):
        result = overfocus("heatmap", sample_checkpoint(), image, *options)
        assert result.exit_code == 0, result.output
        drawn[result.stdout.strip()] = opened(result.stdout.strip())
    assert len(drawn) == 10
    assert "overfocus-heatmaps/three-received-heads.png" in drawn
    assert any(path.endswith("-for-3.png") for path in drawn)
    assert drawn["overfocus-heatmaps/three-received-fog-3.png"].shape[0] > drawn["overfocus-heatmaps/three-received.png"].shape[0]
    last = max(int(path.rpartition("layer-")[2].split("-")[0].split(".")[0]) for path in drawn if "layer-" in path)
    patches = [drawn[f"overfocus-heatmaps/three-row-2-3-layer-{last}{head}.png"] for head in ("", "-head-1")]
    assert not np.array_equal(*patches)


def test_the_colour_scale_is_in_the_image(overfocus, checkpoint, photos):
    path = overfocus("heatmap", checkpoint, photos / "dog", "--layer", "-1").stdout.strip()
    pixels = opened(path)
    table = lookup_table("viridis").astype(int)
    strip = pixels[:, int(pixels.shape[1] * 0.8) :]
    for place in (0, 64, 128, 192, 255):
        assert (np.abs(strip - table[place]).max(2) <= 3).any()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--layer", "99"], 1, "layer must be between"),
        (["--head", "99"], 1, "head must be between"),
        (["--method", "row", "--query", "99,0"], 1, "expected a query from 0,0"),
        (["--corruption", "fgo"], 1, "did you mean 'fog'"),
        (["--severity", "6"], 1, "--severity must be at least 1 and at most 5, got 6"),
        (["--method", "row", "--query", "middle"], 2, "expected ROW,COL"),
        (["--method", "rollout", "--layer", "1"], 1, "rollout goes through all layers"),
        (["--method", "gradcam"], 1, "did you mean grad-cam?"),
        (["--class", "3"], 1, "received is of no class"),
        (["--method", "grad-cam", "--class", "9999"], 1, "expected a class from 0"),
        (["--method", "grad-cam", "--class", "giraffe-like"], 1, "expected"),
        (["--head", "first"], 2, "expected a whole number or all"),
        (["--layer", "1.5"], 2, "expected a whole number or all, got '1.5'"),
    ],
)
def test_trouble_in_one_line(overfocus, checkpoint, photos, options, status, message):
    result = overfocus("heatmap", checkpoint, photos / "dog", *options)
    assert result.exit_code == status, result.output
    assert message in " ".join(result.stderr.split())
    assert status == 2 or result.stderr.count("\n") == 1


def test_missing_image_and_folder_in_the_way(overfocus, checkpoint, photos):
    assert "no such file" in overfocus("heatmap", checkpoint, "nowhere.png").stderr
    (photos / "file").write_text("")
    result = overfocus("heatmap", checkpoint, photos / "dog", "--layer", "0", "--output", photos / "file")
    assert result.exit_code == 1
    assert "a file of this name already exists" in result.stderr


def test_names_are_no_formulas(overfocus, checkpoint, photos):
    odd = (photos / "dog" / "three.png").rename(photos / r"$\frac{.png")
    result = overfocus("heatmap", checkpoint, odd, "--layer", "0")
    assert result.exit_code == 0, repr(result.exception)
