"""Bad checkpoints: each is one clear line, and none of them runs code."""

import argparse
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from overfocus import CheckpointError, load_model

State = dict[str, Tensor]


class RunsCode:
    """A pickle of this runs a command when it is loaded without care."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


class Configuration:
    """A class that only the trainer's own code knows."""


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_nothing_there(tmp_path: Path) -> None:
    assert "found nothing there" in refusal(tmp_path / "missing.pth")


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + ".pth"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(CheckpointError, match="shorter path"):
        load_model(name)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.pth"
    path.touch()
    assert "empty file" in refusal(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"just some words\n", "a text file"),
        ("Gewichte für später ".encode() * 40, "a text file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\x93NUMPY\x01\x00" + bytes(100), "numpy array"),
        (b"GGUF" + bytes(100), "GGUF"),
        (b"\x1f\x8b\x08\x00" + bytes(100), "gzip"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "--images"),
        (bytes(range(128, 256)) * 4, "truncated"),
        (bytes(400), "truncated"),
    ],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.bin"])
def test_not_a_checkpoint(content: bytes, expected: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert expected in refusal(path)


@pytest.mark.parametrize(
    "content", [[1, 2], "text", torch.ones(3), {"epoch": 3}, {}, {"state_dict": {}}, {"a": {"b": torch.ones(2)}}]
)
def test_no_state_dict_inside(content: object, write) -> None:
    text = refusal(write(content))
    assert "expected a state dict" in text or "no parameter belongs to an attention layer" in text


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_torch_file(share: float, zipped: bool, tmp_path: Path, state: State) -> None:
    path = tmp_path / "cut.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    text = refusal(path)
    assert "truncated" in text or "copy or download it again" in text


@pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
def test_truncated_safetensors(share: float, tmp_path: Path, state: State) -> None:
    path = tmp_path / "cut.safetensors"
    save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "not a complete safetensors file" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["args", "state_dict"])
def test_pickle_that_would_run_code(zipped: bool, place: str, tmp_path: Path, state: State) -> None:
    victim, path = tmp_path / "victim", tmp_path / "evil.pth"
    torch.save({"state_dict": state, place: RunsCode(victim)}, path, _use_new_zipfile_serialization=zipped)
    text = refusal(path)
    assert not victim.exists()
    assert "system" in text
    assert "weights_only=False" in text
    assert "torch.save" in text


def test_plain_pickle_that_would_run_code(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(RunsCode(victim)))
    refusal(path)
    assert not victim.exists()


def test_code_in_a_namespace(tmp_path: Path, state: State) -> None:
    victim, path = tmp_path / "victim", tmp_path / "evil.pth"
    torch.save({"model": state, "args": argparse.Namespace(model=RunsCode(victim))}, path)
    assert "system" in refusal(path)
    assert not victim.exists()


def test_code_in_a_hub_folder(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "config.json").write_text('{"architecture": "test_vit"}')
    torch.save(RunsCode(victim), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="system"):
        load_model(tmp_path)
    assert not victim.exists()


def test_class_of_the_trainer_is_read_as_data(write, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Configuration, "__module__", "argparse")  # a module that can be imported, or pickle would not write it
    monkeypatch.setattr(argparse, "Configuration", Configuration, raising=False)
    assert load_model(write({"state_dict": state, "config": Configuration()})).name == "test_vit"


def test_whole_module_pickled(write, vit: nn.Module) -> None:
    text = refusal(write(vit))
    assert "wants timm." in text
    assert "whole model" in text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["TorchScript", "torch.export"])
def test_programs_of_torch(kind: str, tmp_path: Path, vit: nn.Module) -> None:
    """As torch writes them; the state dict that the line asks for loads."""
    path, images = tmp_path / "program.pth", torch.rand(1, 3, 160, 160)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "TorchScript":
            torch.jit.save(torch.jit.trace(vit, images), path)
            state = torch.jit.load(path).state_dict()
        else:
            torch.export.save(torch.export.export(vit, (images,)), path.with_suffix(".pt2"))
            path = path.with_suffix(".pt2")
            state = torch.export.load(path).state_dict
    text = refusal(path)
    assert kind in text
    assert "save model.state_dict() instead" in text
    torch.save(dict(state), tmp_path / "state.pth")
    assert load_model(tmp_path / "state.pth").name == "test_vit"


def test_torchscript_by_its_entries(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"x")
    assert "TorchScript" in refusal(path)


def test_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["x"])], "g", [value], [value])
    for name, producer in (("model.onnx", "pytorch"), ("weights.pth", "pytorch"), ("weights.bin", "")):
        onnx.save(onnx.helper.make_model(graph, producer_name=producer), tmp_path / name)
        assert "an ONNX model" in refusal(tmp_path / name)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 346284714\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("flax_model.msgpack", b"\x81\xa6params\x81\xa3cls" + bytes(40), "Flax weights (msgpack)"),
        ("weights.bin", b"\x82\xa4step\x01\xa6params\x80" + bytes(40), "Flax weights (msgpack)"),
        ("model.pte", b"\x1c\x00\x00\x00ET12" + bytes(40), "an ExecuTorch program"),
        ("weights.pth", b"\x1c\x00\x00\x00ET12" + bytes(40), "an ExecuTorch program"),
        ("clip.gguf", b"GGUF\x03\x00\x00\x00" + bytes(40), "a GGUF file"),
        ("weights.pth", b"GGUF\x03\x00\x00\x00" + bytes(40), "a GGUF file"),
        ("model.safetensors", POINTER, "git lfs pull"),
        ("pytorch_model.bin", POINTER, "git lfs pull"),
        ("__0_0.distcp", b"PK\x03\x04" + bytes(40), "one part of a distributed checkpoint"),
        ("model.tflite", b"\x1c\x00\x00\x00TFL3" + bytes(40), "TensorFlow Lite"),
    ],
)
def test_formats_of_others(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert words in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["global_step9/mp_rank_00_model_states.pt", "latest", "zero_to_fp32.py"], "a DeepSpeed checkpoint"),
        (["zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"], "a DeepSpeed checkpoint"),
        (["_METADATA", "manifest.ocdbt", "d/0"], "an Orbax checkpoint"),
        (["default/_METADATA", "default/manifest.ocdbt", "_CHECKPOINT_METADATA"], "an Orbax checkpoint"),
        (["pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata"], "a distributed checkpoint"),
        (["saved_model.pb", "variables/variables.index"], "a TensorFlow checkpoint"),
    ],
)
def test_folders_of_others(names: list[str], words: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_bytes(b"x")
    assert words in refusal(tmp_path / "there")


def test_distributed_checkpoint_is_merged_by_the_command_in_the_line(tmp_path: Path, vit: nn.Module) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import format_utils

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save({"model": vit.state_dict(), "epoch": 3}, checkpoint_id=tmp_path / "parts")
    command = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
    assert command in refusal(tmp_path / "parts")
    format_utils.dcp_to_torch_save(tmp_path / "parts", tmp_path / "whole.pth")  # what the command calls
    assert load_model(tmp_path / "whole.pth").name == "test_vit"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda tensor: tensor.to(torch.float8_e5m2), "float8_e5m2"),
        (lambda tensor: (9 * tensor).to(torch.int8), "holds int8"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "quantised (qint8)"),
        (lambda tensor: tensor.to(torch.complex64), "complex64"),
    ],
    ids=["fp8", "fp8 of gradients", "int8", "qint8", "complex"],
)
def test_quantised_weights(change, words: str, write, state: State) -> None:
    text = refusal(write({name: change(tensor) if tensor.ndim == 2 else tensor for name, tensor in state.items()}))
    assert words in text


def test_other_zip_archive(tmp_path: Path) -> None:
    path = tmp_path / "pictures.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"x")
    assert "another zip archive" in refusal(path)


def test_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps({}))
        archive.writestr("bomb/data/0", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    assert "compressed archive that unpacks to 50,000" in refusal(path)


def test_tensor_that_claims_more_than_the_file_holds(write) -> None:
    assert "claim far more data" in refusal(write({"blocks.0.attn.qkv.weight": torch.zeros(1).expand(10**6, 10**6)}))


def test_tensor_without_data(write) -> None:
    assert "expected plain dense tensors" in refusal(write({"norm.weight": torch.ones(3, device="meta")}))


def test_sparse_tensor(write) -> None:
    assert "expected plain dense tensors" in refusal(write({"norm.weight": torch.eye(3).to_sparse()}))


def test_convolutional_network_by_its_shapes(write) -> None:
    text = refusal(write(timm.create_model("resnet18").state_dict()))
    assert "resnet18" in text
    assert "no attention" in text


def test_convolutional_network_that_the_index_does_not_know(write) -> None:
    network = nn.Sequential(nn.Conv2d(3, 17, 3), nn.BatchNorm2d(17), nn.Conv2d(17, 19, 3))
    assert "no parameter belongs to an attention layer" in refusal(write(network.state_dict()))


def test_convolutional_network_by_its_metadata(write) -> None:
    path = write({"arch": "resnet18", "state_dict": timm.create_model("resnet18").state_dict()})
    assert "no attention" in refusal(path)
    assert load_model(path, model="resnet18").name == "resnet18"


def test_shape_mismatch_is_named(write, state: State) -> None:
    state["blocks.3.attn.proj.weight"] = torch.ones(64, 60)
    text = refusal(write(state), model="test_vit")
    assert "blocks.3.attn.proj.weight" in text
    assert "(64, 60)" in text
    assert "(64, 64)" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, write, state: State) -> None:
    state["blocks.2.mlp.fc1.weight"][3, 4] = value
    text = refusal(write(state))
    assert "blocks.2.mlp.fc1.weight" in text
    assert "NaN" in text


def test_too_few_parameters_land(write, state: State) -> None:
    half = {name: tensor for name, tensor in state.items() if not name.startswith(("blocks.4", "blocks.5", "blocks.3"))}
    text = refusal(write(half), model="test_vit")
    assert "missing blocks.3." in text


def test_too_much_of_the_checkpoint_has_no_place(write, state: State) -> None:
    more = {name.replace("blocks.", "blocks.1"): tensor for name, tensor in state.items() if name.startswith("blocks.")}
    text = refusal(write(state | more), model="test_vit")
    assert "blocks.10.norm1.weight" in text


def test_transformer_that_nobody_knows(write) -> None:
    layer = nn.TransformerEncoderLayer(24, 2, 48)
    text = refusal(write(layer.state_dict()))
    assert "no architecture" in text
    assert "--model" in text


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("vit.encoder.layer.0.attention.attention.query.weight", "transformers"),
        ("transformer.layers.0.0.to_qkv.weight", "vit-pytorch"),
        ("vit.blocks.0.attn.qkv.lora_A.weight", "PEFT"),
        ("transformer.resblocks.0.attn.in_proj_weight", "CLIP"),
    ],
)
def test_names_of_other_libraries(name: str, library: str, write) -> None:
    assert library in refusal(write({name: torch.ones(8, 8), "other.weight": torch.ones(3)}))


def test_wrong_model_asked_for_names_the_one_that_fits(write, state: State) -> None:
    assert "its shapes are those of test_vit" in refusal(write(state), model="vit_base_patch16_224")
    assert "its shapes are those of test_vit" in refusal(write(state), model="test_vit2")


def test_unknown_model_lists_the_nearest(write, state: State) -> None:
    path = write(state)
    with pytest.raises(CheckpointError, match="vit_tiny_patch16_224"):
        load_model(path, model="vit_tiny_patch16_225")


def test_arguments_that_the_architecture_does_not_take(write, state: State) -> None:
    args = argparse.Namespace(model="test_vit", model_kwargs={"wings": 2})
    with pytest.raises(CheckpointError, match="wings"):
        load_model(write({"state_dict": state, "args": args}))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "found no config.json"),
        ("{", "this is not JSON"),
        ("[1]", "a JSON object, got list"),
        ("[" * 100_000, "this is not JSON"),
        ('{"model_type": "vit", "hidden_size": 768}', "not every tensor matches AutoModel"),
        ("{}", "no field `architecture`"),
        ('{"architecture": "test_vit"}', "found none"),
    ],
)
def test_folder(config: str | None, expected: str, tmp_path: Path, state: State) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    if config != '{"architecture": "test_vit"}':
        save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["mean", "crop_pct", "interpolation", "model_args", "input_size"])
def test_metadata_that_makes_no_sense(key: str, tmp_path: Path, state: State) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(state, path, metadata={"architecture": "test_vit", key: '"sideways"'})
    text = refusal(path)
    assert key in text
    assert "sideways" in text


def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    """A flipped byte anywhere in the header or pickle gives a model or a CheckpointError, nothing else."""
    buffer = io.BytesIO()
    torch.save({"epoch": 1, "state_dict": {"blocks.0.attn.qkv.weight": torch.ones(3, 1)}}, buffer)
    whole = buffer.getvalue()
    path = tmp_path / "flipped.pth"
    for position in range(0, len(whole), 17):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with pytest.raises(CheckpointError):
            load_model(path)
