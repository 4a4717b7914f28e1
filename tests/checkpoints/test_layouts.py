"""Every layout in which people keep weights: the right tensors are found, and the model computes what it computed before."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from overfocus import load_model
from overfocus.checkpoints.networks import find_networks
from tests.scripts.layouts_made import behind

State = dict[str, Tensor]
IMAGES = torch.linspace(-1, 1, 2 * 3 * 160 * 160).view(2, 3, 160, 160)


def doubled(state: State) -> State:
    return {name: tensor * 2 for name, tensor in state.items()}


def assert_same_model(path: Path, vit: nn.Module, **options: object) -> None:
    loaded = load_model(path, **options)  # type: ignore[arg-type]
    assert loaded.name == "test_vit"
    assert loaded.missing_keys == []
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(IMAGES), vit(IMAGES), rtol=0, atol=0)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "model.",
        "net.",
        "backbone.",
        "module.model.",
        "model.module.",
        "_orig_mod.",
        "module._orig_mod.",
        "model.net.",
    ],
)
@pytest.mark.parametrize("entry", [None, "state_dict", "model", "model_state_dict"])
def test_prefixes_under_every_entry(prefix: str, entry: str | None, state: State, vit: nn.Module) -> None:
    weights = behind(state, prefix)
    (found,) = find_networks({entry: weights} if entry else weights)
    assert found.path == ".".join(filter(None, [entry, prefix.rstrip(".")]))
    assert found.entry == (found.path or "the file itself")
    assert found.tensors.keys() == vit.state_dict().keys()
    assert not found.beside


def test_bare_state_dict(write, state: State, vit: nn.Module) -> None:
    path = write(state)
    assert_same_model(path, vit)
    assert load_model(path).found_by == "shapes"


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth.tar", "pytorch_model.bin", "weights.ckpt"])
def test_file_names(name: str, write, state: State, vit: nn.Module) -> None:
    assert_same_model(write(state, name), vit)


def test_legacy_pickle_without_archive(tmp_path: Path, state: State, vit: nn.Module) -> None:
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert_same_model(path, vit)


def test_timm_saver_prefers_ema_and_says_so(write, state: State, vit: nn.Module) -> None:
    args = argparse.Namespace(model="test_vit", lr=np.float64(0.1), model_kwargs={}, mean=None)
    path = write(
        {
            "epoch": 3,
            "arch": "test_vit",
            "state_dict": doubled(state),
            "state_dict_ema": behind(state, "module."),
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
            "version": 2,
            "args": args,
            "amp_scaler": {"scale": 65536.0},
            "metric": np.float32(81.5),
        },
        "model_best.pth.tar",
    )
    assert_same_model(path, vit)
    loaded = load_model(path)
    assert (loaded.found_by, loaded.weights_entry) == ("arch", "state_dict_ema.module")
    assert any("EMA weights taken" in note and "--no-ema" in note for note in loaded.notes)
    plain = load_model(path, use_ema=False)
    assert plain.weights_entry == "state_dict"
    torch.testing.assert_close(plain.model.state_dict()["norm.weight"], state["norm.weight"] * 2)
    assert any("plain weights taken" in note for note in plain.notes)


def test_deit_trainer(write, state: State, vit: nn.Module) -> None:
    path = write(
        {"model": doubled(state), "model_ema": state, "args": argparse.Namespace(model="test_vit", input_size=160), "epoch": 1}
    )
    assert_same_model(path, vit)
    loaded = load_model(path)
    assert (loaded.found_by, loaded.weights_entry) == ("args.model", "model_ema")
    assert load_model(path, use_ema=False).weights_entry == "model"


def test_deit_release_without_args(write, state: State, vit: nn.Module) -> None:
    assert_same_model(write({"model": state}), vit)


def test_lightning_with_ema_beside_it(write, state: State, vit: nn.Module) -> None:
    weights = behind(doubled(state), "model.") | behind(state, "model_ema.module.") | {"loss.weight": torch.ones(4)}
    path = write({"pytorch-lightning_version": "2.4", "state_dict": weights, "hyper_parameters": {"model_name": "test_vit"}})
    assert_same_model(path, vit)
    loaded = load_model(path)
    assert loaded.found_by == "hyper_parameters.model_name"
    assert loaded.unexpected_keys == ["state_dict.loss.weight"]
    torch.testing.assert_close(load_model(path, use_ema=False).model.state_dict()["norm.bias"], state["norm.bias"] * 2)


def test_averaged_model_of_torch(write, state: State, vit: nn.Module) -> None:
    path = write(behind(state, "module.") | {"n_averaged": torch.tensor(5)})
    assert_same_model(path, vit)
    assert load_model(path).unexpected_keys == []


def test_mmseg_backbone_beside_a_head(write, state: State) -> None:
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    head = {"decode_head.conv_seg.weight": torch.ones(19, 64, 1, 1)}
    path = write({"meta": {"CLASSES": ("road", "car")}, "state_dict": behind(backbone, "backbone.") | head})
    loaded = load_model(path)
    assert (loaded.name, loaded.num_classes) == ("test_vit", 0)
    assert loaded.unexpected_keys == ["state_dict.decode_head.conv_seg.weight"]
    assert loaded.class_names is None
    assert_same = loaded.model.state_dict()["blocks.0.attn.qkv.weight"]
    torch.testing.assert_close(assert_same, state["blocks.0.attn.qkv.weight"])


def test_dino_teacher_is_preferred_to_student(write, state: State) -> None:
    path = write({"student": behind(doubled(state), "module.backbone."), "teacher": behind(state, "backbone."), "epoch": 1})
    assert load_model(path).weights_entry == "teacher.backbone"
    assert load_model(path, use_ema=False).weights_entry == "student.module.backbone"


def test_mae_decoder_is_left_out(write, state: State) -> None:
    encoder = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    decoder = {"decoder_blocks.0.attn.qkv.weight": torch.ones(192, 64), "decoder_pos_embed": torch.ones(1, 101, 64)}
    loaded = load_model(write({"model": encoder | decoder | {"mask_token": torch.zeros(1, 1, 64)}}))
    assert (loaded.name, loaded.num_classes) == ("test_vit", 0)
    assert set(decoder) <= set(loaded.unexpected_keys)


def test_safetensors_without_metadata(tmp_path: Path, state: State, vit: nn.Module) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    assert_same_model(path, vit)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_hub_folder(weights: str, tmp_path: Path, state: State, vit: nn.Module) -> None:
    config = {
        "architecture": "test_vit",
        "num_classes": 1000,
        "pretrained_cfg": {
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "input_size": [3, 160, 160],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / weights) if weights.endswith("safetensors") else torch.save(state, tmp_path / weights)
    assert_same_model(tmp_path, vit)
    loaded = load_model(tmp_path)
    assert loaded.found_by == "config.json"
    assert (loaded.mean, loaded.std, loaded.interpolation, loaded.crop_pct) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 1.0)
    assert loaded.sha256 is not None
    assert not any("assumed" in note for note in loaded.notes)
    assert load_model(tmp_path / weights).mean == loaded.mean


CLIP_MEAN, HALF = (0.48145466, 0.4578275, 0.40821073), (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("beside", "arguments", "mean"),
    [
        (("logit_scale", "logit_bias"), {}, HALF),
        (("logit_scale",), {"global_pool": "map"}, HALF),
        (("logit_scale",), {}, CLIP_MEAN),
    ],
    ids=["SigLIP", "attention pooling", "CLIP"],
)
def test_image_towers_of_timm_in_openclip(beside: tuple[str, ...], arguments: dict[str, object], mean, tmp_path: Path) -> None:
    """What mean and std are follows from the loss that the file shows, unless a configuration says it."""
    import timm

    model = timm.create_model("test_vit", num_classes=0, **arguments)
    state = {f"visual.trunk.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {name: torch.ones(()) for name in beside} | {"text.ln_final.weight": torch.ones(8)}
    save_file(state, tmp_path / "weights.safetensors")
    loaded = load_model(tmp_path / "weights.safetensors")
    assert loaded.mean == mean
    assert any("mean and std are those of" in note for note in loaded.notes)
    (tmp_path / "weights.safetensors").rename(tmp_path / "open_clip_model.safetensors")
    vision = {"timm_model_name": "test_vit", "image_size": 160}
    how = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "squash", "interpolation": "bilinear"}
    config = {"model_cfg": {"vision_cfg": vision}, "preprocess_cfg": how}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        loaded = load_model(path)
        assert (loaded.mean, loaded.std, loaded.interpolation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
        assert (loaded.preprocess.crop_mode, loaded.crop_pct, loaded.found_by) == ("squash", 1.0, "open_clip_config.json")


def clip_tower(width: int, layers: int, patch: int, side: int) -> State:
    """Names and shapes of the image tower of CLIP."""
    norms = {f"{name}.{kind}": torch.ones(width) for name in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    state = {"class_embedding": torch.zeros(width), "positional_embedding": torch.zeros(side**2 + 1, width), **norms}
    state |= {"conv1.weight": torch.rand(width, 3, patch, patch), "proj": torch.rand(width, 16)}
    shapes = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
    }
    shapes |= {"attn.out_proj.bias": (width,), "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,)}
    shapes |= {"mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,)}
    shapes |= {f"ln_{number}.{kind}": (width,) for number in (1, 2) for kind in ("weight", "bias")}
    blocks = range(layers)
    return state | {f"transformer.resblocks.{n}.{name}": torch.rand(shape) for n in blocks for name, shape in shapes.items()}


def test_openclip_folder_says_heads_and_activation(tmp_path: Path) -> None:
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
    made = clip_tower(width=64, layers=2, patch=8, side=4)
    save_file({f"visual.{name}": tensor for name, tensor in made.items()}, tmp_path / "open_clip_model.safetensors")
    for quick, activation in ((True, "QuickGELU"), (False, "GELU")):
        config = {"model_cfg": {"vision_cfg": vision, "quick_gelu": quick}, "preprocess_cfg": {}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        loaded = load_model(tmp_path)
        block = loaded.model.blocks[0]
        assert (block.attn.num_heads, type(block.mlp.act).__name__.lower().replace("_", "")) == (4, activation.lower())
        assert (loaded.mean, loaded.input_size) == (pytest.approx(CLIP_MEAN), (3, 32, 32))


def test_hub_folder_of_older_timm_and_model_args(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("test_vit", img_size=96, num_classes=2, global_pool="avg")
    config = {
        "architecture": "test_vit",
        "label_names": ["n1", "n2"],
        "label_descriptions": {"n1": "tench", "n2": "goldfish"},
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "model_args": {"global_pool": "avg"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = load_model(tmp_path)
    assert loaded.class_names == ["tench", "goldfish"]
    assert loaded.input_size == (3, 96, 96)
    assert loaded.missing_keys == []
    assert loaded.model.global_pool == "avg"


def test_whole_segmentation_model_keeps_its_backbone_and_head(write) -> None:
    import timm

    model = timm.create_model("tap_fan_tiny_8_p4_hybrid_segformer", num_classes=3).eval()
    loaded = load_model(
        write({"meta": {"CLASSES": ("a", "b", "c")}, "state_dict": behind(model.state_dict(), "module.")}), image_size=64
    )
    assert (loaded.name, loaded.num_classes, loaded.class_names) == ("tap_fan_tiny_8_p4_hybrid_segformer", 3, ["a", "b", "c"])
    assert (loaded.missing_keys, loaded.unexpected_keys) == ([], [])
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.model(images), model(images), rtol=0, atol=0)
