"""Descriptions from outside: what is right is read, all else is refused in one line."""

import json
import subprocess
import sys

import pytest

from overfocus import RunError, TrainingError
from overfocus.runs.description import (
    ComparisonDescription,
    RunDescription,
    TrainingDescription,
    decode_description,
    encode_description,
    inside,
    read_description,
)

LAYER = {"layer": 0, "module": "blocks.0.attn", "kind": "global", "queries": 17, "keys": 17, "key_prefix_tokens": 1}
MINIMAL = {
    "format": 2,
    "overfocus": "0.1.0",
    "status": "running",
    "done": 0,
    "checkpoint": {"name": "vit", "source": "vit.pth", "input_size": [3, 32, 32]},
    "settings": {"seed": -3, "layers": [-1]},
    "images": [{"image": 0, "name": "a.png"}],
    "layers": [LAYER],
    "something else": {"of a later version": 1},
}


def write(folder, content):
    path = folder / "run.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_is_left_out_has_its_default(tmp_path):
    description = read_description(write(tmp_path, MINIMAL | {"settings": {"seed": -3, "top_fraction": 0.5}}), RunDescription)
    assert (description.kind, description.complete, description.segmented) == ("analysis", False, False)
    assert description.checkpoint.input_size == (3, 32, 32)
    (layer,) = description.layers
    assert (layer.tokens, layer.top, layer.uniform_share) == (16, 8, 0.5)
    assert layer.label == "0 · blocks.0.attn"
    assert description.relative_depth(layer) == 0.5


def test_what_is_written_is_read(tmp_path):
    description = read_description(write(tmp_path, MINIMAL), RunDescription)
    assert decode_description(encode_description(description), RunDescription, tmp_path) == description


def changed(*keys_and_value):
    """MINIMAL with one value changed: `changed("settings", "seed", "x")`."""
    *keys, last, value = keys_and_value
    content = json.loads(json.dumps(MINIMAL))
    place = content
    for key in keys:
        place = place[key]
    place[last] = value
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ("\x00\xff", "cannot be read"),
        ('{"scripts": {}}', "something else"),
        ('{"format": 99}', "written in format 99, this version reads formats 1 to 2"),
        ('{"format": "\\u001b[31m"}', r"written in format \\x1b"),
        ("[" * 100_000, "cannot be read"),
        ('{"format": 2, "x": ' + "[" * 100_000, "cannot be read"),
        (changed("done", -1), "whole number"),
        (changed("done", 2.5), "done"),
        (changed("done", 10**30), "cannot be read"),
        (changed("done", 2**60), "whole number"),
        (changed("status", "finished"), "status"),
        (changed("checkpoint", None), "checkpoint"),
        (changed("checkpoint", "input_size", [3, 32]), "input_size"),
        (changed("checkpoint", "input_size", [3, -32, 32]), "input_size"),
        (changed("images", 0, "image", 5), "numbered"),
        (changed("displayed", [1]), "displayed"),
        (changed("layers", 0, "keys", 1), "prefix tokens"),
        (changed("settings", "top_fraction", 0), "top_fraction"),
        (changed("settings", "top_fraction", float("nan")), "cannot be read"),
        (changed("noise", {"js_divergence": [0, 0]}), "noise"),
        (json.dumps(MINIMAL).replace("-3", "1e999"), "cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, content, words):
    with pytest.raises(RunError, match=words) as raised:
        read_description(write(tmp_path, content), RunDescription)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


def test_required_fields_are_named(tmp_path):
    for name in ("status", "done", "checkpoint", "settings", "images"):
        with pytest.raises(RunError, match=name):
            read_description(write(tmp_path, {key: value for key, value in MINIMAL.items() if key != name}), RunDescription)


def test_no_file(tmp_path):
    with pytest.raises(RunError, match="no such file; expected the description of a run"):
        read_description(tmp_path / "run.json", RunDescription)
    with pytest.raises(TrainingError, match="expected the description of a training, but this is"):
        read_description(tmp_path, TrainingDescription)


def test_other_descriptions(tmp_path):
    settings = {"recipe": {"epochs": 1}, "architecture": {"name": "vit"}, "seed": 1, "images": 9, "input_size": [3, 8, 8]}
    training = {"format": 1, "overfocus": "0.1.0", "status": "complete", "settings": settings}
    assert read_description(write(tmp_path, training), TrainingDescription).settings.input_size == (3, 8, 8)
    for wrong in ({"seed": "one"}, {"images": -1}, {"input_size": [3, 8]}, {"architecture": {}}, {"recipe": []}):
        with pytest.raises(TrainingError, match=next(iter(wrong))):
            read_description(write(tmp_path, training | {"settings": settings | wrong}), TrainingDescription)
    with pytest.raises(TrainingError, match="settings"):
        read_description(write(tmp_path, training | {"settings": 5}), TrainingDescription)
    model = {"name": "a", "run": "runs/a"}
    comparison = {"format": 2, "overfocus": "0.1.0", "baseline": "a", "models": [model, model], "images": 3, "resamples": 10}
    comparison["table"] = [{"metric": "gini", "difference": -0.1, "count": 3, "low": None}]
    found = read_description(write(tmp_path, comparison), ComparisonDescription)
    assert found.table[0]["difference"] == -0.1
    with pytest.raises(RunError, match="at least two models"):
        read_description(write(tmp_path, comparison | {"models": [model]}), ComparisonDescription)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "maps/../../a", "", "a\0b", "link/a"])
def test_names_stay_inside_their_folder(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    with pytest.raises(RunError):
        inside(tmp_path / "run", name)
    assert inside(tmp_path / "run", "maps/a.npz") == tmp_path / "run" / "maps" / "a.npz"


def test_importing_the_types_imports_neither_torch_nor_msgspec():
    program = (
        "import sys, overfocus.runs.description; print([name for name in ('torch', 'msgspec', 'pandas') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
