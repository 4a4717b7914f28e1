"""Everything that can be wrong with a file, made once: checkpoints, images, runs, recipes, data."""

import io
import json
import os
import pickle
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes

ESCAPE = "\x1b[31m\u202e"
"""What takes over a terminal if it is printed as it is."""


class RunsCode:
    """A pickle of this makes a folder when it is loaded without care."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("executed",)


def torch_bytes(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def header_of(content: bytes, length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    return struct.pack("<Q", len(content) if length is None else length) + content


def nested(depth: int) -> Any:
    made: Any = []
    for _ in range(depth):
        made = [made]
    return made


def make_checkpoints(folder: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    good = torch_bytes({"arch": "test_vit", "state_dict": state})
    resnet = timm.create_model("resnet18").state_dict()
    poisoned = dict(state) | {"blocks.0.attn.qkv.weight": torch.full_like(state["blocks.0.attn.qkv.weight"], float("nan"))}
    misshapen = dict(state) | {"blocks.0.attn.qkv.weight": torch.zeros(10, 7)}
    circle: list[Any] = []
    circle.append(circle)
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("readme.txt", "hello")
    files = {
        "empty.pth": b"",
        "text.pth": b"hello\n",
        "html.pth": b"<!DOCTYPE html><html>Not found</html>",
        "lfs.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "json.pth": json.dumps({"a": 1}).encode(),
        "random.pth": np.random.default_rng(0).bytes(5000),
        "zeros.pth": bytes(5000),
        "truncated.pth": good[: len(good) // 2],
        "short.pth": good[:100],
        "zip.pth": zipped.getvalue(),
        "code.pth": torch_bytes({"state_dict": RunsCode()}),
        "old_code.pth": torch_bytes({"state_dict": RunsCode()}, _use_new_zipfile_serialization=False),
        "bare_pickle.pth": pickle.dumps({"state_dict": RunsCode()}),
        "number.pth": torch_bytes(3),
        "list.pth": torch_bytes([1, 2, 3]),
        "nothing.pth": torch_bytes({}),
        "no_tensors.pth": torch_bytes({"epoch": 3, "state_dict": {}}),
        "circle.pth": torch_bytes({"state_dict": circle}),
        "deep.pth": torch_bytes({"state_dict": nested(300)}),
        "cnn.pth": torch_bytes(resnet),
        "shapes.pth": torch_bytes({"arch": "test_vit", "state_dict": misshapen}),
        "nan.pth": torch_bytes({"arch": "test_vit", "state_dict": poisoned}),
        "long_keys.pth": torch_bytes({"state_dict": {"k" * 200_000: torch.zeros(2)}}),
        "escape_keys.pth": torch_bytes({"state_dict": {f"{ESCAPE}weight": torch.zeros(2)}}),
        "complex.pth": torch_bytes({"state_dict": {"weight": torch.zeros(4, 4, dtype=torch.complex64)}}),
        "empty.safetensors": b"",
        "huge_header.safetensors": header_of(b"{}", 2**60),
        "negative.safetensors": header_of(b"{}", 2**64 - 1),
        "no_json.safetensors": header_of(b"hello"),
        "deep.safetensors": header_of(b"[" * 5000),
        "list.safetensors": header_of(b"[]"),
        "offsets.safetensors": header_of(json.dumps({"a": tensor | {"data_offsets": [0, 8000]}}).encode()) + bytes(8),
        "shape.safetensors": header_of(json.dumps({"a": tensor | {"shape": [10**9, 10**9]}}).encode()) + bytes(8),
        "dtype.safetensors": header_of(json.dumps({"a": tensor | {"dtype": "X99"}}).encode()) + bytes(8),
        "truncated.safetensors": safetensors_bytes(state)[:4000],
        "other.safetensors": safetensors_bytes({"weight": torch.zeros(2)}),
        "array.npz": b"PK\x03\x04 no archive",
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "good.pth").write_bytes(good)
    (folder / "empty_folder").mkdir()
    os.mkfifo(folder / "pipe.pth")
    (folder / "folder.pth").mkdir()
    (folder / "loop.pth").symlink_to("loop.pth")
    (folder / "dangling.pth").symlink_to("nowhere.pth")
    here = Path.cwd()
    os.chdir(folder)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket.pth")
    finally:
        os.chdir(here)


BAD_CHECKPOINTS = (
    "empty.pth text.pth html.pth lfs.pth json.pth random.pth zeros.pth truncated.pth short.pth zip.pth code.pth old_code.pth "
    "bare_pickle.pth number.pth list.pth nothing.pth no_tensors.pth circle.pth deep.pth cnn.pth shapes.pth nan.pth "
    "long_keys.pth escape_keys.pth complex.pth empty.safetensors huge_header.safetensors negative.safetensors "
    "no_json.safetensors deep.safetensors list.safetensors offsets.safetensors shape.safetensors dtype.safetensors "
    "truncated.safetensors other.safetensors array.npz empty_folder pipe.pth folder.pth loop.pth dangling.pth socket.pth "
    "missing.pth"
).split()


def make_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    good = io.BytesIO()
    Image.fromarray(pixels).save(good, "JPEG")
    for name in ("photos/cat/one.png", "photos/dog/two.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    files = {
        "text.jpg": b"I am no picture",
        "empty.jpg": b"",
        "truncated.jpg": good.getvalue()[:300],
        "html.png": b"<html></html>",
        "random.png": np.random.default_rng(1).bytes(2000),
        "header.png": b"\x89PNG\r\n\x1a\n" + bytes(40),
        "list_of_missing.txt": b"nowhere.png\nnor_here.png\n",
        "list_of_nothing.txt": b"\n\n",
        "binary_list.txt": np.random.default_rng(2).bytes(500),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    Image.new("1", (30_000, 30_000)).save(folder / "huge.png")
    (folder / "no_images").mkdir()
    (folder / "no_images" / "notes.md").write_text("hello")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")


BAD_IMAGES = (
    "text.jpg empty.jpg truncated.jpg html.png random.png header.png list_of_nothing.txt binary_list.txt "
    "huge.png no_images folder.png loop.png missing.png /dev/zero"
).split()


def make_runs(folder: Path, write_run: Callable[..., Path]) -> None:
    sound = write_run(folder / "run", images=3, layers=2, displayed=1)
    text = (sound / "run.json").read_text()
    info = json.loads(text)
    changed = {
        "empty": "",
        "text": "hello",
        "list": "[]",
        "foreign": '{"name": "npm package", "version": "1.0.0"}',
        "newer": json.dumps(info | {"format": 99}),
        "format_text": json.dumps(info | {"format": "one"}),
        "no_layers": json.dumps(info | {"layers": "all"}),
        "no_images": json.dumps({key: value for key, value in info.items() if key != "images"}),
        "no_checkpoint": json.dumps(info | {"checkpoint": None}),
        "negative_done": json.dumps(info | {"done": -5}),
        "fraction_done": json.dumps(info | {"done": 1.5}),
        "huge_done": text.replace('"done": 3', '"done": 1' + "0" * 40),
        "infinite": text.replace('"done": 3', '"done": 1e999'),
        "deep": "[" * 100_000,
        "truncated_json": text[: len(text) // 2],
        "status": json.dumps(info | {"status": f"{ESCAPE}odd"}),
        "not_utf8": "",
    }
    for name, content in changed.items():
        shutil.copytree(sound, folder / f"run_{name}")
        (folder / f"run_{name}" / "run.json").write_text(content)
    (folder / "run_not_utf8" / "run.json").write_bytes(b"\xff\xfe" + text.encode())
    shutil.copytree(sound, folder / "run_pipe")
    (folder / "run_pipe" / "run.json").unlink()
    os.mkfifo(folder / "run_pipe" / "run.json")
    shutil.copytree(sound, folder / "run_folder")
    (folder / "run_folder" / "run.json").unlink()
    (folder / "run_folder" / "run.json").mkdir()

    part = (sound / "metrics" / "part-00000.parquet").read_bytes()
    other = io.BytesIO()
    pd.DataFrame({"a": [1]}).to_parquet(other)
    for name, content in {"empty": b"", "text": b"hello", "truncated": part[:-30], "half": part[: len(part) // 2]}.items():
        shutil.copytree(sound, folder / f"part_{name}")
        (folder / f"part_{name}" / "metrics" / "part-00000.parquet").write_bytes(content)
    shutil.copytree(sound, folder / "part_missing")
    shutil.rmtree(folder / "part_missing" / "metrics")

    arrays = next((sound / "maps").glob("image-*.npz"))
    content = arrays.read_bytes()
    objects = io.BytesIO()
    np.savez(objects, pictures=np.array([RunsCode()], dtype=object))
    for name, made in {
        "empty": b"", "text": b"hello", "truncated": content[:-40], "objects": objects.getvalue(),
        "checksum": content[:900] + bytes([content[900] ^ 255]) + content[901:],
    }.items():  # fmt: skip
        shutil.copytree(sound, folder / f"maps_{name}")
        (folder / f"maps_{name}" / "maps" / arrays.name).write_bytes(made)


BAD_RUNS = (
    "run_empty run_text run_list run_foreign run_newer run_format_text run_no_layers run_no_images run_no_checkpoint "
    "run_negative_done run_fraction_done run_huge_done run_infinite run_deep run_truncated_json run_status run_not_utf8 run_pipe "
    "run_folder photos missing good.pth"
).split()
BAD_PARTS = "part_empty part_text part_truncated part_half part_missing".split()
BAD_MAPS = "maps_empty maps_text maps_truncated maps_objects maps_checksum".split()

RECIPES = {
    "empty": "",
    "list": "- 1",
    "text": "hello",
    "open": "a: [",
    "alias": "a: &b [1]\nc: *b",
    "deep": "[" * 3000,
    "binary": "\x00\x01",
    "unknown": "epochs: 1\nbatch_size: 2\nlearning_rate: 0.1\nlearning_rat: 1",
    "missing": "epochs: 1",
    "both": "epochs: 1\niterations: 5\nbatch_size: 2\nlearning_rate: 0.1",
    "huge": "epochs: 1\nbatch_size: 1" + "0" * 30 + "\nlearning_rate: 0.1",
    "negative": "epochs: -1\nbatch_size: 2\nlearning_rate: 0.1",
    "infinite": "epochs: 1\nbatch_size: 2\nlearning_rate: .inf",
    "nan": "epochs: 1\nbatch_size: 2\nlearning_rate: .nan",
    "typed": "epochs: many\nbatch_size: 2\nlearning_rate: 0.1",
    "nested": "epochs: {a: 1}\nbatch_size: 2\nlearning_rate: 0.1",
    "escape": 'epochs: 1\nbatch_size: 2\nlearning_rate: 0.1\n"\\e[31m": 1',
    "python": "!!python/object/apply:os.mkdir [executed]",
}


def make_recipes(folder: Path) -> None:
    for name, text in RECIPES.items():
        (folder / f"recipe_{name}.yaml").write_text(text)
    (folder / "recipe_bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    (folder / "recipe_large.yaml").write_bytes(b"#" * 2_000_000)
    (folder / "recipe_folder.yaml").mkdir()
    os.mkfifo(folder / "recipe_pipe.yaml")


BAD_RECIPES = [f"recipe_{name}.yaml" for name in (*RECIPES, "bytes", "large", "folder", "pipe", "nowhere")]


def make_museum(folder: Path, write_run: Callable[..., Path]) -> Path:
    make_checkpoints(folder)
    make_images(folder)
    make_runs(folder, write_run)
    make_recipes(folder)
    return folder
