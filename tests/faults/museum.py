"""Everything that can be wrong with a file, made once: checkpoints, images, runs, recipes, data."""

import io
import json
import os
import pickle
import shutil
import socket
import struct
import zipfile
import zlib
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


class Calls:
    """A pickle of this calls a function when it is loaded without care."""

    def __init__(self, called: Callable[..., object], *arguments: object) -> None:
        self.about = called, arguments

    def __reduce__(self) -> Any:
        return self.about


CONFIGURATIONS = {
    "config_list": "[]",
    "config_open": "{",
    "config_binary": "\xff\xfe",
    "config_nested": "[" * 100_000,
    "config_number": '{"architecture": 5}',
    "config_depth": '{"architecture": "vit_tiny_patch16_224", "model_args": {"depth": 1000000000}}',
    "config_std": '{"architecture": "test_vit", "pretrained_cfg": {"std": [0, 0, 0]}}',
    "config_crop": '{"architecture": "test_vit", "pretrained_cfg": {"crop_pct": 1e-7}}',
}


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
    zipped, deflated = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(30_000_000))
    itself: dict[str, Any] = {}
    itself["itself"] = itself
    doubled: list[Any] = []
    for _ in range(60):  # 2⁶⁰ entries if they were counted
        doubled = [doubled, doubled]
    header = json.loads(safetensors_bytes(state)[8:].partition(b"}}")[0] + b"}}")
    body = safetensors_bytes(state)[-sum(tensor.nbytes for tensor in state.values()) :]

    def with_header(**changes: Any) -> bytes:
        return header_of(json.dumps(header | changes).encode()) + body

    def cast(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {name: tensor.to(dtype) for name, tensor in state.items()}

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
        "bomb.pth": deflated.getvalue(),
        "itself.pth": torch_bytes(itself),
        "doubled.pth": torch_bytes({"state_dict": {"a": doubled}}),
        "large_key.pth": torch_bytes(dict(state) | {"k" * 5_000_000: torch.zeros(2)}),
        "surrogate_key.pth": torch_bytes(dict(state) | {"\ud800": torch.zeros(2)}),
        "number_keys.pth": torch_bytes({1: torch.zeros(2), None: 3}),
        "float8.pth": torch_bytes(cast(torch.float8_e4m3fn)),
        "integers.pth": torch_bytes(cast(torch.int32)),
        "complex_state.pth": torch_bytes(cast(torch.complex64)),
        "without_data.pth": torch_bytes({name: tensor.to("meta") for name, tensor in state.items()}),
        "infinite.pth": torch_bytes({"arch": "test_vit", "state_dict": {name: tensor / 0 for name, tensor in state.items()}}),
        "expanded.pth": torch_bytes({"arch": "test_vit", "state_dict": {"a": torch.zeros(1).expand(10**10)}}),
        "deep_model.pth": torch_bytes({"arch": "vit_tiny_patch16_224", "model_args": {"depth": 10**9}, "state_dict": state}),
        "no_heads.pth": torch_bytes({"arch": "vit_tiny_patch16_224", "model_args": {"num_heads": 0}, "state_dict": state}),
        "metadata_number.safetensors": with_header(__metadata__=5),
        "metadata_nested.safetensors": with_header(__metadata__={"architecture": "test_vit", "model_args": "[" * 9000}),
        "metadata_std.safetensors": with_header(__metadata__={"architecture": "test_vit", "std": "[0, 0, 0]"}),
        "metadata_crop.safetensors": with_header(__metadata__={"architecture": "test_vit", "crop_pct": "1e-7"}),
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
    for kind, called, argument in (("eval", eval, "1"), ("system", os.system, "mkdir executed"), ("open", open, "executed")):
        for protocol in (2, 4):
            content = {"state_dict": Calls(called, argument)}
            (folder / f"{kind}_{protocol}.pth").write_bytes(torch_bytes(content, pickle_protocol=protocol))
            (folder / f"{kind}_{protocol}_bare.pth").write_bytes(pickle.dumps(content, protocol))
    for name, config in CONFIGURATIONS.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes(config.encode("latin-1"))
        (folder / name / "model.safetensors").write_bytes(safetensors_bytes(state))
    (folder / "config_pipe").mkdir()
    os.mkfifo(folder / "config_pipe" / "config.json")
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


HOSTILE = (
    "bomb.pth itself.pth doubled.pth large_key.pth surrogate_key.pth number_keys.pth float8.pth integers.pth complex_state.pth "
    "without_data.pth infinite.pth expanded.pth deep_model.pth no_heads.pth metadata_number.safetensors "
    "metadata_nested.safetensors metadata_std.safetensors metadata_crop.safetensors eval_2.pth "
    "eval_4.pth eval_2_bare.pth system_2.pth system_4.pth system_4_bare.pth open_2.pth open_2_bare.pth open_4.pth config_list "
    "config_open config_binary config_nested config_number config_depth config_std config_crop config_pipe"
).split()
"""Given to `inspect` alone; the other commands load in the same way."""


def png(width: int, height: int) -> bytes:
    """A file that says that it is an image of this size, and holds a few bytes of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def make_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    good = io.BytesIO()
    Image.fromarray(pixels).save(good, "JPEG")
    for name in ("photos/cat/one.png", "photos/dog/two.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    files = {
        "text.jpg": b"I am no image",
        "empty.jpg": b"",
        "truncated.jpg": good.getvalue()[:300],
        "ended_early.jpg": good.getvalue()[:-300] + b"\xff\xd9",
        "ended_early.png": png(40, 24),
        "html.png": b"<html></html>",
        "random.png": np.random.default_rng(1).bytes(2000),
        "header.png": b"\x89PNG\r\n\x1a\n" + bytes(40),
        "list_of_missing.txt": b"nowhere.png\nnor_here.png\n",
        "list_of_nothing.txt": b"\n\n",
        "list_of_pipes.txt": b"pipe.png\n/dev/zero\n",
        "empty.png": png(0, 5),
        "endless.png": png(2**31 - 1, 2**31 - 1),
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "twice.json": b'{"cat": 0, "dog": 1, "cat": 1}',
        "long_cell.csv": b"cat," + b"9" * 300_000 + b"\n",
        "binary_list.txt": np.random.default_rng(2).bytes(500),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    Image.new("1", (30_000, 30_000)).save(folder / "huge.png")
    for place in ("tree/fog/1/cat", "tree/fog/0/cat", "tree/snow/1/cat"):  # severities are 1 to 5
        (folder / place).mkdir(parents=True)
        shutil.copy(folder / "photos/cat/one.png", folder / place)
    (folder / "videos/noise/0").mkdir(parents=True)
    (folder / "videos/noise/0/video.mp4").write_bytes(b"no video")
    (folder / "no_images").mkdir()
    (folder / "no_images" / "notes.md").write_text("hello")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")


BAD_IMAGES = (
    "text.jpg empty.jpg truncated.jpg ended_early.jpg ended_early.png html.png random.png header.png list_of_missing.txt "
    "list_of_nothing.txt binary_list.txt "
    "list_of_pipes.txt huge.png empty.png endless.png postscript.png no_images folder.png loop.png pipe.png missing.png /dev/zero"
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
    table = pd.read_parquet(sound / "metrics" / "part-00000.parquet")
    for name, column, value in (
        ("image", "image", 99),
        ("layer", "layer", -5),
        ("severity", "severity", 77),
        ("foreign", "corruption", "snow"),
    ):
        shutil.copytree(sound, folder / f"part_{name}")
        table.assign(**{column: value}).to_parquet(folder / f"part_{name}" / "metrics" / "part-00000.parquet")
    shutil.copytree(sound, folder / "part_predictions")
    shutil.copy(sound / "metrics" / "part-00000.parquet", folder / "part_predictions" / "predictions" / "part-00000.parquet")
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
BAD_PARTS = (
    "part_empty part_text part_truncated part_half part_missing part_image part_layer part_severity part_foreign part_predictions"
).split()
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
    "twice": "epochs: 1\nepochs: 300\nbatch_size: 2\nlearning_rate: 0.1",
    "octal": "epochs: 010\nbatch_size: 2\nlearning_rate: 0.1",
    "minutes": "epochs: 1:30\nbatch_size: 2\nlearning_rate: 0.1",
    "underscore": "epochs: 1_0\nbatch_size: 2\nlearning_rate: 0.1",
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
