"""Files that want to run code, open other files or take the machine's memory: one line each, and nothing happens."""

import argparse
import collections
import contextlib
import datetime
import io
import json
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from overfocus import CheckpointError, load_model
from overfocus.checkpoints.read import plain_data

State = dict[str, Tensor]


def calling(module: str, name: str, *arguments: str) -> bytes:
    """A pickle, protocol 2, that calls a global by name with texts; importing nothing here."""
    stream = b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"("
    for argument in arguments:
        text = argument.encode()
        stream += b"X" + struct.pack("<I", len(text)) + text
    return stream + b"tR."


CALLS = {
    "os.system": ("os", "system", "touch {victim}"),
    "posix.system": ("posix", "system", "touch {victim}"),
    "nt.system": ("nt", "system", "touch {victim}"),
    "subprocess.Popen": ("subprocess", "Popen", "touch {victim}"),
    "subprocess.check_output": ("subprocess", "check_output", "touch {victim}"),
    "eval": ("builtins", "eval", "open('{victim}', 'w')"),
    "exec": ("builtins", "exec", "open('{victim}', 'w')"),
    "exec of Python 2": ("__builtin__", "execfile", "{victim}"),
    "open": ("builtins", "open", "{victim}", "w"),
    "io.open": ("io", "open", "{victim}", "w"),
    "import": ("importlib", "import_module", "antigravity"),
    "__import__": ("builtins", "__import__", "antigravity"),
    "getattr": ("builtins", "getattr", "os", "system"),
    "runpy": ("runpy", "run_path", "{victim}"),
    "pickle.loads": ("pickle", "loads", "x"),
    "torch.load": ("torch", "load", "{victim}"),
    "torch.hub.load": ("torch.hub", "load", "someone/evil", "model"),
    "torch.save": ("torch", "save", "x", "{victim}"),
    "numpy.save": ("numpy", "save", "{victim}", "x"),
    "ctypes": ("ctypes", "CDLL", "{victim}"),
    "shutil": ("shutil", "rmtree", "{victim}"),
    "method of a path": ("pathlib", "PosixPath.touch", "{victim}"),
    "timm": ("timm", "create_model", "resnet18"),
    "functools.partial": ("functools", "partial", "os.system"),
    "operator": ("operator", "attrgetter", "system"),
    "types": ("types", "FunctionType", "x"),
    "webbrowser": ("webbrowser", "open", "file://{victim}"),
    "pip": ("pip", "main", "install"),
    "a function that is not there": ("trainer.config", "load_and_run", "{victim}"),
}


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", CALLS)
def test_calls(kind: str, archive: bool, tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "evil.pth"
    module, name, *arguments = CALLS[kind]
    stream = calling(module, name, *[text.format(victim=victim) for text in arguments])
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("evil/data.pkl", stream)
            file.writestr("evil/version", "3\n")
            file.writestr("evil/byteorder", "little")
    else:
        path.write_bytes(stream)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert not victim.exists()


def doubled(levels: int) -> list[Any]:
    value: list[Any] = [0]
    for _ in range(levels):
        value = [value, value]
    return value


def self_referring() -> dict[str, Any]:
    value: dict[str, Any] = {"epoch": 1}
    value["args"] = value
    value["list"] = [value]
    return value


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"config": value}
    return value


@pytest.mark.parametrize(
    "make",
    [lambda: {"args": doubled(40)}, self_referring, lambda: nested(150), lambda: {"args": nested(150)}],
    ids=["doubling", "self-referring", "deep", "deep arguments"],
)
@pytest.mark.parametrize("with_weights", [True, False])
def test_structures_without_end(make: Callable[[], dict[str, Any]], with_weights: bool, write, state: State) -> None:
    content = make() | ({"state_dict": state} if with_weights else {})
    if with_weights:
        assert load_model(write(content)).name == "test_vit"
    else:
        with pytest.raises(CheckpointError, match="no weights in it"):
            load_model(write(content))


ARGUMENTS = [
    {"checkpoint_path": "extra.bin"}, {"pretrained": True}, {"pretrained_cfg": {"file": "extra.bin"}}, {"cache_dir": "/tmp"},
    {"pretrained_cfg_overlay": {"url": "http://x"}}, {"scriptable": True}, {"depth": 10**9}, {"depth": "3"},
    {"embed_dim": [9] * 99},
    {"img_size": 10**7}, {"norm_layer": "os.system"}, {"num_heads": float("nan")}, {"block_fn": "x"}, {"x" * 5_000_000: 1},
    {"num_classes": 10**12}, {"patch_size": -1}, {"drop_rate": {"a": 1}},
]  # fmt: skip


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("where", ["metadata", "config.json", "args"])
def test_arguments_of_models(where: str, arguments: dict[str, Any], tmp_path: Path, state: State) -> None:
    torch.save({"evil": 1}, tmp_path / "extra.bin")
    path = tmp_path / "model.safetensors"
    if where == "metadata":
        save_file(state, path, metadata={"architecture": "test_vit", "model_args": json.dumps(arguments)})
    elif where == "config.json":
        save_file(state, path)
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "model_args": arguments}))
        path = tmp_path
    else:
        path = tmp_path / "model.pth"
        torch.save({"state_dict": state, "args": argparse.Namespace(model="test_vit", model_kwargs=arguments)}, path)
    with pytest.raises(CheckpointError, match="refused, its model argument") as caught:
        load_model(path)
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


HUGGING = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "perception_lm", "vision_config": {"architecture": "x", "model_args": {"checkpoint_path": "extra.bin"}}},
         "its model argument 'checkpoint_path'"),
        ({"model_type": "detr", "backbone": "test_resnet", "backbone_kwargs": {"pretrained_cfg_overlay": {"file": "extra.bin"}}},
         "its model argument 'pretrained_cfg_overlay'"),
        ({"parts": [{"a": {"b": {"c": {"model_args": {"depth": 10**9}}}}}]}, "its model argument 'depth'"),
        ({"model_type": "dpt", "is_hybrid": True, "backbone": "local-dir:evil"}, "its backbone is 'local-dir:evil'"),
        ({"architectures": ["pipeline"], "num_attention_heads": 0}, "transformers cannot load this vit"),
    ],
)  # fmt: skip
def test_configurations_of_transformers_fetch_and_open_nothing(change, words: str, tmp_path: Path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.ViTModel(transformers.ViTConfig(**HUGGING)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked: list[str] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: asked.append(host))
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
    assert asked == []


def test_weights_of_a_backbone_are_not_fetched(tmp_path: Path, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.ViTModel(transformers.ViTConfig(**HUGGING)).save_pretrained(tmp_path)
    change = {"model_type": "dpt", "is_hybrid": True, "backbone": "test_resnet", "use_pretrained_backbone": True}
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked: list[str] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: asked.append(host))
    with contextlib.suppress(CheckpointError):  # of versions of transformers that build the backbone with the encoder
        load_model(tmp_path)
    assert asked == []


@pytest.mark.parametrize("part", ["../model.safetensors", "{outside}/model.safetensors", "../extra.bin", "/dev/zero", "3", ""])
def test_parts_of_weights_lie_in_their_folder(part: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "folder"
    transformers.ViTModel(transformers.ViTConfig(**HUGGING)).save_pretrained(folder)
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        places = dict.fromkeys(file.keys(), part.format(outside=tmp_path))
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"refused, names .* as a part of the weights; expected files of this folder"):
        load_model(folder)


def test_weights_of_transformers_that_are_no_files(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.ViTModel(transformers.ViTConfig(**HUGGING)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="a named pipe"):
        load_model(tmp_path)


@pytest.mark.parametrize(("said", "heads"), [(True, 3), ("6", 6), (6.0, 6), (10**9, 3), ("6; x", 3), (-6, 3)])
def test_heads_that_a_file_says(said: Any, heads: int, write) -> None:
    from tests.scripts.layouts_made import vit

    assert load_model(write({"model": vit().state_dict(), "args": {"num_heads": said}})).model.blocks[0].attn.num_heads == heads


@pytest.mark.parametrize("key", ["mean", "img_size", "crop_pct", "in_chans", "num_heads", "model_kwargs"])
def test_numbers_without_end(key: str, write, state: State) -> None:
    said = {key: {"depth": 10**600} if key == "model_kwargs" else 10**600, "std": -(10**600)}
    if key == "model_kwargs":
        with pytest.raises(CheckpointError, match="'depth' is"):
            load_model(write({"model": state, "args": argparse.Namespace(**said)}))
    else:
        assert load_model(write({"model": state, "args": argparse.Namespace(**said)})).input_size == (3, 160, 160)


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "victim",)

    np.savez(tmp_path / "evil.npz", weights=np.array([Evil()], dtype=object))
    with pytest.raises(CheckpointError, match=r"not a complete \.npz"):
        load_model(tmp_path / "evil.npz")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("length", [2**63, 10**9, 100_000_001])
def test_headers_longer_than_the_file(length: int, tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{" + bytes(100))
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_model(path)


def test_what_trainers_keep_is_read_as_data(write, state: State) -> None:
    content = {
        "state_dict": state,
        "args": argparse.Namespace(model="test_vit", out=pathlib.PosixPath("runs"), when=datetime.datetime(2026, 1, 2)),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
        "random": {"numpy": np.random.default_rng(0).bit_generator.state, "legacy": np.random.RandomState(0).get_state()},
        "scores": np.arange(3.0),
        "elapsed": datetime.timedelta(seconds=3),
        "generator": np.random.RandomState(1),
    }
    assert load_model(write(content)).name == "test_vit"


def inert(module: str, name: str, state: dict[str, Any]) -> Any:
    """A pickle of an object of a class that is not installed."""
    kind = type(name, (), {"__module__": module})

    class Writer(pickle._Pickler):
        def save_global(self, obj: Any, name: str | None = None) -> None:
            if obj is kind:
                self.write(f"c{module}\n{kind.__name__}\n".encode())
                self.memoize(obj)
            else:
                super().save_global(obj, name)

        dispatch = pickle._Pickler.dispatch.copy()
        dispatch[type] = save_global

    value = kind()
    value.__dict__.update(state)
    stream = io.BytesIO()
    Writer(stream, 2).dump({"epoch": 3, "config": value})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("module", "name", "fields"),
    [
        ("omegaconf.dictconfig", "DictConfig", {"_metadata": 1, "_content": {"model": "test_vit"}}),
        ("mmengine.config.config", "Config", {"_cfg_dict": {"model": "test_vit"}}),
        ("trainer.settings", "Settings", {"model": "test_vit"}),
    ],
)
def test_configurations_of_absent_libraries(module: str, name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    from overfocus.checkpoints.read import _read_torch

    path = tmp_path / "config.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config/data.pkl", inert(module, name, fields))
        file.writestr("config/version", "3\n")
        file.writestr("config/byteorder", "little")
    content = _read_torch(path)
    assert plain_data(content["config"])["model"] == "test_vit"
